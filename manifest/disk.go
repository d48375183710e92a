package manifest

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/cipherdir"
)

// listDir opens a directory and lists it.
func listDir(parent int, name string) (*os.File, []string, error) {
	f, err := cipherdir.OpenDir(parent, name)
	if err != nil {
		return nil, nil, os.NewSyscallError("open", err)
	}
	list, err := f.Readdirnames(-1)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, list, nil
}

// openFile opens a regular file to read it.
func openFile(parent int, name string) (cipherdir.File, error) {
	f, err := cipherdir.OpenFile(parent, name, unix.O_RDONLY)
	return f, os.NewSyscallError("open", err)
}

func readlink(dir int, name string) (string, error) {
	target, err := cipherdir.Readlink(dir, name)
	return target, os.NewSyscallError("readlink", err)
}

// attribute reads the value of an extended attribute, or the list of them.
func attribute(get func(dst []byte) (int, error)) ([]byte, error) {
	b, err := cipherdir.Whole(get)
	return b, os.NewSyscallError("getxattr", err)
}

// readFull reads exactly len(p) bytes.
func readFull(f io.ReaderAt, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n < len(p) && (err == nil || err == io.EOF) {
		return fmt.Errorf("%w: it has become shorter while it was read", ErrUnsound)
	}
	if n == len(p) {
		return nil
	}
	return err
}
