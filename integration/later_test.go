package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

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
		must(t, unix.Fadvise(int(files[i].Fd()), 0, 0, unix.FADV_DONTNEED)) // the kernel drops what it has of the content
		b := make([]byte, len(content(w.name)))
		if _, err := files[i].ReadAt(b, 0); err != nil || string(b) != content(w.name) {
			t.Errorf("%s: it differs, %v", w.name, err)
		}
	}
	eventually(t, "what was read is open below, and nothing else", func() bool { return openBelow(t, pid, v.cipher) == len(ways) }) // the kernel does not wait for the end of a close
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

// TestNamesChangeUnderReaders replaces, removes, links and exchanges small files while others open them and have the kernel drop what it has of them: whoever has opened a
// file reads what was in it then, and is told its attributes.
func TestNamesChangeUnderReaders(t *testing.T) {
	const changes, names = 600, 5
	plain := newVolume(t).mount(t)
	path := func(rnd *rand.Rand) string { return filepath.Join(plain, fmt.Sprint("f", rnd.IntN(names))) }
	var version, read atomic.Int64
	var changers, readers sync.WaitGroup
	done := make(chan struct{})
	for i := range 2 {
		changers.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			own := filepath.Join(plain, fmt.Sprint("own", i))
			for n := 0; n < changes || read.Load() == 0; n++ {
				name := path(rnd)
				switch rnd.IntN(5) { // some of it fails: there may be no such file
				case 0, 1:
					v := version.Add(1)
					_ = os.Remove(own)
					must(t, os.WriteFile(own, bytes.Repeat(fmt.Appendf(nil, "%07d\n", v), int(1+v*37%1000)), 0o644))
					must(t, os.Rename(own, name))
				case 2:
					_ = os.Remove(name)
				case 3:
					_ = os.Remove(own)
					_ = os.Link(name, own)
					_ = os.Remove(name)
					_ = os.Rename(own, path(rnd))
				case 4:
					_ = unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, path(rnd), unix.RENAME_EXCHANGE)
				}
			}
		})
	}
	for i := range 4 {
		readers.Go(func() {
			rnd := rand.New(rand.NewPCG(2, uint64(i)))
			for {
				select {
				case <-done:
					return
				default:
				}
				f, err := os.Open(path(rnd))
				if err != nil {
					continue
				}
				var first []byte
				for range 3 {
					st, err := f.Stat()
					if err != nil {
						t.Error(err)
						break
					}
					b := make([]byte, st.Size())
					if _, err := f.ReadAt(b, 0); err != nil || len(b) < 8 || !bytes.Equal(b, bytes.Repeat(b[:8], len(b)/8)) || first != nil && !bytes.Equal(b, first) {
						t.Errorf("read %d bytes that begin with %.8q, after %d with %.8q: %v", len(b), b, len(first), first, err)
					}
					first = b
					read.Add(1)
					_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
				}
				f.Close()
			}
		})
	}
	changers.Wait()
	close(done)
	readers.Wait()
}
