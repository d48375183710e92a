package integration

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSeekDataBesideMapping writes to holes through a mapping and looks for data and holes by another descriptor, as cp and tar do, before anything has asked for a sync: what one can read there must not pass
// for a hole. It starts no process, since the end of one that has inherited a descriptor would have the kernel write the pages.
func TestSeekDataBesideMapping(t *testing.T) {
	const size, page = 1 << 20, 4096
	for name, create := range map[string]func(path string) *os.File{
		"Created": func(path string) *os.File {
			f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			must(t, err)
			must(t, f.Truncate(size))
			return f
		},
		"Opened": func(path string) *os.File {
			must(t, os.WriteFile(path, nil, 0o600))
			must(t, os.Truncate(path, size))
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			return f
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(newVolume(t).mount(t), "f")
			f := create(path)
			defer f.Close()
			mapped, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			must(t, err)
			defer func() { must(t, unix.Munmap(mapped)) }()
			other, err := os.Open(path)
			must(t, err)
			defer other.Close()
			seek := func(whence int, from int64) int64 {
				t.Helper()
				at, err := unix.Seek(int(other.Fd()), from, whence)
				must(t, err)
				return at
			}
			// The kernel may write more than the page that was changed, of which the rest is data then, too.
			dataBy := func(from, limit int64) {
				t.Helper()
				if at := seek(unix.SEEK_DATA, from); at > limit {
					t.Errorf("from %d on there is data at %d, want %d", from, at, limit)
				}
			}
			dataUpTo := func(from, limit int64) {
				t.Helper()
				if at := seek(unix.SEEK_HOLE, from); at < limit {
					t.Errorf("from %d on there is a hole at %d, want none before %d", from, at, limit)
				}
			}
			if data, hole := seek(unix.SEEK_DATA, 0), seek(unix.SEEK_HOLE, 0); data != size-page || hole != 0 {
				t.Fatalf("it is not a hole but for its last segment: data at %d, hole at %d", data, hole)
			}
			mapped[50*page+7] = 1
			dataBy(10, 50*page)
			for i := range 20 {
				mapped[(60+i)*page] = 2
			}
			dataUpTo(60*page, 80*page)
			dataBy(51*page, 60*page)
			mapped[80*page], mapped[90*page] = 3, 4
			dataUpTo(70*page, 81*page)
			dataBy(81*page, 90*page)
			dataUpTo(90*page, 91*page)
			for _, at := range []int{50*page + 7, 60 * page, 79 * page, 80 * page, 90 * page} {
				b := make([]byte, 1)
				if _, err := other.ReadAt(b, int64(at)); err != nil || b[0] != mapped[at] || b[0] == 0 {
					t.Errorf("at %d there is %d, %v, and %d in memory", at, b[0], err, mapped[at])
				}
			}
		})
	}
}
