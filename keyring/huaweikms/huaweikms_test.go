package huaweikms

import (
	"errors"
	"maps"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kmsfs/kmsfs/integration/emulator"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/cloud/cloudtest"
	"github.com/kmsfs/kmsfs/keyring/keyringtest"
)

const testCMK = "huawei:kms:cn-north-4:0d0466b0b4a94e8f9c0f6a6c1c5b1a2b:key/0d0466b0-f727-4d9c-b35d-f84bb474a37f"

func newKeyring(t *testing.T, url string) *cloud.Keyring { return newKeyringOver(t, url, nil) }

func newKeyringOver(t *testing.T, url string, transport http.RoundTripper) *cloud.Keyring {
	t.Helper()
	client, err := NewClient(cloud.Config{
		Transport:   transport,
		Credentials: cloudtest.Credentials(),
		Endpoints:   map[string]string{"cn-north-4": url},
		Timeout:     time.Minute,
		Rate:        1e6,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return cloud.NewKeyring(client, cloudtest.CMK(t, testCMK), nil)
}

func asKeyring(t *testing.T, url string) keyring.Keyring { return newKeyring(t, url) }

func TestConformance(t *testing.T) {
	for _, spec := range []string{"AES_256", "SM4", "RSA_2048", "RSA_3072"} {
		t.Run(spec, func(t *testing.T) {
			kms := cloudtest.NewKMS(t, testCMK, spec)
			keyringtest.Run(t, func(t *testing.T) keyring.Keyring { return newKeyring(t, kms.URL) })
		})
	}
}

func TestFaults(t *testing.T) { cloudtest.RunFaults(t, testCMK, "AES_256", asKeyring) }

func TestKeyStates(t *testing.T) { cloudtest.RunStates(t, testCMK, newKeyring) }

func TestCheck(t *testing.T) { cloudtest.RunCheck(t, testCMK, newKeyring) }

func TestSDK(t *testing.T) {
	cloudtest.RunSDK(t, testCMK, "additional_authenticated_data", nil, newKeyring)
}

func TestLies(t *testing.T) {
	cloudtest.RunLies(t, testCMK, []cloudtest.Lie{
		{Name: "no digest", Spec: "AES_256", Operation: "decrypt-datakey", Field: "datakey_dgst", Value: nil, Want: cloud.BadAnswer},
		{Name: "wrong digest", Spec: "AES_256", Operation: "decrypt-datakey", Field: "datakey_dgst", Value: "00", Want: cloud.BadAnswer},
		{Name: "empty digest", Spec: "SM4", Operation: "decrypt-datakey", Field: "datakey_dgst", Value: "", Want: cloud.BadAnswer},
		{Name: "another key", Spec: "AES_256", Operation: "decrypt-datakey", Field: "data_key", Value: "000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f", Want: cloud.BadAnswer},
		{Name: "half a key", Spec: "AES_256", Operation: "decrypt-datakey", Field: "data_key", Value: "000102030405060708090a0b0c0d0e0f", Want: cloud.BadAnswer},
		{Name: "no hex", Spec: "AES_256", Operation: "decrypt-datakey", Field: "data_key", Value: "xyz", Want: cloud.BadAnswer},
		{Name: "no key", Spec: "AES_256", Operation: "decrypt-datakey", Field: "data_key", Value: nil, Want: cloud.BadAnswer},
		{Name: "key of another type", Spec: "AES_256", Operation: "decrypt-datakey", Field: "data_key", Value: 5, Want: cloud.BadAnswer},
		{Name: "wrapped by another CMK", Spec: "AES_256", Operation: "encrypt-datakey", Field: "key_id", Value: "other", Want: cloud.BadAnswer},
		{Name: "wrapped by no CMK", Spec: "AES_256", Operation: "encrypt-datakey", Field: "key_id", Value: nil, Want: cloud.BadAnswer},
		{Name: "nothing wrapped", Spec: "AES_256", Operation: "encrypt-datakey", Field: "cipher_text", Value: nil, Want: cloud.BadAnswer},
		{Name: "wrapped, no hex", Spec: "AES_256", Operation: "encrypt-datakey", Field: "cipher_text", Value: "xyz", Want: cloud.BadAnswer},
		{Name: "too much wrapped", Spec: "AES_256", Operation: "encrypt-datakey", Field: "cipher_text", Value: strings.Repeat("00", 4096), Want: cloud.BadAnswer},
		{Name: "generated elsewhere", Spec: "AES_256", Operation: "create-datakey", Field: "key_id", Value: "other", Want: cloud.BadAnswer},
		{Name: "generated half", Spec: "AES_256", Operation: "create-datakey", Field: "plain_text", Value: "000102030405060708090a0b0c0d0e0f", Want: cloud.BadAnswer},
		{Name: "generated nothing", Spec: "AES_256", Operation: "create-datakey", Field: "plain_text", Value: nil, Want: cloud.BadAnswer},
		{Name: "not described", Spec: "AES_256", Operation: "describe-key", Field: "key_info", Value: nil, Want: cloud.BadAnswer},
		{Name: "hardly described", Spec: "AES_256", Operation: "describe-key", Field: "key_info", Value: map[string]any{"key_state": "2"}, Want: cloud.BadAnswer},
		{Name: "no public key", Spec: "RSA_2048", Operation: "get-publickey", Field: "public_key", Value: nil, Want: cloud.BadAnswer},
		{Name: "odd public key", Spec: "RSA_2048", Operation: "get-publickey", Field: "public_key", Value: "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", Want: cloud.BadAnswer},
		{Name: "RSA, another CMK", Spec: "RSA_2048", Operation: "decrypt-data", Field: "key_id", Value: "other", Want: cloud.BadAnswer},
		{Name: "RSA, no context", Spec: "RSA_2048", Operation: "decrypt-data", Field: "plain_text", Value: "0000", Want: cloud.NotWrapped},
		{Name: "RSA, nothing", Spec: "RSA_2048", Operation: "decrypt-data", Field: "plain_text", Value: nil, Want: cloud.BadAnswer},
	}, asKeyring)
}

// TestTLS calls over TLS, and not a KMS with the certificate of a stranger.
func TestTLS(t *testing.T) {
	kms := cloudtest.NewKMS(t, testCMK, "AES_256")
	url, trusting := kms.TLS(t)
	if _, err := newKeyringOver(t, url, trusting).EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil); err != nil {
		t.Error(err)
	}
	before := kms.Count("")
	_, err := newKeyringOver(t, url, nil).EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil)
	if e := new(cloud.Error); !errors.As(err, &e) || e.Kind != cloud.Unavailable || e.Temporary() || kms.Count("") != before {
		t.Errorf("a stranger's certificate: %v, want one that no retry mends", err)
	}
}

