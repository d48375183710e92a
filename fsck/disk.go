package fsck

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/cipherdir"
)

// An inode names a file, whatever its names.
type inode struct{ dev, ino uint64 }

func lstat(dir *os.File, name string) (*unix.Stat_t, error) {
	st := new(unix.Stat_t)
	return st, unix.Fstatat(int(dir.Fd()), name, st, unix.AT_SYMLINK_NOFOLLOW)
}

func readlink(dir *os.File, name string) (string, error) {
	return cipherdir.Readlink(int(dir.Fd()), name)
}

// A sealedFile is an open ciphertext file whose reads are counted.
type sealedFile struct {
	cipherdir.File
	read func(n int)
}

// ReadAt implements [io.ReaderAt].
func (s sealedFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.File.ReadAt(p, off)
	s.read(n)
	return n, err
}
