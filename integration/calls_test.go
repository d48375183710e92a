package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestCallsLikeExt4 makes ten thousand random system calls in a directory of ext4 and in a mounted volume that is stored on the same, and
// compares errno and result of each; then the trees, then the trees after a remount. KMSFS_CALLS and KMSFS_CALLS_SEED choose others.
func TestCallsLikeExt4(t *testing.T) {
	calls, seed := number(t, "KMSFS_CALLS", 10_000), number(t, "KMSFS_CALLS_SEED", 1)
	v := newVolume(t)
	v.mount(t)
	beside := filepath.Join(v.dir, "ext4")
	must(t, os.Mkdir(beside, 0o755))

	defer unix.Umask(unix.Umask(0o027))
	rng := rand.New(rand.NewPCG(uint64(seed), 0))
	sides := []*side{newSide(beside), newSide(v.plain)}
	var history []string
	for i := range calls {
		text, call := randomCall(rng)
		history = append(history, text)
		want, got := call(sides[0]), call(sides[1])
		if got != want {
			t.Fatalf("call %d of seed %d: %s:\next4:  %s\nkmsfs: %s\nbefore:\n%s", i, seed, text, want, got,
				strings.Join(history[max(0, len(history)-60):], "\n"))
		}
	}
	for _, s := range sides {
		s.closeAll()
	}
	const list = `find . -mindepth 1 -printf '%p %y %m %n %U:%G %l\n' | sort; find . -type f -printf '%p %s\n' | sort; find . -type f -print0 | sort -z | xargs -0r md5sum; getfattr -R -h -d -m - . | sort`
	compare := func(when string) {
		if want, got := shell(t, sides[0].dir, list), shell(t, v.plain, list); want != got {
			t.Errorf("%s: ext4:\n%s\nkmsfs:\n%s", when, want, got)
		}
	}
	compare("in the end")
	v.remount(t)
	compare("after a remount")
}

// A side is one of the directories that are compared, with the files that are open in it.
type side struct {
	dir string
	fds [10]int
}

func newSide(dir string) *side {
	s := &side{dir: dir}
	for i := range s.fds {
		s.fds[i] = -1
	}
	return s
}

func (s *side) closeAll() {
	for _, fd := range s.fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// path is the absolute path of a name; Z stands for a run of letters.
func (s *side) path(name string) string { return s.dir + "/" + expand(name) }

// expand writes out names as long as they can be, and longer ones.
func expand(name string) string {
	name = strings.ReplaceAll(name, "Z255", strings.Repeat("z", 255))
	return strings.ReplaceAll(name, "Z256", strings.Repeat("z", 256))
}

// show is an outcome as text.
func show(err error, result ...any) string {
	if err != nil {
		errno, _ := err.(unix.Errno)
		return unix.ErrnoName(errno) + " " + err.Error()
	}
	return fmt.Sprint(result...)
}

// aligned is a buffer that O_DIRECT takes.
func aligned(n int) []byte {
	buf := make([]byte, n+4096)
	skip := (4096 - int(uintptr(unsafe.Pointer(&buf[0]))%4096)) % 4096
	return buf[skip:][:n]
}

// describe is what stat says, times, inode and blocks apart.
func describeStat(st *unix.Stat_t) string {
	size := st.Size
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		size = 0
	}
	return fmt.Sprintf("%o %d links %d:%d size %d rdev %d", st.Mode, st.Nlink, st.Uid, st.Gid, size, st.Rdev)
}

