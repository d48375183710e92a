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
	inner, outer := filepath.Join(p.dir, "d/e"), filepath.Join(p.dir, "d")
	for _, dir := range []string{inner, outer} {
		if err := os.Chmod(dir, 0); err != nil {
			t.Fatal(err)
		}
	}
	p.replayAsNobody("d", "d/e", "d/e/a")
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

// replayAsNobody opens and closes the journal as somebody whom permissions keep out, unlike root, and who owns the directory, and what is named in it.
func (p *volume) replayAsNobody(names ...string) {
	p.t.Helper()
	root, meta := openDir(p.t, p.dir), openDir(p.t, p.dir+"/.kmsfs")
	defer unix.Close(root)
	defer unix.Close(meta)
	if os.Geteuid() == 0 { // be somebody else in this thread
		const nobody = 65534
		for _, name := range append([]string{"", ".kmsfs", ".kmsfs/journal.0", ".kmsfs/journal.1", ".kmsfs/epochs"}, names...) {
			if err := os.Chown(filepath.Join(p.dir, name), nobody, nobody); err != nil {
				p.t.Fatal(err)
			}
		}
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_, _ = unix.SetfsuidRetUid(nobody)
		defer unix.SetfsuidRetUid(0)
	}
	j, err := Open(root, meta, Options{})
	if err != nil {
		p.t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		p.t.Fatal(err)
	}
}
