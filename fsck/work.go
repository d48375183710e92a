package fsck

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/volume"
)

// newFiles looks for files that were being sealed anew (docs/format.md section 10.4). Nothing refers to them: they were not given names yet.
func (c *checker) newFiles() {
	at := place{sealed: filepath.Join(c.v.Dir(), volume.MetaDir, volume.WorkDir)}
	dir, err := cipherdir.OpenDir(c.v.MetaFd(), volume.WorkDir)
	if errors.Is(err, unix.ENOENT) {
		return
	} else if err != nil {
		c.unreadable(at, err)
		return
	}
	defer dir.Close()
	err = cipherdir.Each(dir, func(e os.DirEntry) error {
		name := e.Name()
		f := place{sealed: filepath.Join(at.sealed, name)}.fault(Leftover, "a re-encryption that was cut off has left it; the next one, or the next mount, removes it")
		f.Harmless = true
		c.fault(f, func() error { return unix.Unlinkat(int(dir.Fd()), name, 0) })
		return nil
	})
	if err != nil {
		c.unreadable(at, err)
	}
}
