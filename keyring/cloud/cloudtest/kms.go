package cloudtest

import (
	"crypto/x509"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/kmsfs/kmsfs/integration/emulator"
	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// A KMS is an emulated one that holds one CMK and lies when told to.
type KMS struct {
	*emulator.Emulator
	URI string // of the CMK
	URL string

	real http.Handler

	mu    sync.Mutex
	edits map[string]func(answer map[string]any) // by part of the request that names the operation; guarded by mu
}

// NewKMS returns an emulated KMS with one CMK, on loopback until the test ends, when it is checked that no secret was in a URL.
func NewKMS(t *testing.T, uri, spec string) *KMS {
	t.Helper()
	return newKMS(t, uri, spec, emulator.ContextHonoured)
}

func newKMS(t *testing.T, uri, spec string, mode emulator.ContextMode) *KMS {
	t.Helper()
	cmk := CMK(t, uri)
	provider := emulator.Alibaba
	if cmk.Provider == cloud.Huawei {
		provider = emulator.Huawei
	}
	e, err := emulator.New(emulator.Options{
		CMKs:        []emulator.CMK{{URI: uri, Spec: spec}},
		Contexts:    map[string]emulator.ContextMode{provider + "/" + cmk.Region: mode},
		Credentials: []emulator.Credential{{Provider: provider, ID: Credential.ID, Secret: Credential.Secret, Token: Credential.Token}},
	})
	if err != nil {
		t.Fatal(err)
	}
	k := &KMS{Emulator: e, URI: uri, real: e.Handler(provider, cmk.Region), edits: make(map[string]func(map[string]any))}
	server := httptest.NewServer(k)
	k.URL = server.URL
	t.Cleanup(func() {
		server.Close()
		e.Close()
		for _, r := range e.Requests() {
			for _, secret := range []string{"Plaintext=", "CiphertextBlob=", "EncryptionContext=", Credential.Secret} {
				if strings.Contains(r.URL, secret) {
					t.Errorf("a URL holds %s", secret)
				}
			}
		}
	})
	return k
}

// TLS serves the KMS over TLS as well, and returns the URL and a transport that trusts it.
func (k *KMS) TLS(t *testing.T) (string, http.RoundTripper) {
	server := httptest.NewTLSServer(k)
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	return server.URL, cloud.NewTransport(roots)
}

// Lie changes the answers of an operation, named as in the vendor's requests, until it is called with nil.
func (k *KMS) Lie(operation string, edit func(answer map[string]any)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.edits[operation] = edit
}

// ServeHTTP answers as the emulator does, but for lies.
func (k *KMS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	var edit func(map[string]any)
	for operation, e := range k.edits {
		if r.URL.Query().Get("Action") == operation || strings.HasSuffix(r.URL.Path, "/kms/"+operation) {
			edit = e
		}
	}
	k.mu.Unlock()
	if edit == nil {
		k.real.ServeHTTP(w, r)
		return
	}
	rec := httptest.NewRecorder()
	k.real.ServeHTTP(rec, r)
	answer := make(map[string]any)
	if err := json.Unmarshal(rec.Body.Bytes(), &answer); err == nil {
		edit(answer)
	}
	maps.Copy(w.Header(), rec.Header())
	w.WriteHeader(rec.Code)
	json.NewEncoder(w).Encode(answer)
}
