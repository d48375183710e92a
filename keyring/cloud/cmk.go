// Package cloud has what the keyrings on cloud KMSs share: CMK URIs, a strict HTTP transport, errors, and the rate cap.
package cloud

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/kmsfs/kmsfs/keyring"
)

// Providers, as the URIs of their CMKs begin.
const (
	Alibaba = "acs"
	Huawei  = "huawei"
)

// Errors that callers branch on.
var (
	// ErrURI says that a string is not the URI of a cloud CMK.
	ErrURI = errors.New("cloud: not a CMK URI")
	// ErrEndpoint says that an endpoint is not a URL that may be called.
	ErrEndpoint = errors.New("cloud: bad endpoint")
)

// A CMK is the parsed URI of a CMK, docs/format.md section 4.2. It is comparable.
type CMK struct {
	Provider string // Alibaba or Huawei
	Region   string
	Account  string // at Huawei the project
	KeyID    string
}

// ParseCMK parses a URI such as "acs:kms:cn-hangzhou:1234:key/key-abc". The error wraps [ErrURI].
func ParseCMK(uri string) (CMK, error) {
	f := strings.Split(uri, ":")
	if len(f) != 5 || f[0] != Alibaba && f[0] != Huawei || f[1] != "kms" {
		return CMK{}, fmt.Errorf("%w: %.80q, want acs:kms:REGION:ACCOUNT:key/ID or huawei:kms:REGION:PROJECT:key/ID", ErrURI, uri)
	}
	id, ok := strings.CutPrefix(f[4], "key/")
	c := CMK{Provider: f[0], Region: f[2], Account: f[3], KeyID: id}
	// A region becomes part of a host name and a project part of a path, so nothing else may get in.
	switch {
	case !ok || !plain(c.KeyID, 128):
		return CMK{}, fmt.Errorf("%w: %.80q: the part after the last colon is not key/ID", ErrURI, uri)
	case !plain(c.Region, 63) || c.Region != strings.ToLower(c.Region) || strings.ContainsRune(c.Region, '_'):
		return CMK{}, fmt.Errorf("%w: %.80q: bad region", ErrURI, uri)
	case !plain(c.Account, 64):
		return CMK{}, fmt.Errorf("%w: %.80q: bad account or project", ErrURI, uri)
	}
	return c, nil
}

// plain reports whether s is 1 to most letters, digits, hyphens and underscores, a letter or digit first.
func plain(s string, most int) bool {
	if s == "" || len(s) > most || s[0] == '-' || s[0] == '_' {
		return false
	}
	for _, r := range s {
		if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_') {
			return false
		}
	}
	return true
}

// String returns the URI.
func (c CMK) String() string {
	return c.Provider + ":kms:" + c.Region + ":" + c.Account + ":key/" + c.KeyID
}

// Place implements [Target].
func (c CMK) Place() (region, account string) { return c.Region, c.Account }

// ParseEndpoint parses the URL of a KMS: https, or http to the machine itself, and nothing after the host. The error wraps
// [ErrEndpoint].
func ParseEndpoint(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "":
		return nil, fmt.Errorf("%w: %.80q is not a URL", ErrEndpoint, s)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/":
		return nil, fmt.Errorf("%w: %s has more than a host", ErrEndpoint, u.Redacted())
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return nil, fmt.Errorf("%w: %s is plain http, which only a loopback address may be", ErrEndpoint, s)
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("%w: %s is not https", ErrEndpoint, s)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// contextDigest returns the digest of an encryption context in hex digits: of one length for every context, and so within
// what each cloud accepts.
func contextDigest(ec keyring.EncryptionContext) (string, error) {
	d, err := ec.Digest()
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(d[:]), nil
}

// digestSize is the length of the digest at the end of a payload, in hex digits.
const digestSize = 2 * sha256.Size
