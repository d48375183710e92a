package journal

import (
	"io"

	"golang.org/x/sys/unix"
)

// A disk is the descriptor of a file. Interrupted calls are repeated.
type disk struct {
	kernel kernel
	fd     int
}

// again repeats a system call that a signal interrupted.
func again(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// ReadAt implements [io.ReaderAt].
func (d disk) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pread(d.fd, p[n:], off+int64(n))
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
func (d disk) WriteAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := d.kernel.pwrite(d.fd, p[n:], off+int64(n))
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

// Truncate changes the size.
func (d disk) Truncate(size int64) error {
	return again(func() error { return d.kernel.ftruncate(d.fd, size) })
}

// Size returns the size in bytes.
func (d disk) Size() (int64, error) {
	var st unix.Stat_t
	err := unix.Fstat(d.fd, &st)
	return st.Size, err
}

// PunchHole zeroes a range and frees its space; where the file system cannot free, it writes zeros.
func (d disk) PunchHole(off, n int64) error {
	err := again(func() error {
		return d.kernel.fallocate(d.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	if err != unix.EOPNOTSUPP {
		return err
	}
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		m, err := d.WriteAt(zeros[:min(n, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(m), n-int64(m)
	}
	return nil
}

// Preallocate reserves space, without a change of size.
func (d disk) Preallocate(off, n int64) error {
	return again(func() error { return d.kernel.fallocate(d.fd, unix.FALLOC_FL_KEEP_SIZE, off, n) })
}

// setModified sets the modification time. An error is none for whoever changes the content: only the owner may set a time other than now.
func (d disk) setModified(t unix.Timespec) { _ = d.kernel.setModified(d.fd, t) }

// SeekData returns the next offset that may hold data, io.EOF if there is none.
func (d disk) SeekData(off int64) (int64, error) {
	at, err := unix.Seek(d.fd, off, unix.SEEK_DATA)
	switch err {
	case nil:
		return at, nil
	case unix.ENXIO:
		return 0, io.EOF
	}
	return off, nil // cannot tell: all of it may be data
}

// writeOut waits until all dirty pages have been written. It does not make them durable: what the file system commits afterwards does, because
// its commit flushes the device first.
func (d disk) writeOut() error {
	err := again(func() error { return d.kernel.writeOut(d.fd) })
	if err == unix.ESPIPE || err == unix.ENOSYS || err == unix.EOPNOTSUPP {
		return d.syncData()
	}
	return err
}

// sync makes content and attributes durable.
func (d disk) sync() error { return again(func() error { return d.kernel.fsync(d.fd) }) }

// syncData makes the content durable.
func (d disk) syncData() error { return again(func() error { return d.kernel.fdatasync(d.fd) }) }

// syncAll makes durable all that is on the file system.
func (d disk) syncAll() error { return again(func() error { return d.kernel.syncfs(d.fd) }) }

// unmark takes the mark off.
func (d disk) unmark() error {
	err := again(func() error { return d.kernel.removeMark(d.fd) })
	if err == unix.ENODATA {
		return nil
	}
	return err
}
