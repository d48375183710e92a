package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/names"
	"github.com/kmsfs/kmsfs/volume"
)

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		err  error
		want fuse.Status
	}{
		{nil, fuse.OK},
		{syscall.ENOSPC, fuse.Status(syscall.ENOSPC)},
		{fmt.Errorf("write: %w", syscall.ENOSPC), fuse.Status(syscall.ENOSPC)},
		{&os.PathError{Op: "open", Path: "x", Err: syscall.EACCES}, fuse.EACCES},
		{syscall.ENOSYS, fuse.Status(syscall.EOPNOTSUPP)},
		{fmt.Errorf("fsync: %w", syscall.ENOSYS), fuse.Status(syscall.EOPNOTSUPP)},
		{fmt.Errorf("read: %w", blockcrypt.ErrAuth), fuse.EIO},
		{blockcrypt.ErrSize, fuse.EIO},
		{blockcrypt.ErrTooLarge, fuse.Status(syscall.EFBIG)},
		{blockcrypt.ErrNoData, fuse.Status(syscall.ENXIO)},
		{header.ErrAuth, fuse.EIO},
		{names.ErrAuth, fuse.EIO},
		{names.ErrTooLong, fuse.Status(syscall.ENAMETOOLONG)},
		{keyring.ErrNoMatch, fuse.EIO},
		{fmt.Errorf("unwrap: %w", keyring.ErrDenied), fuse.EACCES},
		{fmt.Errorf("%w: %w", volume.ErrNoKey, keyring.ErrDenied), fuse.EIO},
		{fmt.Errorf("%w: %w", keyring.ErrUnavailable, syscall.ECONNREFUSED), fuse.EIO},
		{context.Canceled, fuse.EINTR},
		{io.EOF, fuse.EIO},
		{io.ErrUnexpectedEOF, fuse.EIO},
		{errors.New("something else"), fuse.EIO},
	} {
		if got := status(c.err); got != c.want {
			t.Errorf("status(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}
