package alikms

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/cloud/cloudtest"
	"github.com/kmsfs/kmsfs/keyring/keyringtest"
)

const testCMK = "acs:kms:cn-hangzhou:1234567890123456:key/key-hzz1234567890abcdef"

func newKeyring(t *testing.T, url string) *cloud.Keyring { return newKeyringOver(t, url, nil) }

func newKeyringOver(t *testing.T, url string, transport http.RoundTripper) *cloud.Keyring {
	t.Helper()
	return cloud.NewKeyring(newClient(t, url, transport), cloudtest.CMK(t, testCMK), nil)
}

func newClient(t *testing.T, url string, transport http.RoundTripper) *Client {
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
	return client
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

func TestTLS(t *testing.T) { cloudtest.RunTLS(t, testCMK, newKeyringOver) }

func TestCalls(t *testing.T) {
	cloudtest.RunCalls(t, testCMK, map[string]int{"DescribeKey": 1, "GenerateDataKey": 1, "Decrypt": 3}, newKeyring)
}

func TestKnown(t *testing.T) {
	cloudtest.RunKnown(t, testCMK, func(t *testing.T, url string) cloud.KMS { return newClient(t, url, nil) })
}

func TestCodes(t *testing.T) {
	cloudtest.RunCodes(t, testCMK, []cloudtest.Code{
		{Status: 404, Code: "InvalidAccessKeyId.NotFound", Want: cloud.BadCredential},
		{Status: 403, Code: "InvalidSecurityToken.Expired", Want: cloud.BadCredential},
		{Status: 400, Code: "SignatureDoesNotMatch", Want: cloud.BadCredential},
		{Status: 400, Code: "IllegalTimestamp", Want: cloud.BadCredential},
		{Status: 400, Code: "Throttling.User", Want: cloud.Throttled},
		{Status: 429, Code: "Rejected.Throttling", Want: cloud.Throttled},
		{Status: 404, Code: "Forbidden.KeyNotFound", Want: cloud.KeyNotFound},
		{Status: 403, Code: "Forbidden.NoPermission", Want: cloud.NoPermission},
		{Status: 403, Code: "NoPermission", Want: cloud.NoPermission},
		{Status: 403, Code: "Forbidden.InDebt", Want: cloud.NoPermission},
		{Status: 400, Code: "InvalidParameter", Want: cloud.NotWrapped},
		{Status: 503, Code: "ServiceUnavailableTemporary", Want: cloud.Unavailable},
		{Status: 500, Code: "InternalFailure", Want: cloud.Unavailable},
		{Status: 400, Code: "Never.Heard", Want: cloud.Refused},
	}, newKeyring)
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

func TestManyGoroutines(t *testing.T) { cloudtest.RunManyGoroutines(t, testCMK, newKeyring) }

func TestDebugIsRefused(t *testing.T) {
	t.Setenv("DEBUG", "http,sdk")
	if _, err := NewClient(cloud.Config{Credentials: cloudtest.Credentials()}); !errors.Is(err, ErrDebug) {
		t.Errorf("error %v, want ErrDebug", err)
	}
}
