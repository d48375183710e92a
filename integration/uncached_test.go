package integration

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReadsCacheOnce reads a large file through a mount, cold. The kernel caches its plaintext, and not its ciphertext as well.
func TestReadsCacheOnce(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			v, plain, want := largeFile(t, kind)
			sealed := v.sealedFiles(t)
			if len(sealed) != 1 {
				t.Fatalf("%d files", len(sealed))
			}
			evict(t, sealed[0])
			f, err := os.OpenFile(plain, wholeRequests(t, plain), 0)
			must(t, err)
			defer f.Close()
			readInPieces(t, f, want, 0, 0)
			cached, uncached := pageCache(t, sealed[0])
			if most := int64(1 << 20); uncached && cached > most { // the header, and what was read ahead of it
				t.Errorf("%d bytes of ciphertext are cached, want at most %d of %d", cached, most, len(want))
			}
		})
	}
}

// TestUncachedReadsBesideWrites reads a file past the page cache below while parts of it are changed, and after they were.
func TestUncachedReadsBesideWrites(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			v, plain, want := largeFile(t, kind)
			f, err := os.OpenFile(plain, os.O_RDWR, 0)
			must(t, err)
			defer func() { f.Close() }()
			rnd := rand.New(rand.NewPCG(3, 4))
			for round := range 12 {
				// Below and above, all is on the disk and nowhere else.
				evict(t, plain)
				evict(t, v.sealedFiles(t)[0])
				off := rnd.IntN(len(want) - 1<<20)
				data := random(rnd, 1+rnd.IntN(1<<20))
				written := make(chan error, 1)
				go func() {
					_, err := f.WriteAt(data, int64(off))
					if err == nil && round%2 == 0 {
						err = f.Sync()
					}
					written <- err
				}()
				readInPieces(t, f, want, off, len(data))
				must(t, <-written)
				copy(want[off:], data)
				readInPieces(t, f, want, 0, 0)
				if round == 6 {
					must(t, f.Close())
					v.remount(t) // the changes are put in place
					f, err = os.OpenFile(plain, os.O_RDWR, 0)
					must(t, err)
				}
			}
		})
	}
}

// largeFile makes a volume on a file system of its own, with one file, which is not open.
func largeFile(t *testing.T, kind string) (v *volume, path string, content []byte) {
	t.Helper()
	v = bareVolume(t)
	v.ok(t, "key", "new", v.cmk)
	must(t, os.Mkdir(v.cipher, 0o755))
	shell(t, v.dir, `truncate -s 400M image; mkfs.`+kind+` -q image; dev=$(losetup --find --show image); mount $dev cipher; losetup --detach $dev`)
	t.Cleanup(func() {
		if v.mounted {
			v.umount(t)
		}
		shell(t, v.dir, `for try in $(seq 600); do ! umount cipher 2>/dev/null || exit 0; sleep 0.1; done; umount cipher`) // the daemon is just ending
	})
	v.ok(t, "init", "--cmk", "local:"+v.cmk, v.cipher)
	path = filepath.Join(v.mount(t), "large")
	content = random(rand.New(rand.NewPCG(1, 2)), 16<<20+12345)
	must(t, os.WriteFile(path, content, 0o600))
	v.remount(t)
	return v, path, content
}

// random returns n random bytes.
func random(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// readInPieces reads f to its end, in requests of 1 MiB, and compares it with want, but for n bytes at off.
func readInPieces(t *testing.T, f *os.File, want []byte, off, n int) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for at := 0; at <= len(want); at += len(buf) {
		m, err := f.ReadAt(buf, int64(at))
		if m != min(len(buf), len(want)-at) || err != nil && err != io.EOF {
			t.Fatalf("%d bytes at %d: %v", m, at, err)
		}
		got, piece := buf[:m], want[at:at+m]
		from, to := min(max(off-at, 0), m), min(max(off+n-at, 0), m)
		if !bytes.Equal(got[:from], piece[:from]) || !bytes.Equal(got[to:], piece[to:]) {
			t.Fatalf("what is read at %d is not what was written", at)
		}
	}
}

// wholeRequests are the flags for opening a file in a mount so that the kernel asks for it by the MiB: none, unless the kernel does not read ahead that much.
func wholeRequests(t *testing.T, path string) (flags int) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	ahead, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if n, _ := strconv.Atoi(strings.TrimSpace(string(ahead))); err == nil && n >= 1024 {
		return 0
	}
	return unix.O_DIRECT // only root may have it do so
}

// evict has the page cache drop what it has of a file.
func evict(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	must(t, f.Sync())
	must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// pageCache returns how many bytes of a file are in the page cache. uncached is whether the file can be read past it, and the kernel tells what it has: since Linux 6.5.
func pageCache(t *testing.T, path string) (n int64, uncached bool) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	var st unix.Statx_t
	must(t, unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st))
	var pages unix.Cachestat_t
	switch err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &pages, 0); err {
	case nil:
		return int64(pages.Cache) * int64(os.Getpagesize()), st.Dio_offset_align > 0
	case unix.ENOSYS, unix.EPERM:
		return 0, false
	default:
		t.Fatal(fmt.Errorf("cachestat: %w", err))
		return 0, false
	}
}
