package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/local"
)

// checkCMKs refuses CMK URIs that no provider knows, without opening anything.
func checkCMKs(cmks []string) error {
	seen := make(map[string]bool)
	acs := regexp.MustCompile(`^acs:kms:[a-z0-9-]+:[^:/\s]+:key/[^:/\s]+$`)
	huawei := regexp.MustCompile(`^huawei:kms:[a-z0-9-]+:[^:/\s]+:key/[^:/\s]+$`)
	for _, cmk := range cmks {
		path, isLocal := strings.CutPrefix(cmk, "local:")
		switch {
		case seen[cmk]:
			return usagef("CMK %s is given twice", cmk)
		case isLocal && !filepath.IsAbs(path):
			return usagef("CMK %q: the path must be absolute, such as local:/etc/kmsfs/cmk", cmk)
		case isLocal, acs.MatchString(cmk), huawei.MatchString(cmk):
		default:
			return usagef("CMK %q is none of local:/absolute/path, acs:kms:REGION:ACCOUNT:key/ID and huawei:kms:REGION:PROJECT:key/ID", cmk)
		}
		seen[cmk] = true
	}
	return nil
}

// keyrings turns CMK URIs into keyrings; nothing else does.
type keyrings struct {
	endpoints map[string]string // URL by PROVIDER/REGION
}

// A cmkKeyring is a keyring of one CMK, named as headers name it.
type cmkKeyring interface {
	keyring.Keyring
	CMK() string
}

// open opens one CMK whose URI checkCMKs has passed. Each provider has its case here.
func (s keyrings) open(cmk string) (cmkKeyring, error) {
	switch provider, path, _ := strings.Cut(cmk, ":"); provider {
	case "local":
		k, err := local.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w; create one with: kmsfs key new %s", err, path)
		}
		return k, err
	}
	return nil, errors.New("its provider is not in this build")
}

// all returns the keyring of all of cmks, for wrapping: all or nothing.
func (s keyrings) all(cmks []string) (keyring.Keyring, error) {
	opened, failures := s.each(cmks)
	if len(failures) > 0 {
		return nil, fail(exitCMK, "%w", errors.Join(failures...))
	}
	list := make([]keyring.Keyring, len(opened))
	uris := make(map[string]string) // by the CMK's own name
	for i, k := range opened {
		if other := uris[k.CMK()]; other != "" {
			return nil, usagef("CMKs %s and %s are the same", other, cmks[i])
		}
		uris[k.CMK()] = cmks[i]
		list[i] = k
	}
	return keyring.Multi(list...), nil
}

// any returns the keyring of those of cmks that can be opened, for unwrapping, and what is wrong with the others: any
// one CMK opens a volume.
func (s keyrings) any(cmks []string) (keyring.Keyring, []error) {
	opened, failures := s.each(cmks)
	list := make([]keyring.Keyring, len(opened))
	for i, k := range opened {
		list[i] = k
	}
	return keyring.Multi(list...), failures
}

func (s keyrings) each(cmks []string) (opened []cmkKeyring, failures []error) {
	for _, cmk := range cmks {
		k, err := s.open(cmk)
		if err != nil {
			failures = append(failures, fmt.Errorf("CMK %s: %w", cmk, err))
			continue
		}
		opened = append(opened, k)
	}
	return opened, failures
}

// parseEndpoints reads PROVIDER/REGION=URL, also several with commas between; the first for a region counts. Plain http reaches only
// the machine itself.
func parseEndpoints(lists []string) (map[string]string, error) {
	endpoints := make(map[string]string)
	for e := range strings.SplitSeq(strings.Join(lists, ","), ",") {
		if e == "" {
			continue
		}
		where, to, ok := strings.Cut(e, "=")
		provider, region, hasRegion := strings.Cut(where, "/")
		if !ok || !hasRegion || region == "" || provider != "alibaba" && provider != "huawei" {
			return nil, usagef("endpoint %q is not PROVIDER/REGION=URL with provider alibaba or huawei", e)
		}
		if !secureURL(to) {
			return nil, usagef("endpoint %q: the URL must be https://HOST (http:// only to the loopback)", e)
		}
		if endpoints[where] == "" {
			endpoints[where] = to
		}
	}
	return endpoints, nil
}

// secureURL reports whether a URL is https, or http to the machine itself.
func secureURL(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || u.User != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback())
}
