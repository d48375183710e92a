package integration

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCreatorAndReaders writes to a file by the handle that created it, past the page cache, while others have it open: what is written is what they read
// next, from the page cache and through a mapping, and what they write is not lost.
func TestCreatorAndReaders(t *testing.T) {
	path := filepath.Join(newVolume(t).mount(t), "f")
	creator, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	must(t, err)
	defer creator.Close()
	const size = 200_000
	want := make([]byte, size)
	_, err = creator.Write(want)
	must(t, err)
	other, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer other.Close()
	mapped, err := unix.Mmap(int(other.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(mapped)
	rnd := rand.New(rand.NewPCG(1, 2))
	got := make([]byte, size)
	check := func(what string) {
		t.Helper()
		if !bytes.Equal(mapped, want) {
			t.Fatalf("after %s: the mapping differs", what)
		}
		if _, err := other.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("after %s: what is read differs, %v", what, err)
		}
	}
	check("the first write")
	for i := range 300 {
		off := rnd.IntN(size)
		p := bytes.Repeat([]byte{byte(i)}, 1+rnd.IntN(min(size-off, 9000)))
		what := fmt.Sprintf("change %d, %d bytes at %d", i, len(p), off)
		switch i % 3 {
		case 0, 1:
			_, err = creator.WriteAt(p, int64(off))
		case 2:
			_, err = other.WriteAt(p, int64(off))
		}
		must(t, err)
		copy(want[off:], p)
		if i%5 == 0 { // the mapping's turn
			mapped[off] = ^want[off]
			want[off] = ^want[off]
		}
		check(what)
	}
	must(t, creator.Truncate(100))
	_, err = creator.WriteAt([]byte("end"), 5000)
	must(t, err)
	want = append(append(append([]byte(nil), want[:100]...), make([]byte, 4900)...), "end"...)
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, want) || !bytes.Equal(mapped[:len(want)], want) {
		t.Errorf("after the file was cut: %d bytes, %v", len(b), err)
	}
}

// TestReadersRaceWithCreator has readers fill the page cache while the creator writes: none is left with an older content when it has written.
func TestReadersRaceWithCreator(t *testing.T) {
	v := newVolume(t)
	path := filepath.Join(v.mount(t), "f")
	creator, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	must(t, err)
	defer creator.Close()
	const size, readers, rounds = 16 << 10, 3, 400
	write := func(b byte) {
		_, err := creator.WriteAt(bytes.Repeat([]byte{b}, size), 0)
		must(t, err)
	}
	write(0)
	var stop atomic.Bool
	var group sync.WaitGroup
	for range readers {
		f, err := os.Open(path)
		must(t, err)
		defer f.Close()
		group.Go(func() {
			for p := make([]byte, size); !stop.Load(); {
				if _, err := f.ReadAt(p, 0); err != nil && err != io.EOF {
					t.Error(err)
					return
				}
				_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // so that the next read asks again
			}
		})
	}
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	for i := range rounds {
		write(byte(i))
		p := make([]byte, size)
		if _, err := f.ReadAt(p, 0); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{byte(i)}, size)) {
			t.Errorf("after write %d, read %d … %d, %v", i, p[0], p[size-1], err)
			break
		}
	}
	stop.Store(true)
	group.Wait()
}
