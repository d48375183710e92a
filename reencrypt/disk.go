package reencrypt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/volume"
)

// errNoFile says that there is no regular file at a path.
var errNoFile = errors.New("not a regular file")

// inVolume reports whether a path is one of the volume's tree.
func inVolume(below string) bool {
	return below != "" && path.Clean("/"+below) == "/"+below && !strings.HasPrefix(below+"/", volume.MetaDir+"/")
}

// openParent opens the directory that a path below root, which may be anybody's, ends in. Each step is a name, and no symbolic link is followed, so that it leads nowhere else.
func openParent(root int, below string) (dir *os.File, name string, err error) {
	if !inVolume(below) {
		return nil, "", fmt.Errorf("%q: not a path in a volume", below)
	}
	if dir, err = cipherdir.OpenDir(root, "."); err != nil {
		return nil, "", err
	}
	for {
		step, rest, more := strings.Cut(below, "/")
		if !more {
			return dir, step, nil
		}
		next, err := cipherdir.OpenDir(int(dir.Fd()), step)
		dir.Close()
		if err != nil {
			return nil, "", err
		}
		dir, below = next, rest
	}
}

// openFile opens a regular file for reading, and leaves its access time alone if it may.
func openFile(root int, below string) (cipherdir.File, *unix.Stat_t, error) {
	dir, name, err := openParent(root, below)
	if err != nil {
		return cipherdir.File{}, nil, err
	}
	defer dir.Close()
	return openFileAt(int(dir.Fd()), name)
}

func openFileAt(dir int, name string) (cipherdir.File, *unix.Stat_t, error) {
	f, err := cipherdir.OpenFile(dir, name, unix.O_RDONLY)
	if err == unix.ELOOP || err == unix.ENXIO {
		err = errNoFile
	}
	if err != nil {
		return f, nil, err
	}
	st := new(unix.Stat_t)
	if err = unix.Fstat(int(f.Fd()), st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errNoFile
	}
	if err != nil {
		f.Close()
		return f, nil, err
	}
	return f, st, nil
}

// isGone reports whether there is nothing at a path, or something on the way to it that is no directory.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// fileID returns the file ID in the header of a file, zeros if there is no such file, or no header.
func fileID(dir *os.File, name string) (id header.ID, err error) {
	f, _, err := openFileAt(int(dir.Fd()), name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, errNoFile) {
		return id, nil
	} else if err != nil {
		return id, err
	}
	defer f.Close()
	head := make([]byte, header.FixedSize)
	if _, err := f.ReadAt(head, 0); err == io.EOF {
		return id, nil
	} else if err != nil {
		return id, err
	}
	return header.FileIDIn(head), nil
}

// syncAll makes durable all that is on the file system of an open directory.
func syncAll(dir *os.File) error {
	for {
		if err := unix.Syncfs(int(dir.Fd())); err != unix.EINTR {
			return os.NewSyscallError("syncfs", err)
		}
	}
}

// walk sends the path of every regular file in the volume's tree.
func (r *run) walk(ctx context.Context, found chan<- string) error {
	return cipherdir.EachFile(ctx, r.v, func(_ *os.File, _, path string) error {
		select {
		case found <- path:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, r.straggler)
}

// size returns how many bytes of ciphertext there are in the volume's tree, as far as that can be told.
func size(ctx context.Context, v *volume.Volume) (total int64) {
	_ = cipherdir.EachFile(ctx, v, func(dir *os.File, name, _ string) error {
		st := new(unix.Stat_t)
		if unix.Fstatat(int(dir.Fd()), name, st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			total += share(st)
		}
		return ctx.Err()
	}, func(string, error) {})
	return total
}

// share is how many bytes of a file, without holes, come to one of its names.
func share(st *unix.Stat_t) int64 { return min(st.Size, st.Blocks*512) / max(int64(st.Nlink), 1) }
