package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// uncache has the kernel drop what it has of the content of an open file.
func uncache(t *testing.T, f *os.File) {
	t.Helper()
	must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// openBelow is how many files below cipher a process has open, but for those of the volume itself.
func openBelow(t *testing.T, pid int, cipher string) (n int) {
	t.Helper()
	fds := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(fds)
	must(t, err)
	for _, e := range entries {
		path, err := os.Readlink(filepath.Join(fds, e.Name()))
		if err != nil || !strings.HasPrefix(path, cipher+"/") || strings.HasPrefix(path, cipher+"/.kmsfs") {
			continue
		}
		if st, err := os.Stat(filepath.Join(fds, e.Name())); err == nil && st.Mode().IsRegular() {
			n++
		}
	}
	return n
}

// TestSmallFilesOpenedAgain opens small files that the kernel has all of: nothing is opened below, until it has dropped something. Whatever becomes of the names meanwhile,
// readers go on with what they have opened.
func TestSmallFilesOpenedAgain(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	pid := v.status(t).PID
	ways := []struct{ name, script string }{
		{"kept", "true"},
		{"removed", "rm removed"},
		{"replaced", "echo new > other && mv other replaced"},
		{"renamed", "mv renamed moved && echo new > renamed"},
		{"linked", "ln linked link && rm linked && echo new > linked"},
		{"second", "ln second link2 && rm second link2"},
		{"exchanged", "echo new > other && mv --exchange exchanged other 2>/dev/null || mv -f other exchanged"},
	}
	content := func(name string) string { return strings.Repeat(name+"\n", 3000) }
	for _, w := range ways {
		must(t, os.WriteFile(filepath.Join(plain, w.name), []byte(content(w.name)), 0o644))
		if b, err := os.ReadFile(filepath.Join(plain, w.name)); err != nil || string(b) != content(w.name) {
			t.Fatalf("%s: %d bytes, %v", w.name, len(b), err)
		}
	}
	var files []*os.File
	closeAll := func() {
		for _, f := range files {
			f.Close()
		}
		files = nil
	}
	defer func() { closeAll() }()
	eventually(t, "files are open and read, and nothing is below", func() bool {
		closeAll() // a machine that is short of memory may have had the kernel drop something
		eventually(t, "everything is closed", func() bool { return v.status(t).OpenFiles == 0 })
		for _, w := range ways {
			f, err := os.Open(filepath.Join(plain, w.name))
			must(t, err)
			files = append(files, f)
			b := make([]byte, len(content(w.name)))
			if _, err := f.ReadAt(b, 0); err != nil || string(b) != content(w.name) {
				t.Errorf("%s: it differs, %v", w.name, err)
			}
		}
		return v.status(t).OpenFiles == len(ways) && openBelow(t, pid, v.cipher) == 0
	})
	for i, w := range ways {
		shell(t, plain, w.script)
		uncache(t, files[i])
		b := make([]byte, len(content(w.name)))
		if _, err := files[i].ReadAt(b, 0); err != nil || string(b) != content(w.name) {
			t.Errorf("%s: it differs, %v", w.name, err)
		}
	}
	if n := openBelow(t, pid, v.cipher); n != len(ways) {
		t.Errorf("%d files are open below after all were read", n)
	}
	mapped, err := unix.Mmap(int(files[0].Fd()), 0, len(content("kept")), unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(plain, "kept"), bytes.Repeat([]byte("changed"), 3000), 0o644))
	if !bytes.HasPrefix(mapped, []byte("changedchanged")) {
		t.Error("a mapping does not show what was written")
	}
	must(t, unix.Munmap(mapped))
	closeAll()
	eventually(t, "everything is closed again", func() bool { return v.status(t).OpenFiles <= 2 }) // see TestReplacedMeanwhile
}
