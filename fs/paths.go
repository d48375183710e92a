package fs

import (
	"path"

	"github.com/kmsfs/kmsfs/names"
)

// paths returns the ciphertext and plaintext paths of n for the log, as far as they are known.
func (f *FS) paths(n *node) (sealed, plain string) {
	if n == nil {
		return f.vol.Dir() + "/?", "?"
	}
	if n == f.nodes.root {
		return f.vol.Dir(), "/"
	}
	at, ok := f.nodes.where(n)
	if !ok {
		return f.vol.Dir() + "/(no name)", "(no name)"
	}
	above, abovePlain := f.paths(at.parent)
	disk := "?"
	if f.plain {
		disk = at.name
	} else if d, err := f.dir(at.parent); err == nil {
		defer f.dirs.release(d)
		var e names.Entry
		if e, err = f.names.Name(d.id, at.name); err == nil {
			disk = e.Disk
		}
	}
	return above + "/" + disk, path.Join(abovePlain, at.name)
}
