package creds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	instanceTimeout = 3 * time.Second // of one request
	maxAnswer       = 64 << 10        // bytes
	tokenLife       = "21600"         // seconds, the most that either service gives
)

// instance is the metadata service of the machine that the program runs on.
type instance struct {
	vendor
	base, roleName string
	client         *http.Client
}

// newInstance returns the metadata service at a base URL. The service speaks plain http, so the URL must be of an address that is not routed:
// loopback, link-local, or the vendor's own.
func newInstance(v vendor, base, role string) (*instance, error) {
	if base == "" {
		base = v.metadata
	}
	base = strings.TrimSuffix(base, "/")
	u, err := url.Parse(base)
	if err != nil { // which repeats a password that there may be
		return nil, errors.New("creds: the base URL of the metadata service is no URL")
	}
	if u.Host == "" || u.User != nil || u.RawQuery != "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("creds: %.80q is not the base URL of a metadata service", u.Redacted())
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "http" && base != v.metadata && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback() && !ip.IsLinkLocalUnicast()) {
		return nil, fmt.Errorf("creds: metadata service %s is plain http, which only a loopback or link-local address may be", base)
	}
	return &instance{vendor: v, base: base, roleName: role, client: &http.Client{
		Timeout:       instanceTimeout,
		Transport:     &http.Transport{DisableCompression: true, DisableKeepAlives: true, MaxResponseHeaderBytes: maxAnswer}, // no proxy
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Fetch implements [Source].
func (m *instance) Fetch(ctx context.Context) (Credential, error) {
	header := map[string]string{m.tokenHeader + "-Ttl-Seconds": tokenLife}
	token, status, err := m.request(ctx, http.MethodPut, m.tokenPath, header)
	switch {
	case err != nil:
		return Credential{}, err
	case status == 200:
		header = map[string]string{m.tokenHeader: strings.TrimSpace(string(token))}
	case status == 404 || status == 405 || status == 503:
		header = nil // the service has no sessions
	default:
		return Credential{}, fmt.Errorf("creds: metadata service %s: HTTP %d for a session", m.base, status)
	}
	c, err := m.fetch(ctx, m, header)
	if err != nil {
		return Credential{}, err
	}
	if c.ID == "" || c.Secret == "" || c.Token == "" || c.Expiry.IsZero() {
		return Credential{}, fmt.Errorf("%w: metadata service %s: the answer is not complete", ErrFormat, m.base)
	}
	return c, nil
}

// request returns the answer of the service. Errors have neither headers nor bodies.
func (m *instance) request(ctx context.Context, method, path string, header map[string]string) (body []byte, status int, err error) {
	r, err := http.NewRequestWithContext(ctx, method, m.base+path, nil)
	if err != nil {
		return nil, 0, err
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	resp, err := m.client.Do(r)
	if err != nil {
		return nil, 0, fmt.Errorf("creds: metadata service: %w", err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, 0, fmt.Errorf("creds: metadata service %s: %w", m.base, err)
	}
	return body, resp.StatusCode, nil
}

func (m *instance) get(ctx context.Context, path string, header map[string]string) ([]byte, error) {
	body, status, err := m.request(ctx, http.MethodGet, path, header)
	switch {
	case err != nil:
		return nil, err
	case status == 404:
		return nil, fmt.Errorf("%w: metadata service %s: the instance has no role or agency", ErrNone, m.base)
	case status != 200:
		return nil, fmt.Errorf("creds: metadata service %s: HTTP %d", m.base, status)
	}
	return body, nil
}

func fetchAlibaba(ctx context.Context, m *instance, header map[string]string) (Credential, error) {
	const path = "/latest/meta-data/ram/security-credentials/"
	role := m.roleName
	if role == "" {
		b, err := m.get(ctx, path, header)
		if err != nil {
			return Credential{}, err
		}
		role, _, _ = strings.Cut(strings.TrimSpace(string(b)), "\n")
	}
	b, err := m.get(ctx, path+url.PathEscape(role), header)
	if err != nil {
		return Credential{}, err
	}
	defer clear(b)
	var a struct {
		Code, AccessKeyID, AccessKeySecret, SecurityToken string
		Expiration                                        time.Time
	}
	if err := json.Unmarshal(b, &a); err != nil || a.Code != "Success" {
		return Credential{}, m.bad(err)
	}
	return Credential{ID: a.AccessKeyID, Secret: a.AccessKeySecret, Token: a.SecurityToken, Expiry: a.Expiration}, nil
}

func fetchHuawei(ctx context.Context, m *instance, header map[string]string) (Credential, error) {
	b, err := m.get(ctx, "/openstack/latest/securitykey", header)
	if err != nil {
		return Credential{}, err
	}
	defer clear(b)
	var a struct {
		Credential struct {
			Access        string    `json:"access"`
			Secret        string    `json:"secret"`
			SecurityToken string    `json:"securitytoken"`
			ExpiresAt     time.Time `json:"expires_at"`
		} `json:"credential"`
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return Credential{}, m.bad(err)
	}
	c := a.Credential
	return Credential{ID: c.Access, Secret: c.Secret, Token: c.SecurityToken, Expiry: c.ExpiresAt}, nil
}

// bad describes an answer that is not understood, without quoting it.
func (m *instance) bad(err error) error {
	if e := new(json.SyntaxError); errors.As(err, &e) {
		return fmt.Errorf("%w: metadata service %s: the answer is not JSON", ErrFormat, m.base)
	}
	return fmt.Errorf("%w: metadata service %s: the answer is not a credential", ErrFormat, m.base)
}
