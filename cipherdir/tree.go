package cipherdir

import (
	"context"
	"os"
	"path"

	"github.com/kmsfs/kmsfs/volume"
)

// EachFile calls fn for every name of a regular file in a volume's tree, with the directory that it is in and its path, until fn returns an error or ctx is done.
// Directories that cannot be opened or listed go to bad.
func EachFile(ctx context.Context, v *volume.Volume, fn func(dir *os.File, name, path string) error, bad func(path string, err error)) error {
	root, err := OpenDir(v.RootFd(), ".")
	if err != nil {
		return err
	}
	var stopped error
	var below func(d *os.File, at string) error
	below = func(d *os.File, at string) error {
		defer d.Close()
		err := Each(d, func(e os.DirEntry) error {
			here := path.Join(at, e.Name())
			switch {
			case ctx.Err() != nil:
				stopped = ctx.Err()
			case at == "" && !v.InTree(e.Name()):
			case e.IsDir():
				sub, err := OpenDir(int(d.Fd()), e.Name())
				if err != nil {
					bad(here, err)
					return nil
				}
				return below(sub, here)
			case e.Type().IsRegular():
				stopped = fn(d, e.Name(), here)
			}
			return stopped
		})
		if err != nil && stopped == nil {
			bad(path.Join(at, "."), err)
			return nil
		}
		return stopped
	}
	return below(root, "")
}
