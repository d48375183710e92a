package fs

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// A backing is the descriptor of a ciphertext file as a [blockcrypt.Backing]. Interrupted calls are repeated.
type backing struct{ fd int }

// again repeats a system call that a signal interrupted.
func again(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// ReadAt implements [io.ReaderAt].
func (b backing) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pread(b.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, err
		case m == 0:
			return n, io.EOF
		default:
			n += m
		}
	}
	return n, nil
}

// WriteAt implements [io.WriterAt].
func (b backing) WriteAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pwrite(b.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, err
		case m == 0:
			return n, io.ErrShortWrite
		default:
			n += m
		}
	}
	return n, nil
}

// Truncate changes the size of the ciphertext.
func (b backing) Truncate(size int64) error {
	return again(func() error { return unix.Ftruncate(b.fd, size) })
}

// Size returns the size of the ciphertext.
func (b backing) Size() (int64, error) {
	var st unix.Stat_t
	err := unix.Fstat(b.fd, &st)
	return st.Size, err
}

// PunchHole zeroes a range and frees its space; where the backing file system cannot free, it writes zeros.
func (b backing) PunchHole(off, n int64) error {
	err := again(func() error {
		return unix.Fallocate(b.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	if err != unix.EOPNOTSUPP {
		return err
	}
	zeros := make([]byte, min(n, maxRequest))
	for n > 0 {
		m, err := b.WriteAt(zeros[:min(n, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(m), n-int64(m)
	}
	return nil
}

// Preallocate reserves space, without a change of size.
func (b backing) Preallocate(off, n int64) error {
	return again(func() error { return unix.Fallocate(b.fd, unix.FALLOC_FL_KEEP_SIZE, off, n) })
}

// SeekData returns the next offset that may hold data.
func (b backing) SeekData(off int64) (int64, error) {
	at, err := unix.Seek(b.fd, off, unix.SEEK_DATA)
	switch err {
	case nil:
		return at, nil
	case unix.ENXIO:
		return 0, io.EOF
	}
	return off, nil // cannot tell: all of it may be data
}

// procPath is a path to what is called name in the open directory fd, or to the open file fd itself if name is empty, for
// system calls that take neither descriptors nor flags.
func procPath(fd int, name string) string {
	if name == "" {
		return fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
}

// chmodat changes the mode of an entry, not following a symbolic link, on kernels before 6.6 too.
func chmodat(fd int, disk string, mode uint32) error {
	err := unix.Fchmodat(fd, disk, mode, unix.AT_SYMLINK_NOFOLLOW)
	if err != unix.EOPNOTSUPP && err != unix.ENOSYS {
		return err
	}
	entry, err := unix.Openat(fd, disk, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(entry)
	var st unix.Stat_t
	if err := unix.Fstat(entry, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return unix.Chmod(procPath(entry, ""), mode)
}