// randomCall makes up a call: as text, and to be run on each side.
func randomCall(rng *rand.Rand) (text string, call func(s *side) string) {
	pick := func(words ...string) string { return words[rng.IntN(len(words))] }
	name := pick("a", "b", "c", "d", "e", "dir", "dir/a", "dir/b", "dir/sub", "dir/sub/x", "Z255", "dir/Z255", "Z255/a", "Z256", "missing/a")
	other := pick("a", "b", "c", "d", "e", "dir", "dir/a", "dir/c", "dir/sub", "dir/sub/y", "Z255", "dir/Z256")
	i := rng.IntN(len(side{}.fds))
	n := []int{0, 1, 100, 4095, 4096, 4097, 20000}[rng.IntN(7)]
	off := int64([]int{0, 1, 4000, 4095, 4096, 8192, 30000, 100000}[rng.IntN(8)])
	fill := byte(1 + rng.IntN(255))
	mode := uint32([]int{0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0, 0o666, 0o777}[rng.IntN(9)])

	switch kind := rng.IntN(110); {
	case kind >= 106:
		return copyCall(rng, i, n, off)
	case kind >= 100:
		return createCall(rng, i, name, off, fill)
	case kind < 16:
		flags := []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR}[rng.IntN(4)] | unix.O_CLOEXEC | unix.O_NONBLOCK
		for _, f := range []int{unix.O_CREAT, unix.O_CREAT, unix.O_EXCL, unix.O_TRUNC, unix.O_APPEND, unix.O_DIRECT, unix.O_SYNC, unix.O_DSYNC, unix.O_NOATIME,
			unix.O_NOFOLLOW, unix.O_DIRECTORY, unix.O_PATH} {
			if rng.IntN(6) == 0 {
				flags |= f
			}
		}
		if rng.IntN(20) == 0 {
			flags = unix.O_TMPFILE | unix.O_RDWR | unix.O_CLOEXEC
		}
		return fmt.Sprintf("fds[%d] = open(%s, %#x, %#o)", i, name, flags, mode), func(s *side) string {
			if s.fds[i] >= 0 {
				unix.Close(s.fds[i])
			}
			// Devices are not opened.
			var st unix.Stat_t
			if unix.Stat(s.path(name), &st) == nil && (st.Mode&unix.S_IFMT == unix.S_IFCHR || st.Mode&unix.S_IFMT == unix.S_IFBLK) {
				s.fds[i] = -1
				return "device"
			}
			var err error
			s.fds[i], err = unix.Open(s.path(name), flags, mode)
			return show(err)
		}
	case kind < 20:
		return fmt.Sprintf("close(fds[%d])", i), func(s *side) string {
			err := unix.Close(s.fds[i])
			s.fds[i] = -1
			return show(err)
		}
	case kind < 30: // read and write at an offset, or at the file's own
		write, own := rng.IntN(2) == 0, rng.IntN(3) == 0
		return fmt.Sprintf("rw(write %v, own %v, fds[%d], %d bytes of %d at %d)", write, own, i, n, fill, off), func(s *side) string {
			size, at := n, off
			buf := make([]byte, size)
			if flags, err := unix.FcntlInt(uintptr(s.fds[i]), unix.F_GETFL, 0); err == nil && flags&unix.O_DIRECT != 0 {
				if own {
					return "direct"
				}
				size, at = (size+4095)&^4095, at&^4095 // what ext4 wants
				buf = aligned(size)
			}
			var m int
			var err error
			switch {
			case write:
				for j := range buf {
					buf[j] = fill + byte(j/100)
				}
				if own {
					m, err = unix.Write(s.fds[i], buf)
				} else {
					m, err = unix.Pwrite(s.fds[i], buf, at)
				}
				return show(err, m)
			case own:
				m, err = unix.Read(s.fds[i], buf)
			default:
				m, err = unix.Pread(s.fds[i], buf, at)
			}
			return show(err, m, sum(buf[:max(m, 0)]))
		}
	case kind < 33:
		whence := rng.IntN(3)
		return fmt.Sprintf("lseek(fds[%d], %d, %d)", i, off, whence), func(s *side) string {
			var st unix.Stat_t
			if unix.Fstat(s.fds[i], &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				return "directory" // offsets are opaque
			}
			at, err := unix.Seek(s.fds[i], off, whence)
			return show(err, at)
		}
	case kind < 37:
		return sparseCall(rng)
	case kind < 42:
		modes := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
			unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE}
		m := modes[rng.IntN(len(modes))]
		return fmt.Sprintf("fallocate(fds[%d], %d, %d, %d)", i, m, off, n), func(s *side) string {
			return show(unix.Fallocate(s.fds[i], m, off, int64(n)))
		}
	case kind < 45:
		if rng.IntN(2) == 0 {
			return fmt.Sprintf("truncate(%s, %d)", name, off), func(s *side) string { return show(unix.Truncate(s.path(name), off)) }
		}
		return fmt.Sprintf("ftruncate(fds[%d], %d)", i, off), func(s *side) string { return show(unix.Ftruncate(s.fds[i], off)) }
	case kind < 49:
		times := []unix.Timespec{{Sec: rng.Int64N(1 << 31), Nsec: rng.Int64N(1e9)}, {Sec: rng.Int64N(1 << 31), Nsec: rng.Int64N(1e9)}}
		if rng.IntN(4) == 0 {
			times[rng.IntN(2)].Nsec = []int64{unix.UTIME_OMIT, unix.UTIME_NOW}[rng.IntN(2)]
		}
		return fmt.Sprintf("utimensat(%s, %v)", name, times), func(s *side) string {
			if err := unix.UtimesNanoAt(unix.AT_FDCWD, s.path(name), times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return show(err)
			}
			var st unix.Stat_t
			err := unix.Lstat(s.path(name), &st)
			var result []any
			for j, got := range []unix.Timespec{st.Atim, st.Mtim} {
				if times[j].Nsec < 1e9 {
					result = append(result, got)
				}
			}
			return show(err, result...)
		}
	case kind < 57:
		return xattrCall(rng, name)
	case kind < 60:
		return fmt.Sprintf("chmod(%s, %#o)", name, mode), func(s *side) string { return show(unix.Chmod(s.path(name), mode)) }
	case kind < 62:
		// FUSE does not tell of a change to no owner and no group, which clears set-ID bits on ext4.
		uid, gid := rng.IntN(2), rng.IntN(3)-1
		return fmt.Sprintf("lchown(%s, %d, %d)", name, uid, gid), func(s *side) string { return show(unix.Lchown(s.path(name), uid, gid)) }
	case kind < 65:
		return fmt.Sprintf("link(%s, %s)", name, other), func(s *side) string { return show(unix.Link(s.path(name), s.path(other))) }
	case kind < 66:
		return fmt.Sprintf("link(fds[%d], %s)", i, name), func(s *side) string {
			return show(unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", s.fds[i]), unix.AT_FDCWD, s.path(name), unix.AT_SYMLINK_FOLLOW))
		}
	case kind < 70:
		return fmt.Sprintf("unlink(%s)", name), func(s *side) string { return show(unix.Unlink(s.path(name))) }
	case kind < 76:
		flags := []uint{0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT, unix.RENAME_NOREPLACE | unix.RENAME_EXCHANGE}[rng.IntN(7)]
		return fmt.Sprintf("renameat2(%s, %s, %d)", name, other, flags), func(s *side) string {
			return show(unix.Renameat2(unix.AT_FDCWD, s.path(name), unix.AT_FDCWD, s.path(other), flags))
		}
	case kind < 80:
		return fmt.Sprintf("mkdir(%s, %#o)", name, mode), func(s *side) string { return show(unix.Mkdir(s.path(name), mode)) }
	case kind < 81:
		return fmt.Sprintf("rmdir(%s)", name), func(s *side) string { return show(unix.Rmdir(s.path(name))) }
	case kind < 84:
		target := pick("a", "dir", "dir/a", "e", "missing", strings.Repeat("t/", 500), strings.Repeat("t/", 2047)+"t", strings.Repeat("t", 4096))
		return fmt.Sprintf("symlink(%.20s of %d, %s)", target, len(target), name), func(s *side) string { return show(unix.Symlink(target, s.path(name))) }
	case kind < 85:
		format := []uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFREG, unix.S_IFCHR, unix.S_IFBLK}[rng.IntN(5)]
		return fmt.Sprintf("mknod(%s, %#o)", name, format|mode), func(s *side) string {
			return show(unix.Mknod(s.path(name), format|mode, int(unix.Mkdev(1, 3))))
		}
	case kind < 89:
		return fmt.Sprintf("lstat(%s)", name), func(s *side) string {
			var st unix.Stat_t
			err := unix.Lstat(s.path(name), &st)
			return show(err, describeStat(&st))
		}
	case kind < 92:
		return fmt.Sprintf("fstat(fds[%d])", i), func(s *side) string {
			var st unix.Stat_t
			err := unix.Fstat(s.fds[i], &st)
			return show(err, describeStat(&st))
		}
	case kind < 93:
		return fmt.Sprintf("readlink(%s)", name), func(s *side) string {
			buf := make([]byte, 4200)
			m, err := unix.Readlink(s.path(name), buf)
			return show(err, sum(buf[:max(m, 0)]))
		}
	case kind < 95:
		return fmt.Sprintf("list(%s)", pick(".", name)), func(s *side) string { return list(s.path(name)) }
	case kind < 96:
		return "statfs", func(s *side) string {
			var st unix.Statfs_t
			err := unix.Statfs(s.dir, &st)
			return show(err, st.Namelen, st.Bsize)
		}
	case kind < 97:
		return fmt.Sprintf("sync(fds[%d])", i), func(s *side) string {
			return show(unix.Fsync(s.fds[i])) + show(unix.Fdatasync(s.fds[i]))
		}
	case kind < 98:
		return lockCall(rng, i)
	}
	return mapCall(rng, i, off)
}

