package keyringtest

import (
	"errors"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

func TestFake(t *testing.T) {
	Run(t, func(*testing.T) keyring.Keyring { return NewFake("fake:a") })
}

func TestFakeCountsAndFails(t *testing.T) {
	f := NewFake("fake:a")
	edks := encrypt(t, f, keyring.NewDataKey(32), nil)
	down := errors.New("down")
	f.Fail(down)
	if _, err := f.EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil); !errors.Is(err, down) {
		t.Errorf("encrypt: %v, want %v", err, down)
	}
	if _, err := f.DecryptDataKey(t.Context(), edks, nil); !errors.Is(err, down) {
		t.Errorf("decrypt: %v, want %v", err, down)
	}
	f.Fail(nil)
	if _, err := f.DecryptDataKey(t.Context(), edks, nil); err != nil {
		t.Errorf("decrypt: %v", err)
	}
	if _, err := f.DecryptDataKey(t.Context(), nil, nil); !errors.Is(err, keyring.ErrNoMatch) {
		t.Errorf("decrypt nothing: %v, want ErrNoMatch", err)
	}
	if f.Encrypts() != 2 || f.Decrypts() != 2 {
		t.Errorf("%d encrypts and %d decrypts, want 2 and 2", f.Encrypts(), f.Decrypts())
	}
	if _, err := NewFake("fake:a").DecryptDataKey(t.Context(), edks, nil); !errors.Is(err, keyring.ErrDenied) {
		t.Errorf("decrypt under another CMK of the same name: %v, want ErrDenied", err)
	}
}
