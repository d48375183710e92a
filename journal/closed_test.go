package journal

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReplayClosedDirectory replays the change of a file in a directory that its owner, who mounts the volume, has closed to himself, one in another.
func TestReplayClosedDirectory(t *testing.T) {
	p := newPlace(t)
	if err := os.MkdirAll(filepath.Join(p.dir, "d/e"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.durable("d/e/a")
	p.kill()
	const nobody = 65534
	own := func(uid int) {
		for _, name := range []string{"", ".kmsfs", ".kmsfs/journal.0", ".kmsfs/journal.1", ".kmsfs/epochs", "d", "d/e", "d/e/a"} {
			if err := os.Chown(filepath.Join(p.dir, name), uid, uid); err != nil {
				t.Fatal(err)
			}
		}
	}
	inner, outer := filepath.Join(p.dir, "d/e"), filepath.Join(p.dir, "d")
	for _, dir := range []string{inner, outer} {
		if err := os.Chmod(dir, 0); err != nil {
			t.Fatal(err)
		}
	}
	root, meta := openDir(t, p.dir), openDir(t, p.dir+"/.kmsfs")
	defer unix.Close(root)
	defer unix.Close(meta)
	if os.Geteuid() == 0 { // root may enter anything: be somebody else in this thread
		own(nobody)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_, _ = unix.SetfsuidRetUid(nobody)
		defer unix.SetfsuidRetUid(0)
	}
	j, err := Open(root, meta, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	_, _ = unix.SetfsuidRetUid(os.Geteuid())
	for _, dir := range []string{outer, inner} {
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0 {
			t.Errorf("%s has mode %v, %v", dir, st.Mode(), err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	p.changed("d/e/a")
}
