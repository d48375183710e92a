// Package cloudtest has what the tests of keyrings on cloud KMSs share: an emulated KMS, its lies, and the faults that each keyring must survive.
package cloudtest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/creds"
)

// Credential is what the tests sign with. Its secrets must show nowhere.
var Credential = creds.Credential{ID: "AKIDforTests", Secret: "canary-secret-of-the-access-key", Token: "canary-security-token"}

// Credentials returns [Credential] for as long as it is asked and has no other.
func Credentials() cloud.Credentials { return fixed{} }

type fixed struct{}

func (fixed) Get(context.Context) (creds.Credential, error) { return Credential, nil }

func (fixed) Renew(context.Context, creds.Credential) (creds.Credential, error) {
	return creds.Credential{}, creds.ErrNone
}

// CMK parses the URI of a CMK.
func CMK(t *testing.T, uri string) cloud.CMK {
	t.Helper()
	cmk, err := cloud.ParseCMK(uri)
	if err != nil {
		t.Fatal(err)
	}
	return cmk
}

// MustHide checks that a text holds no secret of [Credential] and no spelling of a data key.
func MustHide(t *testing.T, text string, dk keyring.DataKey) {
	t.Helper()
	secrets := []string{Credential.Secret, Credential.Token}
	if len(dk) > 0 {
		secrets = append(secrets, string(dk), hex.EncodeToString(dk), base64.StdEncoding.EncodeToString(dk))
	}
	for _, secret := range secrets {
		if strings.Contains(text, secret) {
			t.Errorf("a secret shows in %q", text)
		}
	}
}

// A fault answers instead of the KMS.
type fault struct {
	name      string
	handle    func(w http.ResponseWriter, r *http.Request, real http.Handler)
	want      error
	kind      cloud.Kind
	status    int
	temporary bool
}

func status(code int) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Error(w, "<html>you sent "+r.URL.RawQuery+"</html>", code)
	}
}

func body(text string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, text)
	}
}

func faults(elsewhere string) []fault {
	return []fault{
		{"500", status(500), keyring.ErrUnavailable, cloud.Unavailable, 500, true},
		{"502", status(502), keyring.ErrUnavailable, cloud.Unavailable, 502, true},
		{"503", status(503), keyring.ErrUnavailable, cloud.Unavailable, 503, true},
		{"504", status(504), keyring.ErrUnavailable, cloud.Unavailable, 504, true},
		{"501", status(501), keyring.ErrUnavailable, cloud.Unavailable, 501, false},
		{"429", status(429), keyring.ErrUnavailable, cloud.Throttled, 429, true},
		{"401", status(401), keyring.ErrDenied, cloud.BadCredential, 401, false},
		{"403", status(403), keyring.ErrDenied, cloud.NoPermission, 403, false},
		{"404", status(404), keyring.ErrDenied, cloud.KeyNotFound, 404, false},
		{"418", status(418), keyring.ErrDenied, cloud.Refused, 418, false},
		{"empty 200", body(""), keyring.ErrUnavailable, cloud.BadAnswer, 200, false},
		{"empty object", body("{}"), keyring.ErrUnavailable, cloud.BadAnswer, 200, false},
		{"null", body("null"), keyring.ErrUnavailable, cloud.BadAnswer, 200, false},
		{"array", body("[]"), keyring.ErrUnavailable, cloud.BadAnswer, 200, false},
		{"html", body("<html></html>"), keyring.ErrUnavailable, cloud.BadAnswer, 200, false},
		{"endless", body("{\"x\":\"" + strings.Repeat("x", 1<<20)), keyring.ErrUnavailable, cloud.BadAnswer, 200, false},
		{"redirect", func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, elsewhere, http.StatusTemporaryRedirect)
		}, keyring.ErrUnavailable, cloud.BadAnswer, 307, false},
		{"odd error", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.WriteHeader(400)
			fmt.Fprint(w, `{"Code":5,"Message":[],"RequestId":{},"error":{"error_code":5},"error_code":[]}`)
		}, nil, 0, 0, false}, // whatever it is called, it must not crash
		{"truncated", func(w http.ResponseWriter, r *http.Request, real http.Handler) {
			rec := httptest.NewRecorder()
			real.ServeHTTP(rec, r)
			w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
			w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
			panic(http.ErrAbortHandler)
		}, keyring.ErrUnavailable, cloud.Unavailable, 0, true},
		{"truncated inside", func(w http.ResponseWriter, r *http.Request, real http.Handler) {
			rec := httptest.NewRecorder()
			real.ServeHTTP(rec, r)
			w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
		}, keyring.ErrUnavailable, cloud.BadAnswer, 200, false},
		{"reset", func(http.ResponseWriter, *http.Request, http.Handler) {
			panic(http.ErrAbortHandler)
		}, keyring.ErrUnavailable, cloud.Unavailable, 0, true},
	}
}

