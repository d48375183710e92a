package fs

import (
	"path"
)

// paths returns the ciphertext and plaintext paths of n for the log, as far as they are known.
func (f *FS) paths(n *node) (sealed, plain string) {
	disk, plain := f.walkUp(n)
	return path.Join(f.vol.Dir(), disk), plain
}

// diskPath returns the path of n in the ciphertext directory, "" if it has none or none is known.
func (f *FS) diskPath(n *node) string {
	disk, plain := f.walkUp(n)
	if plain == unknownPath {
		return ""
	}
	return disk
}

// unknownPath stands for the path of a file that has no name, or whose name cannot be told.
const unknownPath = "(no name)"

// walkUp returns the paths of n in the ciphertext directory and in the mount.
func (f *FS) walkUp(n *node) (disk, plain string) {
	if n == nil {
		return unknownPath, unknownPath
	}
	if n == f.nodes.root {
		return "", "/"
	}
	at, ok := f.nodes.where(n)
	if !ok {
		return unknownPath, unknownPath
	}
	above, abovePlain := f.walkUp(at.parent)
	d, err := f.dir(at.parent)
	if abovePlain == unknownPath || err != nil {
		return unknownPath, unknownPath
	}
	defer f.dirs.release(d)
	e, err := f.entry(d, at.name)
	if err != nil {
		return unknownPath, unknownPath
	}
	return path.Join(above, e.Disk), path.Join(abovePlain, at.name)
}
