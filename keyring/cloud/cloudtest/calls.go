package cloudtest

import (
	"errors"
	"maps"
	"net/http"
	"sync"
	"testing"

	"github.com/kmsfs/kmsfs/integration/emulator"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// RunTLS calls over TLS, and not a KMS with the certificate of a stranger.
func RunTLS(t *testing.T, uri string, make func(t *testing.T, url string, transport http.RoundTripper) *cloud.Keyring) {
	kms := NewKMS(t, uri, "AES_256")
	url, trusting := kms.TLS(t)
	if _, err := make(t, url, trusting).EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil); err != nil {
		t.Error(err)
	}
	before := kms.Count("")
	_, err := make(t, url, nil).EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil)
	if e := new(cloud.Error); !errors.As(err, &e) || e.Kind != cloud.Unavailable || e.Temporary() || kms.Count("") != before {
		t.Errorf("a stranger's certificate: %v, want one that no retry mends", err)
	}
}

// RunCalls counts what a data key costs that is generated and unwrapped three times.
func RunCalls(t *testing.T, uri string, want map[string]int, make func(t *testing.T, url string) *cloud.Keyring) {
	kms := NewKMS(t, uri, "AES_256")
	k := make(t, kms.URL)
	_, edks, err := k.GenerateDataKey(t.Context(), 32, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := k.DecryptDataKey(t.Context(), edks, nil); err != nil {
			t.Fatal(err)
		}
	}
	if !maps.Equal(k.Calls(), want) || kms.Count("") != 5 {
		t.Errorf("calls %v, want %v; the KMS has seen %d", k.Calls(), want, kms.Count(""))
	}
}

// RunKnown wraps with a public key that was kept, without any call.
func RunKnown(t *testing.T, uri string, dial func(t *testing.T, url string) cloud.KMS) {
	kms := NewKMS(t, uri, "RSA_2048")
	client, cmk := dial(t, kms.URL), CMK(t, uri)
	k := cloud.NewKeyring(client, cmk, nil)
	info, _, err := k.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kms.ResetCalls()
	edks, err := cloud.NewKeyring(client, cmk, info).EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil)
	if err != nil || kms.Count("") != 0 {
		t.Fatalf("error %v after %d calls, want 0", err, kms.Count(""))
	}
	if _, err := k.DecryptDataKey(t.Context(), edks, nil); err != nil {
		t.Error(err)
	}
}

// A Code is an error of a KMS, and what it means.
type Code struct {
	Status int
	Code   string
	Want   cloud.Kind
}

// RunCodes has errors whose status alone would mislead.
func RunCodes(t *testing.T, uri string, codes []Code, make func(t *testing.T, url string) *cloud.Keyring) {
	if len(codes) == 0 {
		t.Fatal("no codes")
	}
	kms := NewKMS(t, uri, "AES_256")
	k := make(t, kms.URL)
	edks, err := k.EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range codes {
		if err := kms.SetFaults(emulator.Fault{Kind: emulator.Status, Status: c.Status, Code: c.Code, Message: Credential.Secret}); err != nil {
			t.Fatal(err)
		}
		_, err := k.DecryptDataKey(t.Context(), edks, nil)
		if e := new(cloud.Error); !errors.As(err, &e) || e.Kind != c.Want || e.Code != c.Code || e.Status != c.Status || e.RequestID == "" {
			t.Errorf("%d %s: %v, want kind %q", c.Status, c.Code, err, c.Want)
		} else {
			MustHide(t, err.Error(), nil)
		}
	}
}

// RunManyGoroutines is for the race detector: the SDK's clients are not safe for two of them.
func RunManyGoroutines(t *testing.T, uri string, make func(t *testing.T, url string) *cloud.Keyring) {
	kms := NewKMS(t, uri, "AES_256")
	k := make(t, kms.URL)
	var group sync.WaitGroup
	for range 100 {
		group.Go(func() {
			_, edks, err := k.GenerateDataKey(t.Context(), 32, nil)
			if err == nil {
				_, err = k.DecryptDataKey(t.Context(), edks, nil)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}