// createCall makes a file anew and opens it for writing only, and writes to it.
func createCall(rng *rand.Rand, i int, name string, off int64, fill byte) (string, func(s *side) string) {
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_CLOEXEC | []int{0, 0, unix.O_APPEND, unix.O_SYNC}[rng.IntN(4)]
	n := []int{0, 10, 5000, 70000, 1<<20 + 4097}[rng.IntN(5)]
	how := []int{0, 0, unix.RWF_APPEND, unix.RWF_DSYNC}[rng.IntN(4)]
	return fmt.Sprintf("fds[%d] = create(%s, %#x), pwritev2(%d bytes of %d, %d, %d)", i, name, flags, n, fill, off, how), func(s *side) string {
		_ = unix.Unlink(s.path(name))
		fd, err := unix.Open(s.path(name), flags, 0o644)
		if err != nil {
			return show(err)
		}
		unix.Close(s.fds[i])
		s.fds[i] = fd
		whole := bytes.Repeat([]byte{fill}, n)
		m, err := unix.Pwritev2(fd, [][]byte{whole[:n/3], whole[n/3:]}, off, how)
		at, _ := unix.Seek(fd, 0, unix.SEEK_CUR)
		return show(err, m, at)
	}
}

// copyCall copies from an open file to another.
func copyCall(rng *rand.Rand, i, n int, off int64) (string, func(s *side) string) {
	from := rng.IntN(len(side{}.fds))
	start := int64([]int{0, 1, 4096, 5000}[rng.IntN(4)])
	send := rng.IntN(2) == 0
	return fmt.Sprintf("copy(send %v, fds[%d] at %d, fds[%d] at %d, %d)", send, from, start, i, off, n), func(s *side) string {
		for _, fd := range []int{s.fds[i], s.fds[from]} {
			var st unix.Stat_t
			if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
				return "no file"
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&(unix.O_DIRECT|unix.O_PATH) != 0 {
				return "direct" // ext4 wants it aligned
			}
		}
		in, out := start, off
		if send {
			_, _ = unix.Seek(s.fds[i], out, unix.SEEK_SET)
			m, err := unix.Sendfile(s.fds[i], s.fds[from], &in, n)
			return show(err, m, in)
		}
		m, err := unix.CopyFileRange(s.fds[from], &in, s.fds[i], &out, n, 0)
		return show(err, m, in, out)
	}
}

