package alikms

import (
	"testing"

	"github.com/kmsfs/kmsfs/integration/emulator"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/cloud/cloudtest"
)

func newManager(t *testing.T, url string) cloudtest.Manager { return newClient(t, url, nil) }

func TestData(t *testing.T) { cloudtest.RunData(t, testCMK, "Plaintext", newKeyring) }

func TestSecrets(t *testing.T) {
	cloudtest.RunSecrets(t, testCMK, cloud.Secret{Region: "cn-hangzhou"}, cloud.SecretExists, newManager)
}

// TestStages reads a version by its stage.
func TestStages(t *testing.T) {
	kms := cloudtest.NewKMS(t, testCMK, "AES_256")
	m := newManager(t, kms.URL)
	for _, value := range []string{"first", "second"} {
		kms.PutSecret(emulator.Alibaba, "cn-hangzhou", "", "app/db", []byte(value))
	}
	for stage, want := range map[string]string{"ACSCurrent": "second", "ACSPrevious": "first"} {
		got, err := m.GetSecret(t.Context(), cloud.Secret{URI: "x", Region: "cn-hangzhou", Name: "app/db", Version: stage})
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", stage, got, err)
		}
	}
}
