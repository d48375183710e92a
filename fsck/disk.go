package fsck

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// An inode names a file, whatever its names.
type inode struct{ dev, ino uint64 }

func isRegular(st *unix.Stat_t) bool   { return st.Mode&unix.S_IFMT == unix.S_IFREG }
func isDirectory(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

// dataSize is how many bytes of a file have to be read: those of holes have not.
func dataSize(st *unix.Stat_t) int64 { return min(st.Size, st.Blocks*512) }

// openDir opens a directory to list it.
func openDir(parent int, name string) (*os.File, error) {
	fd, err := again(func() (int, error) {
		return unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openFile opens a regular file for reading, or for writing too, and leaves its access time alone if it may.
func openFile(parent int, name string, access int) (*os.File, error) {
	flags := access | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := again(func() (int, error) { return unix.Openat(parent, name, flags|unix.O_NOATIME, 0) })
	if err == unix.EPERM {
		fd, err = again(func() (int, error) { return unix.Openat(parent, name, flags, 0) })
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// again repeats a system call that a signal interrupted.
func again(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

func lstat(dir *os.File, name string) (*unix.Stat_t, error) {
	st := new(unix.Stat_t)
	return st, unix.Fstatat(int(dir.Fd()), name, st, unix.AT_SYMLINK_NOFOLLOW)
}

func readlink(dir *os.File, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := again(func() (int, error) { return unix.Readlinkat(int(dir.Fd()), name, buf) })
	return string(buf[:max(n, 0)]), err
}

// eachName calls fn for every name in a directory, from its start, until fn returns an error.
func eachName(dir *os.File, fn func(name string) error) error {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for {
		list, err := dir.Readdirnames(1024)
		for _, name := range list {
			if err := fn(name); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// whole reads something whose size is not known: an attribute or a list of them.
func whole(get func(dst []byte) (int, error)) ([]byte, error) {
	for size := 512; ; size *= 4 {
		buf := make([]byte, size)
		n, err := get(buf)
		if err == nil {
			return buf[:n], nil
		}
		if err != unix.ERANGE || size > 1<<17 {
			return nil, err
		}
	}
}

// procPath is a path to an entry of an open directory for the system calls that take no descriptor.
func procPath(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// A sealedFile is an open ciphertext file whose holes are known, and whose reads are counted.
type sealedFile struct {
	*os.File
	read func(n int)
}

// ReadAt implements [io.ReaderAt].
func (s sealedFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.File.ReadAt(p, off)
	s.read(n)
	return n, err
}

// SeekData returns the next offset that may hold data, [io.EOF] if there is none.
func (s sealedFile) SeekData(off int64) (int64, error) {
	at, err := s.File.Seek(off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, io.EOF
	}
	return at, err
}