// sum stands for bytes in a message.
func sum(b []byte) string {
	h := uint32(2166136261)
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	return fmt.Sprintf("sum %08x", h)
}

func list(path string) string {
	entries, err := os.ReadDir(path)
	if err != nil {
		return show(err.(*os.PathError).Err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "lost+found" {
			names = append(names, e.Name()+e.Type().String())
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// sparseCall writes or punches whole segments of a file and tells where its data and holes are. The last segment is data always.
func sparseCall(rng *rand.Rand) (string, func(s *side) string) {
	const segments, segment = 32, 4096
	at, n := int64(rng.IntN(segments-1)), int64(1+rng.IntN(4))
	n = min(n, segments-1-at)
	write := rng.IntN(2) == 0
	return fmt.Sprintf("sparse(write %v, segments %d+%d)", write, at, n), func(s *side) string {
		fd, err := unix.Open(s.path("sparse"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return show(err)
		}
		defer unix.Close(fd)
		if end, _ := unix.Seek(fd, 0, unix.SEEK_END); end == 0 {
			_, err = unix.Pwrite(fd, bytes.Repeat([]byte{1}, segment), (segments-1)*segment)
		}
		if err == nil && write {
			_, err = unix.Pwrite(fd, bytes.Repeat([]byte{2}, int(n*segment)), at*segment)
		} else if err == nil {
			err = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at*segment, n*segment)
		}
		if err != nil {
			return show(err)
		}
		var found []string
		for off := int64(0); off < segments*segment; {
			data, err := unix.Seek(fd, off, unix.SEEK_DATA)
			if err != nil {
				return show(err)
			}
			if off, err = unix.Seek(fd, data, unix.SEEK_HOLE); err != nil {
				return show(err)
			}
			found = append(found, fmt.Sprintf("%d-%d", data, off))
		}
		_, err = unix.Seek(fd, segments*segment, unix.SEEK_DATA)
		return strings.Join(found, " ") + show(err)
	}
}

func xattrCall(rng *rand.Rand, name string) (string, func(s *side) string) {
	attrs := []string{"user.a", "user.b", "user." + strings.Repeat("n", 250), "trusted.t", "security.s", "user.", "unknown.x", "nodot", "system.x", "user." + strings.Repeat("n", 251)}
	attr := attrs[rng.IntN(len(attrs))]
	value := bytes.Repeat([]byte{byte('a' + rng.IntN(26))}, []int{0, 1, 10, 200}[rng.IntN(4)])
	flags := []int{0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE}[rng.IntN(4)]
	size := []int{0, 5, 300}[rng.IntN(3)]
	switch rng.IntN(5) {
	case 0, 1:
		return fmt.Sprintf("lsetxattr(%s, %.10s, %d bytes, %d)", name, attr, len(value), flags), func(s *side) string {
			return show(unix.Lsetxattr(s.path(name), attr, value, flags))
		}
	case 2:
		return fmt.Sprintf("lgetxattr(%s, %.10s, %d)", name, attr, size), func(s *side) string {
			buf := make([]byte, size)
			n, err := unix.Lgetxattr(s.path(name), attr, buf)
			return show(err, n, string(buf))
		}
	case 3:
		return fmt.Sprintf("lremovexattr(%s, %.10s)", name, attr), func(s *side) string { return show(unix.Lremovexattr(s.path(name), attr)) }
	}
	// The second entry is for user 1, or the mask: struct posix_acl_xattr_header and _entry of linux/posix_acl_xattr.h.
	acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 5, 0, 1, 0, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255}
	kind := []string{"system.posix_acl_access", "system.posix_acl_default"}[rng.IntN(2)]
	if rng.IntN(4) == 0 {
		acl[0] = 9 // no such version
	}
	return fmt.Sprintf("acl and list(%s, %s)", name, kind), func(s *side) string {
		set := show(unix.Lsetxattr(s.path(name), kind, acl, 0))
		buf := make([]byte, 4096)
		n, err := unix.Llistxattr(s.path(name), buf)
		names := strings.Split(string(buf[:max(n, 0)]), "\x00")
		slices.Sort(names)
		return set + show(err, strings.Join(names, " "))
	}
}

func lockCall(rng *rand.Rand, i int) (string, func(s *side) string) {
	how := []int{unix.LOCK_SH, unix.LOCK_EX, unix.LOCK_UN}[rng.IntN(3)]
	if rng.IntN(2) == 0 {
		return fmt.Sprintf("flock(fds[%d], %d)", i, how), func(s *side) string { return show(unix.Flock(s.fds[i], how|unix.LOCK_NB)) }
	}
	kind := []int16{unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK}[rng.IntN(3)]
	command := []int{unix.F_OFD_SETLK, unix.F_OFD_SETLK, unix.F_OFD_GETLK}[rng.IntN(3)]
	start, n := int64(rng.IntN(4)*100), int64(rng.IntN(3)*100)
	return fmt.Sprintf("fcntl(fds[%d], %d, %d, %d+%d)", i, command, kind, start, n), func(s *side) string {
		lock := unix.Flock_t{Type: kind, Start: start, Len: n}
		err := unix.FcntlFlock(uintptr(s.fds[i]), command, &lock)
		return show(err, lock.Type, lock.Start, lock.Len)
	}
}

func mapCall(rng *rand.Rand, i int, off int64) (string, func(s *side) string) {
	prot := []int{unix.PROT_READ, unix.PROT_READ | unix.PROT_WRITE}[rng.IntN(2)]
	fill := byte(rng.IntN(256))
	off &^= 4095
	return fmt.Sprintf("mmap(fds[%d], %d, %d)", i, off, prot), func(s *side) string {
		var st unix.Stat_t
		if unix.Fstat(s.fds[i], &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size <= off {
			return "behind the end"
		}
		m, err := unix.Mmap(s.fds[i], off, 4096, prot, unix.MAP_SHARED)
		if err != nil {
			return show(err)
		}
		defer unix.Munmap(m)
		if prot&unix.PROT_WRITE != 0 {
			m[0] = fill
			err = unix.Msync(m, unix.MS_SYNC)
		}
		return show(err, sum(m))
	}
}
