package fs

import (
	"context"
	"errors"
	"runtime/debug"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/names"
	"github.com/kmsfs/kmsfs/volume"
)

// status is the only place where an error becomes an errno. Damage, and whatever is not known, is EIO.
//
// It never says ENOSYS, which the kernel takes for "not implemented, do not ask again": a mount whose first fsync failed
// with it would never sync again.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	errno, plain := err.(syscall.Errno) // as most are
	switch {
	case plain:
	case errors.Is(err, blockcrypt.ErrTooLarge):
		return fuse.Status(syscall.EFBIG)
	case errors.Is(err, blockcrypt.ErrNoData):
		return fuse.Status(syscall.ENXIO)
	case errors.Is(err, names.ErrTooLong):
		return fuse.Status(syscall.ENAMETOOLONG)
	case errors.Is(err, context.Canceled):
		return fuse.EINTR
	case errors.Is(err, volume.ErrNoKey), errors.Is(err, keyring.ErrUnavailable):
		return fuse.EIO // whatever a CMK, or the way to it, said
	case errors.Is(err, keyring.ErrDenied):
		return fuse.EACCES
	case errors.As(err, &errno):
	default:
		return fuse.EIO
	}
	if errno == syscall.ENOSYS {
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	return fuse.Status(errno)
}

// fail is status for errors that concern the content of n: where the errno says less than the error, it is logged with the
// paths of the file.
func (f *FS) fail(n *node, doing string, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	s := status(err)
	var errno syscall.Errno
	if s == fuse.EIO || s == fuse.EACCES && !errors.As(err, &errno) {
		sealed, plain := f.paths(n)
		f.log.Error("cannot "+doing+" file", "ciphertext", sealed, "plaintext", plain, "err", err)
	}
	return s
}

func stack() string { return string(debug.Stack()) }
