package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAttributesRemembered shows that what is remembered of attributes that are not there ends when they are set, inherited, or taken away.
func TestAttributesRemembered(t *testing.T) {
	v := newVolume(t)
	shell(t, v.mount(t), `mkdir -p d e; echo x > old; echo x > capable`)
	plain := v.remount(t)
	shell(t, plain, `absent() { if getfattr -n user.a $1 2>/dev/null; then exit 1; fi; }
	for f in old d/new; do
		echo x >> $f
		absent $f; absent $f; test -z "$(getfattr -d -m - $f)"
		setfattr -n user.a -v 1 $f; test "$(getfattr --only-values -n user.a $f)" = 1; test "$(getfattr -d -m - $f | grep -c user.a)" = 1
		setfattr -x user.a $f; absent $f; test -z "$(getfattr -d -m - $f)"
	done`)
	// A change of content takes file capabilities away, a change of owner does, too.
	const capability = `setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 `
	gone := func(name string) {
		t.Helper()
		if _, err := unix.Lgetxattr(filepath.Join(plain, name), "security.capability", make([]byte, 100)); err != unix.ENODATA {
			t.Errorf("the capability of %s is still there: %v", name, err)
		}
	}
	for _, change := range []string{"echo y >> capable", "truncate -s 1 capable", "chown 5:5 capable", "exec 3>>capable; echo y >&3; " + capability + "capable; echo y >&3"} {
		shell(t, plain, `echo z >> capable; `+capability+`capable; getfattr -n security.capability capable >/dev/null; `+change)
		gone("capable")
	}
	// ACLs: 0x02000000 is the version; user::rwx, user:1234:rw-, group::r-x, mask::rwx, other::r-x follow.
	const acl = `0x0200000001000700ffffffff02000600d204000004000500ffffffff10000700ffffffff20000500ffffffff`
	shell(t, plain, `cd e; touch before; setfattr -n system.posix_acl_default -v `+acl+` .; touch after; mkdir below; touch below/deep`)
	for name, want := range map[string]error{"before": unix.ENODATA, "after": nil, "below": nil, "below/deep": nil} {
		if _, err := unix.Lgetxattr(filepath.Join(plain, "e", name), "system.posix_acl_access", make([]byte, 100)); err != want {
			t.Errorf("ACL of e/%s: %v, want %v", name, err, want)
		}
	}
	// Labels that are not there are not supported; those that are can be read.
	if _, err := unix.Lgetxattr(filepath.Join(plain, "old"), "security.selinux", make([]byte, 100)); err != unix.EOPNOTSUPP {
		t.Errorf("a label that is not there: %v", err)
	}
	shell(t, plain, `setfattr -n security.selinux -v label old; test "$(getfattr --only-values -n security.selinux old)" = label`)
}

