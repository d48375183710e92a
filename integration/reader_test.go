package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// treeList describes a tree: types, modes, sizes, times, targets, content, attributes and hard links.
const treeList = `find . -mindepth 1 -type f -printf '%P f %m %s %n %T@\n' | sort; find . -mindepth 1 ! -type f -printf '%P %y %m %l %T@\n' | sort
	find . -type f -exec md5sum {} + | sort -k 2; find . -mindepth 1 ! -type p -print0 | sort -z | xargs -0 getfattr -hd`

// read decrypts a volume with the reader that was written from docs/format.md, and describes what it gives.
func read(t *testing.T, cipher, cmk string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	if msg, err := exec.Command("/usr/bin/python3", "testdata/reader.py", cipher, cmk, out).CombinedOutput(); err != nil {
		t.Fatalf("reader.py: %v\n%s", err, msg)
	}
	return shell(t, out, treeList)
}

// TestReaderRefuses shows that the reader authenticates what it reads.
func TestReaderRefuses(t *testing.T) {
	v, sealed, _ := target(t)
	good, err := os.ReadFile(sealed)
	must(t, err)
	for _, at := range []int{30, 100, 240, prologue + 100, prologue + 2*slot + 5, len(good) - 1} {
		b := bytes.Clone(good)
		b[at] ^= 1
		must(t, os.WriteFile(sealed, b, 0o644))
		if out, err := exec.Command("/usr/bin/python3", "testdata/reader.py", v.cipher, v.cmk, filepath.Join(t.TempDir(), "out")).CombinedOutput(); err == nil {
			t.Errorf("byte %d changed: %s", at, out)
		}
	}
}

// TestReader decrypts volumes with a reader that knows nothing but docs/format.md.
func TestReader(t *testing.T) {
	for name, args := range map[string][]string{
		"AES256":         nil,
		"AES128":         {"--algorithm", "aes-128-gcm", "--segment-size", "8192", "--context", "tenant=a", "--context", "zone=b"},
		"SM4":            {"--algorithm", "sm4-128-gcm", "--segment-size", "65536"},
		"PlaintextNames": {"--plaintext-names"},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, args...)
			plain := v.mount(t)
			variety(t, plain)
			want := shell(t, plain, treeList)
			v.umount(t)
			if got := read(t, v.cipher, v.cmk); got != want {
				t.Errorf("read\n%s\nwant\n%s", got, want)
			}
		})
	}
}
