package cloud

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/creds"
)

func TestParseCMK(t *testing.T) {
	for _, uri := range []string{
		"acs:kms:cn-hangzhou:1234567890123456:key/key-hzz62f1cb66fa42qo3nrq",
		"huawei:kms:cn-north-4:0d0466b0b4a94e8f9c0f6a6c1c5b1a2b:key/0d0466b0-f727-4d9c-b35d-f84bb474a37f",
	} {
		c, err := ParseCMK(uri)
		if err != nil || c.String() != uri {
			t.Errorf("%s: parsed as %+v, error %v", uri, c, err)
		}
	}
	for _, uri := range []string{
		"", "local:/x", "acs", "acs:kms:r:a:key", "acs:kms:r:a:key/", "acs:kms:r:a:alias/x", "acs:kms::a:key/x", "acs:kms:r::key/x", "aws:kms:r:a:key/x",
		"acs:ram:r:a:key/x", "acs:kms:R:a:key/x", "acs:kms:-r:a:key/x", "acs:kms:r_x:a:key/x", "acs:kms:r.evil:a:key/x", "acs:kms:r:a/../b:key/x",
		"acs:kms:r:a:key/x/y", "acs:kms:r:a:key/x:y", "acs:kms:r:a:key/x y", "acs:kms:r:a:key/x\n", "acs:kms:r@h:a:key/x", "acs:kms:r:a:key/ü",
		"acs:kms:r:a:key/" + strings.Repeat("x", 129), "acs:kms:" + strings.Repeat("r", 64) + ":a:key/x",
	} {
		if _, err := ParseCMK(uri); !errors.Is(err, ErrURI) {
			t.Errorf("%q: %v, want ErrURI", uri, err)
		}
	}
}

func FuzzParseCMK(f *testing.F) {
	f.Add("acs:kms:cn-hangzhou:1:key/k")
	f.Fuzz(func(t *testing.T, uri string) {
		if c, err := ParseCMK(uri); err == nil && c.String() != uri {
			t.Errorf("%q came back as %q", uri, c)
		}
	})
}

func TestParseEndpoint(t *testing.T) {
	for s, want := range map[string]string{
		"https://kms.example.com": "https://kms.example.com", "https://kms.example.com:8443/": "https://kms.example.com:8443",
		"http://127.0.0.1:80": "http://127.0.0.1:80", "http://[::1]:80": "http://[::1]:80", "http://localhost": "http://localhost",
	} {
		if u, err := ParseEndpoint(s); err != nil || u.String() != want {
			t.Errorf("%s: %v, %v", s, u, err)
		}
	}
	for _, s := range []string{
		"", "kms.example.com", "http://kms.example.com", "http://127.0.0.1.example.com", "http://10.0.0.1", "ftp://127.0.0.1", "https://", "https://:443",
		"https://u:p@h", "https://h/path", "https://h?q", "https://h#f", "://",
	} {
		if _, err := ParseEndpoint(s); !errors.Is(err, ErrEndpoint) {
			t.Errorf("%q: %v, want ErrEndpoint", s, err)
		}
	}
}

// fixed has one credential, and another once that was refused.
type fixed struct{ renewed creds.Credential }

func (fixed) Get(context.Context) (creds.Credential, error) {
	return creds.Credential{ID: "old", Secret: "s"}, nil
}

func (f fixed) Renew(context.Context, creds.Credential) (creds.Credential, error) {
	if f.renewed.ID == "" {
		return creds.Credential{}, creds.ErrNone
	}
	return f.renewed, nil
}

var errRefused = errors.New("refused")

var testVendor = Vendor{
	Host:    "kms.%s.example.invalid",
	Rate:    10,
	Explain: func(err error) (int, string, string, bool) { return 401, "Bad", "id", errors.Is(err, errRefused) },
	Kind:    func(_, code string) (Kind, bool) { return BadCredential, code == "Bad" },
}

var testCMK = CMK{Provider: Alibaba, Region: "r", Account: "a", KeyID: "k"}

func get(s Session, path string) error {
	client := &http.Client{Transport: s.Transport}
	resp, err := client.Get(s.Endpoint.String() + path)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func TestTLS(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	server.Config.ErrorLog = nil
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	for name, c := range map[string]struct {
		transport http.RoundTripper
		want      error
	}{"trusted": {NewTransport(roots), nil}, "stranger": {NewTransport(nil), keyring.ErrUnavailable}} {
		caller, err := NewCaller(testVendor, Config{Credentials: fixed{}, Endpoints: map[string]string{"r": server.URL}, Transport: c.transport})
		if err != nil {
			t.Fatal(err)
		}
		_, err = caller.Do(t.Context(), testCMK, "Get", func(s Session) error { return get(s, "/?secret=canary") })
		if !errors.Is(err, c.want) || err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if e := new(Error); errors.As(err, &e) && e.Temporary() {
			t.Errorf("%s: worth a retry: %v", name, err)
		}
	}
}

func TestOnlyTheEndpointIsCalled(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("called") }))
	defer server.Close()
	caller, err := NewCaller(testVendor, Config{Credentials: fixed{}, Endpoints: map[string]string{"r": "http://127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = caller.Do(t.Context(), testCMK, "Get", func(s Session) error {
		client := &http.Client{Transport: s.Transport}
		_, err := client.Get(server.URL)
		return err
	})
	if e := new(Error); !errors.As(err, &e) || e.Kind != BadAnswer {
		t.Errorf("error %v, want one of kind BadAnswer", err)
	}
}

