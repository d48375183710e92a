package local

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/keyringtest"
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
	if k.id != made.id || !bytes.Equal(k.key(), made.key()) {
		t.Error("Open returns another CMK than Generate")
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
	if err := errors.Join(os.WriteFile(path, []byte("hello\n"), 0o600), os.Chmod(path, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrFormat) { // nobody shall close a file that is no CMK to others
		t.Errorf("something else, open to others: %v", err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(fifo); !errors.Is(err, ErrFormat) {
		t.Errorf("a FIFO: %v", err)
	}
	if _, err := Open(path + "-missing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestConformance(t *testing.T) {
	keyringtest.Run(t, func(t *testing.T) keyring.Keyring { return generate(t) })
}

func generate(t *testing.T) *Keyring {
	t.Helper()
	k, err := Generate(filepath.Join(t.TempDir(), "cmk"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestGenerate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cmk")
	k, err := Generate(path)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("kmsfs-local-cmk-1 %x %x\n", k.id[:], k.key()); string(before) != want {
		t.Error("the CMK file is not the line of docs/format.md section 4.5")
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, error %v, want 0600", st.Mode(), err)
	}
	if _, err := Generate(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second Generate: %v, want ErrExist", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("a second Generate changed the file (error %v)", err)
	}
	if _, err := Generate(filepath.Join(t.TempDir(), "no", "cmk")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v, want ErrNotExist", err)
	}
	if generate(t).id == k.id {
		t.Error("two CMKs have one ID")
	}
}

func TestHides(t *testing.T) {
	k := generate(t)
	type outer struct{ inner Keyring }
	decimal := strings.Trim(fmt.Sprint(k.key()), "[]")
	for _, v := range []any{k, *k, outer{*k}, &outer{*k}, []*Keyring{k}, map[string]any{"k": k}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d"} {
			got := strings.ToLower(fmt.Sprintf(verb, v))
			for _, secret := range []string{string(k.key()), hex.EncodeToString(k.key()), hex.EncodeToString(k.key())[:12], decimal} {
				if strings.Contains(got, secret) {
					t.Errorf("%s of %T prints the key", verb, v)
				}
			}
		}
	}
	if k.String() != k.CMK() || fmt.Sprint(k) != k.CMK() {
		t.Errorf("prints as %v, want %s", k, k.CMK())
	}
}

// TestExample unwraps the EDK of the worked header in docs/format.md section 11.
func TestExample(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cmk")
	line := "kmsfs-local-cmk-1 808182838485868788898a8b8c8d8e8f a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf\n"
	if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("../../header/testdata/example.kmsfs")
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := bytes.Cut(example, []byte(k.CMK()+"\x00\x50"))
	if !found {
		t.Fatalf("no EDK of %s", k.CMK())
	}
	edk := keyring.EncryptedDataKey{CMK: k.CMK(), Wrapped: after[:80]}
	dk, err := k.DecryptDataKey(t.Context(), []keyring.EncryptedDataKey{edk}, keyring.EncryptionContext{"project": "demo"})
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range dk {
		if int(b) != i || len(dk) != 32 {
			t.Fatalf("data key %x, want 00 to 1f", []byte(dk))
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("kmsfs-local-cmk-1 808182838485868788898a8b8c8d8e8f a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf\n"))
	f.Add([]byte("kmsfs-local-cmk-1  "))
	f.Fuzz(func(t *testing.T, line []byte) {
		k, ok := parse(line)
		if !ok {
			return
		}
		again := fmt.Sprintf("kmsfs-local-cmk-1 %x %x", k.id[:], k.key())
		if !strings.EqualFold(again, strings.TrimSuffix(string(line), "\n")) {
			t.Fatal("parsed as something else")
		}
	})
}