// TestCalls counts what each operation costs.
func TestCalls(t *testing.T) {
	kms := cloudtest.NewKMS(t, testCMK, "AES_256")
	k := newKeyring(t, kms.URL)
	_, edks, err := k.GenerateDataKey(t.Context(), 32, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := k.DecryptDataKey(t.Context(), edks, nil); err != nil {
			t.Fatal(err)
		}
	}
	if want := map[string]int{"describe-key": 1, "create-datakey": 1, "decrypt-datakey": 3}; !maps.Equal(k.Calls(), want) || kms.Count("") != 5 {
		t.Errorf("calls %v, want %v; the KMS has seen %d", k.Calls(), want, kms.Count(""))
	}
}

// TestKnown wraps with a public key that was kept, without any call.
func TestKnown(t *testing.T) {
	kms := cloudtest.NewKMS(t, testCMK, "RSA_2048")
	k := newKeyring(t, kms.URL)
	info, _, err := k.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kms.ResetCalls()
	client, err := NewClient(cloud.Config{Credentials: cloudtest.Credentials(), Endpoints: map[string]string{"cn-north-4": kms.URL}})
	if err != nil {
		t.Fatal(err)
	}
	offline := cloud.NewKeyring(client, cloudtest.CMK(t, testCMK), info)
	edks, err := offline.EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil)
	if err != nil || kms.Count("") != 0 {
		t.Fatalf("error %v after %d calls, want 0", err, kms.Count(""))
	}
	if _, err := k.DecryptDataKey(t.Context(), edks, nil); err != nil {
		t.Error(err)
	}
}

// TestCodes has errors whose status alone would mislead.
func TestCodes(t *testing.T) {
	kms := cloudtest.NewKMS(t, testCMK, "AES_256")
	k := newKeyring(t, kms.URL)
	edks, err := k.EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		status int
		code   string
		want   cloud.Kind
	}{
		{400, "KMS.0209", cloud.KeyDisabled},
		{400, "KMS.0210", cloud.PendingDeletion},
		{400, "KMS.0207", cloud.KeyNotFound},
		{403, "KMS.0306", cloud.NoPermission},
		{401, "APIGW.0301", cloud.BadCredential},
		{403, "APIGW.0302", cloud.NoPermission},
		{429, "APIGW.0308", cloud.Throttled},
		{400, "KMS.2201", cloud.NotWrapped},
		{400, "KMS.2203", cloud.NotWrapped},
		{500, "KMS.0101", cloud.Unavailable},
		{504, "APIGW.0201", cloud.Unavailable},
		{400, "KMS.9999", cloud.Refused},
	} {
		if err := kms.SetFaults(emulator.Fault{Kind: emulator.Status, Status: c.status, Code: c.code, Message: cloudtest.Credential.Secret}); err != nil {
			t.Fatal(err)
		}
		_, err := k.DecryptDataKey(t.Context(), edks, nil)
		if e := new(cloud.Error); !errors.As(err, &e) || e.Kind != c.want || e.Code != c.code || e.Status != c.status || e.RequestID == "" {
			t.Errorf("%d %s: %v, want kind %q", c.status, c.code, err, c.want)
		} else {
			cloudtest.MustHide(t, err.Error(), nil)
		}
	}
}

// TestManyGoroutines is for the race detector: the SDK's clients are not safe for two of them.
func TestManyGoroutines(t *testing.T) {
	kms := cloudtest.NewKMS(t, testCMK, "AES_256")
	k := newKeyring(t, kms.URL)
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

// TestLeavesTheHomeAlone checks that no call leaves a file behind or asks for a project.
func TestLeavesTheHomeAlone(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	kms := cloudtest.NewKMS(t, testCMK, "AES_256")
	if _, err := newKeyring(t, kms.URL).EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(home); err != nil || len(left) > 0 {
		t.Errorf("in the home directory: %v, error %v", left, err)
	}
	if n := kms.Count(""); n != 2 {
		t.Errorf("%d calls, want describe-key and encrypt-datakey", n)
	}
}
