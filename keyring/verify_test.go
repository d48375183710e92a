package keyring_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/keyring/keyringtest"
)

// TestDecryptVerified goes on to the next EDK when a CMK gives back another key than it wrapped.
func TestDecryptVerified(t *testing.T) {
	a, b := keyringtest.NewFake("fake:a"), keyringtest.NewFake("fake:b")
	right, wrong := keyring.NewDataKey(32), keyring.NewDataKey(32)
	lie, err := a.EncryptDataKey(t.Context(), wrong, nil)
	if err != nil {
		t.Fatal(err)
	}
	truth, err := b.EncryptDataKey(t.Context(), right, nil)
	if err != nil {
		t.Fatal(err)
	}
	no := errors.New("not the one")
	verify := func(dk keyring.DataKey) error {
		if bytes.Equal(dk, right) {
			return nil
		}
		return no
	}
	both := append(lie, truth...)
	two := failover.New([]failover.CMK{a, b}, failover.Options{})
	if dk, err := keyring.DecryptVerified(t.Context(), two, both, nil, verify); err != nil || !bytes.Equal(dk, right) {
		t.Errorf("the second: %v", err)
	}
	if _, err := keyring.DecryptVerified(t.Context(), two, lie, nil, verify); !errors.Is(err, no) {
		t.Errorf("only a lie: %v", err)
	}
	if _, err := keyring.DecryptVerified(t.Context(), a, truth, nil, verify); !errors.Is(err, keyring.ErrNoMatch) {
		t.Errorf("of another CMK: %v", err)
	}
}
