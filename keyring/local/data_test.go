package local

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

func TestData(t *testing.T) {
	k, err := Generate(filepath.Join(t.TempDir(), "cmk"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := Generate(filepath.Join(t.TempDir(), "cmk"))
	if err != nil {
		t.Fatal(err)
	}
	ec := keyring.EncryptionContext{"app": "web"}
	for _, size := range []int{1, 32, keyring.MaxData} {
		plain := bytes.Repeat([]byte{7}, size)
		sealed, err := k.EncryptData(t.Context(), plain, ec)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := k.DecryptData(t.Context(), sealed, ec); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: the same: %t, error %v", size, bytes.Equal(got, plain), err)
		}
		for i := range sealed {
			changed := bytes.Clone(sealed)
			changed[i] ^= 1
			_, err1 := k.DecryptData(t.Context(), changed, ec)
			_, err2 := k.DecryptData(t.Context(), sealed[:i], ec)
			if !errors.Is(err1, keyring.ErrDenied) || !errors.Is(err2, keyring.ErrDenied) {
				t.Fatalf("byte %d changed: %v; cut there: %v; want ErrDenied", i, err1, err2)
			}
		}
		if _, err := other.DecryptData(t.Context(), sealed, ec); !errors.Is(err, keyring.ErrDenied) {
			t.Errorf("another CMK: %v, want ErrDenied", err)
		}
		if _, err := k.DecryptData(t.Context(), sealed, nil); !errors.Is(err, keyring.ErrDenied) {
			t.Errorf("another context: %v, want ErrDenied", err)
		}
	}
	// Neither is taken for the other.
	dk := keyring.NewDataKey(32)
	edks, err := k.EncryptDataKey(t.Context(), dk, ec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.DecryptData(t.Context(), edks[0].Wrapped, ec); !errors.Is(err, keyring.ErrDenied) {
		t.Errorf("a wrapped data key as data: %v, want ErrDenied", err)
	}
	sealed, err := k.EncryptData(t.Context(), dk, ec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.DecryptDataKey(t.Context(), []keyring.EncryptedDataKey{{CMK: k.CMK(), Wrapped: sealed}}, ec); !errors.Is(err, keyring.ErrDenied) {
		t.Errorf("data as a wrapped data key: %v, want ErrDenied", err)
	}
}