// RunFaults tests the keyring that make returns for a KMS at a URL against faults of that KMS.
func RunFaults(t *testing.T, uri, spec string, make func(t *testing.T, url string) keyring.Keyring) {
	kms := NewKMS(t, uri, spec)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a redirect was followed, with Referer %q", r.Referer())
	}))
	defer elsewhere.Close()

	var (
		mu     sync.Mutex
		handle func(http.ResponseWriter, *http.Request, http.Handler) // guarded by mu
	)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		h := handle
		mu.Unlock()
		if h == nil {
			kms.ServeHTTP(w, r)
			return
		}
		h(w, r, kms)
	}))
	server.Config.ErrorLog = nil
	server.Start()
	defer server.Close()
	set := func(h func(http.ResponseWriter, *http.Request, http.Handler)) {
		mu.Lock()
		defer mu.Unlock()
		handle = h
	}

	k := make(t, server.URL)
	dk := keyring.NewDataKey(32)
	edks, err := k.EncryptDataKey(t.Context(), dk, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults(elsewhere.URL) {
		t.Run(f.name, func(t *testing.T) {
			set(f.handle)
			defer set(nil)
			got, err := k.DecryptDataKey(t.Context(), edks, nil)
			check(t, f, err, dk)
			if got != nil {
				t.Error("got a key")
			}
			made, _, err := keyring.GenerateDataKey(t.Context(), k, 32, nil)
			check(t, f, err, dk)
			if made != nil {
				t.Error("made a key")
			}
			_, err = k.EncryptDataKey(t.Context(), dk, nil)
			check(t, f, err, dk)
		})
	}
	if got, err := k.DecryptDataKey(t.Context(), edks, nil); err != nil || !bytes.Equal(got, dk) {
		t.Errorf("after the faults: same key: %t, error %v", bytes.Equal(got, dk), err)
	}

	t.Run("hang", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		set(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
			io.Copy(io.Discard, r.Body) // or the server does not notice that the client leaves
			cancel()                    // the call is there for sure
			<-r.Context().Done()
		})
		defer set(nil)
		if _, err := k.DecryptDataKey(ctx, edks, nil); !errors.Is(err, context.Canceled) || errors.Is(err, keyring.ErrDenied) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	})
	t.Run("refused connection", func(t *testing.T) {
		server.Close()
		_, err := k.DecryptDataKey(t.Context(), edks, nil)
		check(t, fault{want: keyring.ErrUnavailable, kind: cloud.Unavailable, temporary: true}, err, dk)
	})
}

func check(t *testing.T, f fault, err error, dk keyring.DataKey) {
	t.Helper()
	var e *cloud.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v, want a *cloud.Error", err)
	}
	MustHide(t, fmt.Sprintf("%v %+v %#v", err, err, e), dk)
	if f.want == nil {
		return
	}
	if !errors.Is(err, f.want) || errors.Is(err, keyring.ErrNoMatch) || e.Kind != f.kind || e.Status != f.status || e.Temporary() != f.temporary {
		t.Errorf("error %v: kind %q, status %d, temporary %t, want %v, %q, %d, %t",
			err, e.Kind, e.Status, e.Temporary(), f.want, f.kind, f.status, f.temporary)
	}
	if e.CMK == "" || e.Call == "" || strings.ContainsAny(err.Error(), "\n\r") {
		t.Errorf("error %q names no CMK or call, or has several lines", err)
	}
}
