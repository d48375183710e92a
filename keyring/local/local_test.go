package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

func TestKeyring(t *testing.T) {
	ctx, ec := context.Background(), keyring.EncryptionContext{"a": "b"}
	path := filepath.Join(t.TempDir(), "cmk")
	made, err := Generate(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Generate(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second Generate: %v", err)
	}
	k, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if k.id != made.id || *k.key != *made.key {
		t.Error("Open returns another CMK than Generate")
	}
	if s := fmt.Sprintf("%v %+v %#v %s %x", k, k, k, k, k); strings.Contains(s, fmt.Sprintf("%x", k.key)) {
		t.Error("a CMK prints its key")
	}
	for _, size := range []int{16, 32} {
		dk := keyring.NewDataKey(size)
		edks, err := k.EncryptDataKey(ctx, dk, ec)
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.DecryptDataKey(ctx, edks, ec)
		if err != nil || !bytes.Equal(got, dk) {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if _, err := k.DecryptDataKey(ctx, edks, nil); !errors.Is(err, keyring.ErrDenied) {
			t.Errorf("another context: %v", err)
		}
		for i := range edks[0].Wrapped {
			edks[0].Wrapped[i] ^= 1
			if _, err := k.DecryptDataKey(ctx, edks, ec); !errors.Is(err, keyring.ErrDenied) {
				t.Errorf("byte %d flipped: %v", i, err)
			}
			edks[0].Wrapped[i] ^= 1
		}
		other, err := Generate(filepath.Join(t.TempDir(), "other"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.DecryptDataKey(ctx, edks, ec); !errors.Is(err, keyring.ErrNoMatch) {
			t.Errorf("another CMK: %v", err)
		}
		if got, err := keyring.Multi(other, k).DecryptDataKey(ctx, edks, ec); err != nil || !bytes.Equal(got, dk) {
			t.Errorf("Multi: %v", err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cmk")
	if _, err := Generate(path); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o644, 0o640, 0o604, 0o620} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errors.Is(err, ErrMode) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"empty": nil, "cut": good[:60], "long": append(bytes.Clone(good), good...), "other": []byte("hello\n"),
		"hex": bytes.Replace(good, good[20:21], []byte("x"), 1), "huge": make([]byte, 1<<20),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrFormat) {
		t.Errorf("a directory: %v", err)
	}
}