// TestBounds has answers that the transport must not hand on.
func TestBounds(t *testing.T) {
	for name, c := range map[string]struct {
		handle http.HandlerFunc
		fails  bool
	}{
		"longest":       {func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, maxAnswer)) }, false},
		"too long":      {func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, maxAnswer+1)) }, true},
		"redirect home": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) }, true},
		"not modified":  {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotModified) }, true},
	} {
		var calls atomic.Int32
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			c.handle(w, r)
		}))
		caller, err := NewCaller(testVendor, Config{Credentials: fixed{}, Endpoints: map[string]string{"r": server.URL}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = caller.Do(t.Context(), testCMK, "Get", func(s Session) error { return get(s, "/") })
		if e := new(Error); (err != nil) != c.fails || c.fails && (!errors.As(err, &e) || e.Kind != BadAnswer) || calls.Load() != 1 {
			t.Errorf("%s: error %v after %d calls", name, err, calls.Load())
		}
		server.Close()
	}
}

func TestRenewsARefusedCredentialOnce(t *testing.T) {
	for name, c := range map[string]struct {
		credentials fixed
		good        string
		calls       int
		fails       bool
	}{
		"good":          {fixed{}, "old", 1, false},
		"renewed":       {fixed{creds.Credential{ID: "new", Secret: "s"}}, "new", 2, false},
		"renewed, bad":  {fixed{creds.Credential{ID: "new", Secret: "s"}}, "none", 2, true},
		"not renewable": {fixed{}, "none", 1, true},
	} {
		caller, err := NewCaller(testVendor, Config{Credentials: c.credentials})
		if err != nil {
			t.Fatal(err)
		}
		_, err = caller.Do(t.Context(), testCMK, "Get", func(s Session) error {
			if s.Credential.ID != c.good {
				return errRefused
			}
			return nil
		})
		if (err != nil) != c.fails || c.fails && !errors.Is(err, keyring.ErrDenied) || caller.Calls(testCMK)["Get"] != c.calls {
			t.Errorf("%s: error %v after %v calls, want %d", name, err, caller.Calls(testCMK), c.calls)
		}
	}
}

func TestRateCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		caller, err := NewCaller(testVendor, Config{Credentials: fixed{}})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for range 60 {
			if _, err := caller.Do(t.Context(), testCMK, "Get", func(Session) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
		// A second's worth may come at once.
		if took := time.Since(start).Round(time.Millisecond); took != 5*time.Second {
			t.Errorf("60 calls at 10/s took %v, want 5 s", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err = caller.Do(ctx, testCMK, "Get", func(Session) error { return nil })
		if e := new(Error); !errors.As(err, &e) || e.Kind != Throttled {
			t.Errorf("error %v, want one of kind Throttled", err)
		}
	})
}

// hung never answers.
type hung struct{}

func (hung) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		caller, err := NewCaller(testVendor, Config{Credentials: fixed{}, Transport: hung{}})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err = caller.Do(t.Context(), testCMK, "Get", func(s Session) error { return get(s, "/?secret=canary") })
		e := new(Error)
		if !errors.As(err, &e) || e.Kind != Unavailable || !e.Temporary() || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 6*time.Second {
			t.Errorf("error %v after %v, want a timeout after 6 s", err, time.Since(start))
		}
		if strings.Contains(err.Error(), "canary") {
			t.Errorf("the error shows the URL: %v", err)
		}
	})
}

func TestSkewIsTold(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
	}))
	defer server.Close()
	caller, err := NewCaller(testVendor, Config{Credentials: fixed{}, Endpoints: map[string]string{"r": server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = caller.Do(t.Context(), testCMK, "Get", func(s Session) error {
		if err := get(s, "/"); err != nil {
			return err
		}
		return errRefused
	})
	if e := new(Error); !errors.As(err, &e) || e.Skew < 59*time.Minute || e.Skew > 70*time.Minute || !strings.Contains(e.Error(), "clock") {
		t.Errorf("error %v, want one that tells of a clock an hour ahead", err)
	}
}
