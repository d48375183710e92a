package manifest

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// openDir opens a directory to list it.
func openDir(parent int, name string) (*os.File, error) {
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// listDir opens a directory and lists it.
func listDir(parent int, name string) (*os.File, []string, error) {
	f, err := openDir(parent, name)
	if err != nil {
		return nil, nil, err
	}
	list, err := f.Readdirnames(-1)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, list, nil
}

// openFile opens a regular file to read it, and leaves its access time alone if it may.
func openFile(parent int, name string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(parent, name, flags|unix.O_NOATIME, 0)
	if err == unix.EPERM {
		fd, err = unix.Openat(parent, name, flags, 0)
	}
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func readlink(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	return string(buf[:max(n, 0)]), os.NewSyscallError("readlink", err)
}

// procPath is a path to an entry of an open directory, for the system calls that take no descriptor.
func procPath(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// attribute reads something whose size is not known: the value of an extended attribute, or the list of them.
func attribute(get func(dst []byte) (int, error)) ([]byte, error) {
	for size := 1 << 10; ; size *= 8 {
		buf := make([]byte, size)
		n, err := get(buf)
		if err == nil {
			return buf[:n], nil
		}
		if err != unix.ERANGE || size > 1<<16 { // the kernel's own bound is 64 KiB
			return nil, os.NewSyscallError("getxattr", err)
		}
	}
}

// seekData returns the next offset at or after off that may hold data, size if there is none before it.
func seekData(f *os.File, off, size int64) (int64, error) {
	at, err := f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return off, nil // this file system does not tell
	}
	return at, err
}

// readFull reads exactly len(p) bytes.
func readFull(f *os.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n < len(p) && (err == nil || err == io.EOF) {
		return fmt.Errorf("%w: it has become shorter while it was read", ErrUnsound)
	}
	if n == len(p) {
		return nil
	}
	return err
}
