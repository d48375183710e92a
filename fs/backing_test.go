package fs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestListxattrat compares with the call that goes by a path, whether or not the kernel has the other.
func TestListxattrat(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"bare", "with"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("with", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	// Where no attributes can be stored, both say so.
	stores := unix.Setxattr(filepath.Join(dir, "with"), "user.kmsfs.test", []byte("value"), 0) == nil
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, name := range []string{"bare", "with", "link", ".", "missing", "with/below"} {
		for _, size := range []int{0, 5, 256} {
			got, want := make([]byte, size), make([]byte, size)
			n, err := listxattrat(fd, name, got)
			m, wanted := unix.Llistxattr(filepath.Join(dir, name), want)
			if err != wanted || err == nil && n != m || !bytes.Equal(got, want) {
				t.Errorf("%s, %d bytes: %q, %d, %v, not %q, %d, %v", name, size, got, n, err, want, m, wanted)
			}
			if has := bytes.Contains(got, []byte("user.kmsfs.test\x00")); size == 256 && has != (stores && name == "with") {
				t.Errorf("%s: listed %q", name, got)
			}
		}
	}
	if _, err := listxattrat(fd, "with\x00more", nil); err != unix.EINVAL {
		t.Errorf("a name with a zero byte: %v", err)
	}
}
