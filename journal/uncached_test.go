package journal

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// within reads as blockcrypt does, from a buffer that begins anywhere.
func within(t *testing.T, f *File, off int64, n, skew int) []byte {
	t.Helper()
	buf := make([]byte, n+3*uncachedAlign+skew)[skew:]
	p, err := f.ReadWithin(buf, off, n)
	if err != nil && err != io.EOF || err == nil && len(p) < n {
		t.Fatalf("%d of %d bytes at %d: %v", len(p), n, off, err)
	}
	return p
}

// cachedPages counts the pages that the page cache has of the file; ok is false where the kernel does not tell.
func cachedPages(f *File) (n uint64, ok bool) {
	var pages unix.Cachestat_t
	err := unix.Cachestat(uint(f.fd), &unix.CachestatRange{}, &pages, 0)
	return pages.Cache, err == nil
}

// takesUncached reports whether the file at path can be read past the page cache.
func takesUncached(t *testing.T, f *File, path string) bool {
	t.Helper()
	var st unix.Statx_t
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		t.Fatal(err)
	}
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_DIOALIGN, &st); err != nil {
		t.Fatal(err)
	}
	_, ok := cachedPages(f)
	return ok && fs.Type != unix.OVERLAYFS_SUPER_MAGIC && st.Dio_offset_align > 0 && st.Dio_offset_align <= 4096 && st.Dio_mem_align <= 4096
}

// evict has the page cache drop what it has of the file.
func evict(t *testing.T, f *File) {
	t.Helper()
	if err := errors.Join(unix.Fsync(f.fd), unix.Fadvise(f.fd, 0, 0, unix.FADV_DONTNEED)); err != nil {
		t.Fatal(err)
	}
}

// TestReadWithin compares reads with what the file has to be, while some of it is in place, in memory, cached, dirty or cut off.
func TestReadWithin(t *testing.T) {
	p, _ := newPlaceOn(t)
	rnd := rand.New(rand.NewPCG(1, 1))
	f := p.file("a")
	want := make([]byte, 3<<20)
	for i := range want {
		want[i] = byte(rnd.Uint32())
	}
	change := func(off, n int) {
		if end := off + n; end > len(want) {
			want = append(want, make([]byte, end-len(want))...)
		}
		for i := range n {
			want[off+i] = byte(rnd.Uint32())
		}
		f.Begin()
		_, err := f.WriteAt(want[off:off+n], int64(off))
		f.End()
		if err != nil {
			t.Fatal(err)
		}
	}
	place := func() {
		if err := errors.Join(f.Sync(false), p.j.Checkpoint()); err != nil {
			t.Fatal(err)
		}
	}
	change(0, len(want))
	place()
	past := 0
	for step := range 200 {
		switch rnd.IntN(8) {
		case 0:
			change(rnd.IntN(len(want)), 1+rnd.IntN(9000))
		case 1:
			n := len(want) + rnd.IntN(10000) - 5000
			want = append(want[:min(n, len(want)):min(n, len(want))], make([]byte, max(n-len(want), 0))...)
			p.cut(f, int64(n))
		case 2:
			change(len(want), 1+rnd.IntN(9000))
		case 3:
			_ = content(t, f)
		case 4:
			evict(t, f)
		case 5:
			place()
		default:
			place()
			evict(t, f)
		}
		off := rnd.IntN(len(want) - uncachedSize)
		n := uncachedSize + rnd.IntN(1<<20)
		if rnd.IntN(4) == 0 {
			off &^= uncachedAlign - 1
		}
		if rnd.IntN(4) == 0 {
			n = len(want) - off // all of the rest
		}
		skew := rnd.IntN(2) * rnd.IntN(uncachedAlign)
		if q := f.readUncached(make([]byte, n+3*uncachedAlign+skew)[skew:], int64(off), n); q != nil {
			past++
			if !bytes.Equal(q, want[off:off+n]) {
				t.Fatalf("step %d: %d bytes at %d past the page cache are not as they were written", step, n, off)
			}
		}
		if got := within(t, f, int64(off), n, skew); !bytes.Equal(got, want[off:min(off+n, len(want))]) {
			t.Fatalf("step %d: %d bytes at %d are not as they were written", step, n, off)
		}
	}
	if takes := takesUncached(t, f, filepath.Join(p.dir, "a")); takes != (past > 0) {
		t.Errorf("%d reads past the page cache; the file system takes them: %v", past, takes)
	}
}

// TestReadWithinCachesNothing reads a file that the page cache has nothing of, and then, when it has all of it, from there.
func TestReadWithinCachesNothing(t *testing.T) {
	p, _ := newPlaceOn(t)
	f := p.file("a")
	p.write(f, 1, 0, 4<<20+5000)
	if !takesUncached(t, f, filepath.Join(p.dir, "a")) {
		if q := f.readUncached(make([]byte, 2<<20), 4136, 1<<20); q != nil {
			t.Error("read past the page cache")
		}
		return
	}
	evict(t, f)
	before, _ := cachedPages(f)
	for off := int64(4136); off < 4<<20; off += 1 << 20 {
		within(t, f, off, 1<<20, 0)
	}
	if after, _ := cachedPages(f); after > before {
		t.Errorf("%d pages cached, %d before", after, before)
	}
	within(t, f, 0, 100, 0) // a small read is cached
	if after, _ := cachedPages(f); after == 0 {
		t.Error("no page cached")
	}
	_ = content(t, f)
	if q := f.readUncached(make([]byte, 2<<20), 4136, 1<<20); q != nil {
		t.Error("what is cached was read from the disk")
	}
	if f.cached.Load() {
		t.Error("given up")
	}
}
