package cloudtest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// RunSDK wraps and unwraps as the vendor's encryption SDK does. param is the parameter that binds an encryption context; says is what a request has of
// it for one that is not empty, nil where the SDK gives the KMS none.
func RunSDK(t *testing.T, uri, param string, says func(ec keyring.EncryptionContext) string, make func(t *testing.T, url string) *cloud.Keyring) {
	binds := says != nil
	large := keyring.EncryptionContext{}
	for i := range 2 * keyring.MaxContextEntries { // kmsfs's own bounds do not hold here
		large[fmt.Sprint("k", i)] = "v"
	}
	for _, spec := range []string{"AES_256", "SM4"} {
		for _, ec := range []keyring.EncryptionContext{nil, {"a": "1", "路": "x&y=<z>"}, large} {
			for _, size := range []int{16, 32} {
				kms := NewKMS(t, uri, spec)
				k := make(t, kms.URL).SDK(size, ec)
				dk, edks, err := keyring.GenerateDataKey(t.Context(), k, size, nil)
				if err != nil || len(dk) != size || len(edks) != 1 || edks[0].CMK != uri || k.CMK() != uri {
					t.Fatalf("%s: generated %d bytes, %d EDKs, %v", spec, len(dk), len(edks), err)
				}
				again, err := k.EncryptDataKey(t.Context(), dk, nil)
				if err != nil {
					t.Fatal(err)
				}
				// What another CMK has wrapped is not asked for, and one that fails does not keep from the next.
				list := []keyring.EncryptedDataKey{{CMK: "acs:kms:r:a:key/k", Wrapped: []byte("x")}, {CMK: uri, Wrapped: []byte("nothing that is wrapped")}, again[0]}
				for _, edks := range [][]keyring.EncryptedDataKey{edks, again, list} {
					if got, err := k.DecryptDataKey(t.Context(), edks, nil); err != nil || !bytes.Equal(got, dk) {
						t.Errorf("%s: %v", spec, err)
					}
				}
				if _, err := k.DecryptDataKey(t.Context(), list[:1], nil); !errors.Is(err, keyring.ErrNoMatch) {
					t.Errorf("of another CMK: %v", err)
				}
				_, err = make(t, kms.URL).SDK(size, keyring.EncryptionContext{"a": "2"}).DecryptDataKey(t.Context(), edks, nil)
				if binds != errors.Is(err, keyring.ErrDenied) {
					t.Errorf("%s: another context: %v", spec, err)
				}
				for _, r := range kms.Requests() {
					if operation := strings.ToLower(r.Operation); strings.HasPrefix(operation, "describe") || strings.HasPrefix(operation, "decrypt") {
						continue // without a context, or with the other one
					}
					want := binds && len(ec) > 0
					if strings.Contains(r.Body, param) != want || want && !strings.Contains(r.Body, says(ec)) {
						t.Errorf("%s: %s says %s", spec, r.Operation, r.Body)
					}
				}
			}
		}
	}
	kms := NewKMS(t, uri, "RSA_2048")
	if _, err := make(t, kms.URL).SDK(32, nil).EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil); !errors.Is(err, cloud.ErrAsymmetric) {
		t.Errorf("an RSA CMK: %v", err)
	}
}
