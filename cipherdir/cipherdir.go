// Package cipherdir opens what is in a ciphertext directory, by descriptors and through no symbolic link, so that nothing that an attacker has put
// there leads elsewhere.
package cipherdir

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// OpenDir opens a directory to list it. The error is a [unix.Errno].
func OpenDir(parent int, name string) (*os.File, error) {
	fd, err := again(func() (int, error) {
		return unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// OpenFile opens a file with the given access mode, and leaves its access time alone if it may. Where there is a FIFO or a device it waits for nobody. The error
// is a [unix.Errno], ELOOP for a symbolic link.
func OpenFile(parent int, name string, access int) (File, error) {
	fd, err := OpenFd(parent, name, access)
	if err != nil {
		return File{}, err
	}
	return File{os.NewFile(uintptr(fd), name)}, nil
}

// OpenFd is OpenFile for those who want the descriptor.
func OpenFd(parent int, name string, access int) (fd int, err error) {
	flags := access | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err = again(func() (int, error) { return unix.Openat(parent, name, flags|unix.O_NOATIME, 0) })
	if err == unix.EPERM { // somebody else's
		fd, err = again(func() (int, error) { return unix.Openat(parent, name, flags, 0) })
	}
	return fd, err
}

// CreateFile makes a file for reading and writing that only its owner may open. The error is a [unix.Errno].
func CreateFile(parent int, name string) (File, error) {
	fd, err := again(func() (int, error) {
		return unix.Openat(parent, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	})
	if err != nil {
		return File{}, err
	}
	return File{os.NewFile(uintptr(fd), name)}, nil
}

// again repeats a system call that a signal interrupted.
func again(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

// A File is an open ciphertext file, which blockcrypt reads and writes.
type File struct{ *os.File }

// Size returns the size in bytes.
func (f File) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// SeekData returns the next offset that may hold data, [io.EOF] if there is none.
func (f File) SeekData(off int64) (int64, error) {
	at, err := f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, io.EOF
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return off, nil // this file system does not tell
	}
	return at, err
}

// Readlink returns the target of a symbolic link. The error is a [unix.Errno].
func Readlink(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := again(func() (int, error) { return unix.Readlinkat(dir, name, buf) })
	return string(buf[:max(n, 0)]), err
}

// Path is a path to an entry of an open directory for the system calls that take no descriptor.
func Path(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// Whole returns all that get reads, an extended attribute or the list of them, whose size is not known.
func Whole(get func(dst []byte) (int, error)) ([]byte, error) {
	for size := 512; ; size *= 4 {
		buf := make([]byte, size)
		n, err := get(buf)
		if err == nil {
			return buf[:n], nil
		}
		if err != unix.ERANGE || size > 1<<17 { // the kernel's own bound is 64 KiB
			return nil, err
		}
	}
}

// Each calls fn for every entry of an open directory, from its start, until fn returns an error.
func Each(dir *os.File, fn func(os.DirEntry) error) error {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for {
		entries, err := dir.ReadDir(1024)
		for _, e := range entries {
			if err := fn(e); err != nil {
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
