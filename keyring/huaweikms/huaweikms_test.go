package huaweikms

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/cloud/cloudtest"
	"github.com/kmsfs/kmsfs/keyring/keyringtest"
)

const testCMK = "huawei:kms:cn-north-4:0d0466b0b4a94e8f9c0f6a6c1c5b1a2b:key/0d0466b0-f727-4d9c-b35d-f84bb474a37f"

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
		Endpoints:   map[string]string{"cn-north-4": url},
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

func TestTLS(t *testing.T) { cloudtest.RunTLS(t, testCMK, newKeyringOver) }

func TestCalls(t *testing.T) {
	cloudtest.RunCalls(t, testCMK, map[string]int{"describe-key": 1, "create-datakey": 1, "decrypt-datakey": 3}, newKeyring)
}

func TestKnown(t *testing.T) {
	cloudtest.RunKnown(t, testCMK, func(t *testing.T, url string) cloud.KMS { return newClient(t, url, nil) })
}

func TestCodes(t *testing.T) {
	cloudtest.RunCodes(t, testCMK, []cloudtest.Code{
		{Status: 400, Code: "KMS.0209", Want: cloud.KeyDisabled},
		{Status: 400, Code: "KMS.0210", Want: cloud.PendingDeletion},
		{Status: 400, Code: "KMS.0207", Want: cloud.KeyNotFound},
		{Status: 403, Code: "KMS.0306", Want: cloud.NoPermission},
		{Status: 401, Code: "APIGW.0301", Want: cloud.BadCredential},
		{Status: 403, Code: "APIGW.0302", Want: cloud.NoPermission},
		{Status: 429, Code: "APIGW.0308", Want: cloud.Throttled},
		{Status: 400, Code: "KMS.2201", Want: cloud.NotWrapped},
		{Status: 400, Code: "KMS.2203", Want: cloud.NotWrapped},
		{Status: 500, Code: "KMS.0101", Want: cloud.Unavailable},
		{Status: 504, Code: "APIGW.0201", Want: cloud.Unavailable},
		{Status: 400, Code: "KMS.9999", Want: cloud.Refused},
	}, newKeyring)
}

func TestManyGoroutines(t *testing.T) { cloudtest.RunManyGoroutines(t, testCMK, newKeyring) }

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
