package alikms

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/kmsfs/kmsfs/integration/emulator"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/cloud/cloudtest"
	"github.com/kmsfs/kmsfs/keyring/keyringtest"
)

const testCMK = "acs:kms:cn-hangzhou:1234567890123456:key/key-hzz1234567890abcdef"

func newKeyring(t *testing.T, url string) *cloud.Keyring { return newKeyringOver(t, url, nil) }

func newKeyringOver(t *testing.T, url string, transport http.RoundTripper) *cloud.Keyring {
	t.Helper()
	client, err := NewClient(cloud.Config{
		Transport:   transport,
		Credentials: cloudtest.Credentials(),
		Endpoints:   map[string]string{"cn-hangzhou": url},
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

func TestLies(t *testing.T) {
	cloudtest.RunLies(t, testCMK, []cloudtest.Lie{
		{Name: "decrypted by another CMK", Spec: "AES_256", Operation: "Decrypt", Field: "KeyId", Value: "key-another", Want: cloud.NotWrapped},
		{Name: "decrypted by no CMK", Spec: "AES_256", Operation: "Decrypt", Field: "KeyId", Value: nil, Want: cloud.BadAnswer},
		{Name: "short key", Spec: "AES_256", Operation: "Decrypt", Field: "Plaintext", Value: "AAAA", Want: cloud.BadAnswer},
		{Name: "half a key", Spec: "AES_256", Operation: "Decrypt", Field: "Plaintext", Value: "AAAAAAAAAAAAAAAAAAAAAA==", Want: cloud.BadAnswer},
		{Name: "no Base64", Spec: "AES_256", Operation: "Decrypt", Field: "Plaintext", Value: "***", Want: cloud.BadAnswer},
		{Name: "no key", Spec: "AES_256", Operation: "Decrypt", Field: "Plaintext", Value: nil, Want: cloud.BadAnswer},
		{Name: "key of another type", Spec: "AES_256", Operation: "Decrypt", Field: "Plaintext", Value: 5, Want: cloud.BadAnswer},
		{Name: "wrapped by another CMK", Spec: "AES_256", Operation: "Encrypt", Field: "KeyId", Value: "key-another", Want: cloud.BadAnswer},
		{Name: "nothing wrapped", Spec: "AES_256", Operation: "Encrypt", Field: "CiphertextBlob", Value: nil, Want: cloud.BadAnswer},
		{Name: "odd Base64", Spec: "AES_256", Operation: "Encrypt", Field: "CiphertextBlob", Value: "AB==", Want: cloud.BadAnswer},
		{Name: "generated elsewhere", Spec: "AES_256", Operation: "GenerateDataKey", Field: "KeyId", Value: "key-another", Want: cloud.BadAnswer},
		{Name: "generated half", Spec: "AES_256", Operation: "GenerateDataKey", Field: "Plaintext", Value: "AAAAAAAAAAAAAAAAAAAAAA==", Want: cloud.BadAnswer},
		{Name: "not described", Spec: "AES_256", Operation: "DescribeKey", Field: "KeyMetadata", Value: map[string]any{}, Want: cloud.BadAnswer},
		{Name: "no public key", Spec: "RSA_2048", Operation: "GetPublicKey", Field: "PublicKey", Value: nil, Want: cloud.BadAnswer},
		{Name: "odd public key", Spec: "RSA_2048", Operation: "GetPublicKey", Field: "PublicKey", Value: "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", Want: cloud.BadAnswer},
		{Name: "another version's key", Spec: "RSA_2048", Operation: "GetPublicKey", Field: "KeyVersionId", Value: "other", Want: cloud.BadAnswer},
		{Name: "RSA, another CMK", Spec: "RSA_2048", Operation: "AsymmetricDecrypt", Field: "KeyId", Value: "key-another", Want: cloud.BadAnswer},
		{Name: "RSA, no context", Spec: "RSA_2048", Operation: "AsymmetricDecrypt", Field: "Plaintext", Value: "MDAwMA==", Want: cloud.NotWrapped},
		{Name: "RSA, nothing", Spec: "RSA_2048", Operation: "AsymmetricDecrypt", Field: "Plaintext", Value: nil, Want: cloud.BadAnswer},
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
	if want := map[string]int{"DescribeKey": 1, "GenerateDataKey": 1, "Decrypt": 3}; !maps.Equal(k.Calls(), want) || kms.Count("") != 5 {
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
	client, err := NewClient(cloud.Config{Credentials: cloudtest.Credentials(), Endpoints: map[string]string{"cn-hangzhou": kms.URL}})
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
		{404, "InvalidAccessKeyId.NotFound", cloud.BadCredential},
		{403, "InvalidSecurityToken.Expired", cloud.BadCredential},
		{400, "SignatureDoesNotMatch", cloud.BadCredential},
		{400, "IllegalTimestamp", cloud.BadCredential},
		{400, "Throttling.User", cloud.Throttled},
		{429, "Rejected.Throttling", cloud.Throttled},
		{404, "Forbidden.KeyNotFound", cloud.KeyNotFound},
		{403, "Forbidden.NoPermission", cloud.NoPermission},
		{403, "NoPermission", cloud.NoPermission},
		{403, "Forbidden.InDebt", cloud.NoPermission},
		{400, "InvalidParameter", cloud.NotWrapped},
		{503, "ServiceUnavailableTemporary", cloud.Unavailable},
		{500, "InternalFailure", cloud.Unavailable},
		{400, "Never.Heard", cloud.Refused},
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

func TestSDK(t *testing.T) {
	object := func(ec keyring.EncryptionContext) string {
		b, err := json.Marshal(ec)
		if err != nil {
			t.Fatal(err)
		}
		return url.Values{"EncryptionContext": {string(b)}}.Encode()
	}
	cloudtest.RunSDK(t, testCMK, "EncryptionContext", object, newKeyring)
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

func TestDebugIsRefused(t *testing.T) {
	t.Setenv("DEBUG", "http,sdk")
	if _, err := NewClient(cloud.Config{Credentials: cloudtest.Credentials()}); !errors.Is(err, ErrDebug) {
		t.Errorf("error %v, want ErrDebug", err)
	}
}
