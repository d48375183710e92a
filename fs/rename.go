package fs

import (
	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kmsfs/kmsfs/names"
)

// Rename implements [fuse.RawFileSystem], with RENAME_NOREPLACE, RENAME_EXCHANGE and RENAME_WHITEOUT. A directory keeps
// its ID, so nothing in it is sealed anew.
func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	f.renames.Lock()
	defer f.renames.Unlock()
	return status(f.inDir(f.nodes.get(in.NodeId), oldName, func(from *dir, oldEntry names.Entry) error {
		return f.inDir(f.nodes.get(in.Newdir), newName, func(to *dir, newEntry names.Entry) error {
			return f.rename(
				place{from, oldEntry, link{from.node, oldName}},
				place{to, newEntry, link{to.node, newName}}, uint(in.Flags))
		})
	}))
}

// A place is one side of a rename.
type place struct {
	dir   *dir
	entry names.Entry
	link  link
}

// stat reads the attributes of what is there; there is false if nothing is.
func (p place) stat(st *unix.Stat_t) (there bool, err error) {
	err = unix.Fstatat(p.dir.fd, p.entry.Disk, st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return false, nil
	}
	return err == nil, err
}

func (f *FS) rename(from, to place, flags uint) error {
	defer f.journal.Moving()()
	var old, target unix.Stat_t
	if there, err := from.stat(&old); err != nil {
		return err
	} else if !there {
		return unix.ENOENT
	}
	replaces, err := to.stat(&target)
	if err != nil {
		return err
	}
	if err := f.addSideLinks(to.dir, to.entry); err != nil {
		return err
	}
	move := func() error {
		return unix.Renameat2(from.dir.fd, from.entry.Disk, to.dir.fd, to.entry.Disk, flags)
	}
	var gone *node // what the rename replaced, if the kernel knows it
	last := false
	if !replaces || flags&(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 || inodeOf(&old) == inodeOf(&target) {
		err = move()
	} else {
		gone, last, err = f.removing(to.dir, to.entry.Disk, to.link, true, move)
	}
	if err != nil {
		f.dropSideLinks(to.dir, to.entry)
		return err
	}
	f.changedIn(from.dir)
	f.changedIn(to.dir)
	f.dropSideLinks(from.dir, from.entry)
	if inodeOf(&old) == inodeOf(&target) {
		return nil // two names of one file: nothing happens
	}

	f.journal.Renamed()
	f.journal.Changed(inodeOf(&old))
	moved := f.nodes.find(inodeOf(&old))
	if flags&unix.RENAME_EXCHANGE != 0 {
		if other := f.nodes.find(inodeOf(&target)); other != nil {
			f.nodes.moved(other, to.link, from.link)
		}
	} else if gone != nil {
		f.removed(gone, last)
	}
	if moved != nil {
		f.nodes.moved(moved, from.link, to.link)
	}
	// Not earlier: whoever is told may ask for paths.
	f.journal.Moved(to.dir.fd, to.entry.Disk)
	if flags&unix.RENAME_EXCHANGE != 0 {
		f.journal.Moved(from.dir.fd, from.entry.Disk)
	}
	return nil
}