// TestCapabilityAfterMappedWrite gives a file a capability after it was written to through a mapping. It stays when the kernel sends what was written.
func TestCapabilityAfterMappedWrite(t *testing.T) {
	path := filepath.Join(newVolume(t).mount(t), "f")
	must(t, os.WriteFile(path, make([]byte, 8192), 0o755))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(mapped)
	mapped[5000] = 1
	capability := []byte{0, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	must(t, unix.Setxattr(path, "security.capability", capability, 0))
	must(t, unix.Msync(mapped, unix.MS_SYNC))
	if _, err := unix.Getxattr(path, "security.capability", make([]byte, 100)); err != nil {
		t.Errorf("the capability has gone: %v", err)
	}
}

// TestSmallFilesWhileOpened shows that the content which the kernel gets when a small file is opened never takes the place of what a writer writes
// at the same time, and is cut with the file.
func TestSmallFilesWhileOpened(t *testing.T) {
	const files, size = 200, 64 << 10
	v := newVolume(t)
	plain := v.mount(t)
	name := func(i int) string { return filepath.Join(plain, fmt.Sprint("f", i)) }
	old, young := bytes.Repeat([]byte("old "), size/4), bytes.Repeat([]byte("new "), size/4)
	for i := range files {
		must(t, os.WriteFile(name(i), old, 0o644))
	}
	v.remount(t)
	for i := range files {
		w, err := os.OpenFile(name(i), os.O_RDWR, 0)
		must(t, err)
		var reader sync.WaitGroup
		reader.Go(func() {
			if _, err := os.ReadFile(name(i)); err != nil {
				t.Error(err)
			}
		})
		want := young
		for off := 0; off < size; off += 4096 {
			_, err := w.WriteAt(young[off:off+4096], int64(off))
			must(t, err)
		}
		if i%3 == 0 {
			want = young[:5000]
			must(t, os.Truncate(name(i), 5000))
		}
		reader.Wait()
		if i%2 == 0 {
			must(t, w.Close())
		} else {
			defer w.Close()
		}
		for range 2 {
			b, err := os.ReadFile(name(i))
			must(t, err)
			if !bytes.Equal(b, want) {
				t.Fatalf("file %d does not hold what was written last, but %d bytes beginning with %q", i, len(b), b[:8])
			}
		}
	}
}

// TestListingsSideBySide lists one directory through several descriptors at once, while files come and go: each finds all that stay.
func TestListingsSideBySide(t *testing.T) {
	const files = 2000
	v := newVolume(t)
	dir := filepath.Join(v.mount(t), "d")
	must(t, os.Mkdir(dir, 0o755))
	for i := range files {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("stays", i)), nil, 0o644))
	}
	dir = filepath.Join(v.remount(t), "d")
	stop := make(chan struct{})
	var changes, readers sync.WaitGroup
	changes.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			passing := filepath.Join(dir, fmt.Sprint("passes", i))
			if os.WriteFile(passing, nil, 0o644) != nil || os.Remove(passing) != nil {
				t.Errorf("cannot make and remove %s", passing)
				return
			}
		}
	})
	for range 4 {
		readers.Go(func() {
			for range 5 {
				d, err := os.Open(dir)
				if err != nil {
					t.Error(err)
					return
				}
				seen := make(map[string]int)
				for {
					names, err := d.Readdirnames(100)
					for _, n := range names {
						seen[n]++
					}
					if err != nil {
						break
					}
				}
				d.Close()
				for i := range files {
					if n := seen[fmt.Sprint("stays", i)]; n != 1 {
						t.Errorf("stays%d is listed %d times", i, n)
						return
					}
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	changes.Wait()
	// What was removed before a listing begins is not in it.
	must(t, os.WriteFile(filepath.Join(dir, "last"), nil, 0o644))
	d, err := os.Open(dir)
	must(t, err)
	defer d.Close()
	_, err = d.Readdirnames(10)
	must(t, err)
	must(t, os.Remove(filepath.Join(dir, "last")))
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != files {
		t.Errorf("%d entries, want %d", len(entries), files)
	}
}

// TestListingsLetGo begins to list many directories and ends none of the listings: few are kept, and each can be gone on with.
func TestListingsLetGo(t *testing.T) {
	const dirs, files, few = 90, 50, 80
	v := newVolume(t)
	plain := v.mount(t)
	name := func(i int) string { return filepath.Join(plain, fmt.Sprint("d", i)) }
	for i := range dirs {
		must(t, os.Mkdir(name(i), 0o755))
		for j := range files {
			must(t, os.WriteFile(filepath.Join(name(i), fmt.Sprint("f", j)), nil, 0o644))
		}
	}
	v.remount(t)
	var open []int
	buf := make([]byte, 300) // the kernel asks for a page's worth, which is not all of a directory
	next := func(fd int) int {
		t.Helper()
		n, err := unix.Getdents(fd, buf)
		must(t, err)
		_, _, names := unix.ParseDirent(buf[:n], -1, nil) // without "." and ".."
		return len(names)
	}
	seen := make([]int, dirs)
	for i := range dirs {
		fd, err := unix.Open(name(i), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		open = append(open, fd)
		seen[i] = next(fd)
	}
	if n := v.listing(t); n == 0 || n > few {
		t.Errorf("%d directories are open for listing", n)
	}
	for i, fd := range open {
		for n := next(fd); n > 0; n = next(fd) {
			seen[i] += n
		}
		if seen[i] != files {
			t.Errorf("%d entries, want %d", seen[i], files)
		}
	}
	if n := v.listing(t); n > 10 {
		t.Errorf("%d directories are open for listing after the end", n)
	}
}

// listing returns how many directories the daemon has open for more than *at calls.
func (v *volume) listing(t testing.TB) (n int) {
	t.Helper()
	var st struct{ PID int }
	must(t, json.Unmarshal([]byte(v.ok(t, "status", "--json", v.plain)), &st))
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", st.PID))
	must(t, err)
	if len(fds) == 0 {
		t.Fatal("no descriptors")
	}
	for _, fd := range fds {
		path, err := os.Readlink(fd)
		info, _ := os.ReadFile(strings.Replace(fd, "/fd/", "/fdinfo/", 1))
		var pos, flags int64
		fmt.Sscanf(string(info), "pos: %d\nflags: %o", &pos, &flags)
		if err == nil && strings.HasPrefix(path, v.cipher) && flags&unix.O_DIRECTORY != 0 && flags&unix.O_PATH == 0 {
			n++
		}
	}
	return n
}

// TestKilledAfterClose shows that a close promises what was changed after a sync, whatever the change.
func TestKilledAfterClose(t *testing.T) {
	c, plain := mountedChild(t)
	path := filepath.Join(plain, "f")
	f, err := os.Create(path)
	must(t, err)
	want := bytes.Repeat([]byte("0123456789abcdef"), 2000)
	_, err = f.Write(want)
	must(t, err)
	must(t, f.Sync())
	for _, change := range []func() error{ // of bytes that are durable
		func() error { _, err := f.WriteAt([]byte("changed"), 5000); return err },
		func() error { _, err := f.WriteAt([]byte("appended"), int64(len(want))); return err },
		func() error { return f.Truncate(30000) },
		func() error {
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 8192)
		},
		func() error { _, err := f.WriteAt([]byte("end"), 40000); return err },
	} {
		must(t, change())
	}
	want, err = os.ReadFile(path)
	must(t, err)
	must(t, f.Close())
	must(t, c.Kill())
	_, err = c.Mount()
	must(t, err)
	got, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(got, want) || len(got) != 40003 {
		t.Errorf("%d bytes after the kill, %d before", len(got), len(want))
	}
}
