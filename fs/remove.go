package fs

import (
	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kmsfs/kmsfs/names"
)

// Link implements [fuse.RawFileSystem].
func (f *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	n := f.nodes.get(in.Oldnodeid)
	parent := f.nodes.get(in.NodeId)
	if n == nil || parent == nil {
		return fuse.Status(unix.ESTALE)
	}
	f.renames.RLock()
	defer f.renames.RUnlock()
	err := f.inDir(parent, name, func(d *dir, e names.Entry) error {
		if err := f.addSideLinks(d, e); err != nil {
			return err
		}
		defer f.journal.Moving()()
		at := link{d.node, name}
		if err := f.linkNode(n, d, e.Disk, at); err != nil {
			f.dropSideLinks(d, e)
			return err
		}
		defer f.changedIn(d)
		f.journal.Changed(n.key())
		f.journal.Moved(d.fd, e.Disk)
		err := f.found(d, e, name, out)
		if err != nil {
			// The kernel goes on believing that there is no such entry.
			_ = unix.Unlinkat(d.fd, e.Disk, 0)
			f.nodes.unlinked(n, at)
			f.dropSideLinks(d, e)
		}
		return err
	})
	return status(err)
}

// linkNode gives n the name as, stored as disk in d. An open file is linked through its descriptor: it may have no name yet (O_TMPFILE), and has this one
// before it can be closed.
func (f *FS) linkNode(n *node, d *dir, disk string, as link) error {
	open, err := f.withOpenNow(n, func(o *openFile) error {
		err := unix.Linkat(unix.AT_FDCWD, procPath(o.fd, ""), d.fd, disk, unix.AT_SYMLINK_FOLLOW)
		if err == nil {
			f.nodes.named(n, as)
		}
		return err
	})
	if open {
		return err
	}
	at, ok := f.nodes.where(n)
	if !ok {
		return unix.ESTALE
	}
	return f.inDir(at.parent, at.name, func(old *dir, e names.Entry) error {
		return unix.Linkat(old.fd, e.Disk, d.fd, disk, 0)
	})
}

// Unlink implements [fuse.RawFileSystem].
func (f *FS) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.remove(in, name, 0)
}

// Rmdir implements [fuse.RawFileSystem].
func (f *FS) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.remove(in, name, unix.AT_REMOVEDIR)
}

// remove removes an entry as unlinkat does with the given flags.
func (f *FS) remove(in *fuse.InHeader, name string, flags int) fuse.Status {
	f.renames.RLock()
	defer f.renames.RUnlock()
	return status(f.inDir(f.nodes.get(in.NodeId), name, func(d *dir, e names.Entry) error {
		n, last, err := f.removing(d, e.Disk, link{d.node, name}, false, func() error { return unix.Unlinkat(d.fd, e.Disk, flags) })
		if err != nil {
			return err
		}
		f.changedIn(d)
		f.dropSideLinks(d, e)
		if n != nil {
			f.removed(n, last)
		}
		return nil
	}))
}

// removed notes that a name of n is no more, and whether that was the last.
func (f *FS) removed(n *node, last bool) {
	switch {
	case n.kind == unix.DT_DIR:
		f.closeDir(n)
	case last:
		f.journal.Unlinked(n.key())
	default:
		f.journal.Renamed()
	}
}

// removing runs remove, which takes the entry disk out of d, where it is known as at, and returns the node of the entry (nil if the kernel does not
// know it) and whether that was its last name. The node stays locked meanwhile, so that of two
// requests that remove the last two names one sees the last. To what has one name nobody gives another meanwhile: the kernel keeps it locked, too. With replace, something else
// takes the name, see keep.
func (f *FS) removing(d *dir, disk string, at link, replace bool, remove func() error) (n *node, last bool, err error) {
	var st unix.Stat_t
	if err := f.statEntry(d, disk, &st); err != nil {
		return nil, false, err
	}
	n = f.nodes.find(inodeOf(&st))
	if n == nil {
		return nil, false, f.removeWhole(d, disk, &st, remove)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	isDir := n.kind == unix.DT_DIR
	if st.Nlink > 1 && !isDir {
		if err := f.statEntry(d, disk, &st); err != nil {
			return nil, false, err
		}
	}
	last = st.Nlink == 1 || isDir
	if err := f.hold(n); err != nil {
		return nil, false, err
	}
	undo := func() {}
	if last && replace {
		undo = f.keep(n, d, disk, &st)
	}
	if last {
		f.nodes.leave(n)
	}
	if err := f.removeWhole(d, disk, &st, remove); err != nil {
		if last {
			f.nodes.stay(n)
		}
		undo()
		return nil, false, err
	}
	f.nodes.unlinked(n, at)
	if last && n.open == nil {
		st.Nlink = 0
		f.nodes.remember(n, &st)
	}
	return n, last, nil
}

// keep has n, whose place d's entry disk is about to be taken, go on as it is for as long as the kernel knows it: a program that has looked up the name may just be about to open it, and
// must not be told that there is nothing. n.mu is held, and renames for writing.
func (f *FS) keep(n *node, d *dir, disk string, st *unix.Stat_t) (undo func()) {
	switch n.kind {
	case unix.DT_REG:
		if n.open == nil {
			o, err := f.openNode(f.openKnown, n, false)
			if err != nil {
				break // nobody else can open it either, or a CMK would have to be asked
			}
			n.open = o
		}
		n.open.refs++
		return func() { f.releaseLocked(n) }
	case unix.DT_LNK:
		stored, err := readlinkat(d.fd, disk)
		if err != nil {
			break
		}
		if target, err := f.target(stored); err == nil {
			f.nodes.keepTarget(n, target, st)
		}
	}
	return func() {}
}

// removeWhole runs remove, which takes the entry disk out of d, and removes what belongs to the entry: the side links in a directory, the long target of a
// symbolic link.
func (f *FS) removeWhole(d *dir, disk string, st *unix.Stat_t, remove func() error) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return f.emptied(d.fd, disk, remove)
	case unix.S_IFLNK:
		if st.Nlink > 1 {
			break
		}
		target, _ := readlinkat(d.fd, disk)
		err := remove()
		if err == nil {
			f.dropLongTarget(target)
		}
		return err
	}
	return remove()
}

// emptied takes the side links out of the directory disk, if nothing else is in it, and runs remove, which needs it empty; if that
// fails, the directory's ID is put back. The kernel keeps others out of the directory meanwhile.
func (f *FS) emptied(parent int, disk string, remove func() error) error {
	if f.plain {
		return remove()
	}
	fd, err := unix.Openat(parent, disk, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var side []string
	err = readNames(fd, func(name string) error {
		if !names.IsSide(name) {
			return unix.ENOTEMPTY
		}
		side = append(side, name)
		return nil
	})
	if err != nil {
		return err
	}
	ids := make(map[string]string, 2) // targets of the directory's own links, sound or not
	for _, name := range []string{names.DirLink, names.DirLinkCopy} {
		if target, err := readlinkat(fd, name); err == nil {
			ids[name] = target
		}
	}
	if err = unlinkAll(fd, side); err == nil {
		err = remove()
	}
	if err != nil {
		for name, target := range ids {
			_ = unix.Symlinkat(target, fd, name) // if it was removed
		}
	}
	return err
}

func unlinkAll(fd int, all []string) error {
	for _, name := range all {
		if err := unix.Unlinkat(fd, name, 0); err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}

// removeDirID takes the ID out of a directory that is about to be removed.
func (f *FS) removeDirID(parent int, disk string) error {
	return f.emptied(parent, disk, func() error { return nil })
}

// isEmpty reports whether the directory holds nothing but side links.
func (f *FS) isEmpty(pathFd int) (bool, error) {
	fd, err := openDot(pathFd)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	err = readNames(fd, func(name string) error {
		if !names.IsSide(name) {
			return unix.ENOTEMPTY
		}
		return nil
	})
	if err == unix.ENOTEMPTY {
		return false, nil
	}
	return err == nil, err
}

// addSideLinks makes the two links that tell a long name, docs/format.md section 7.3, before the entry itself.
func (f *FS) addSideLinks(d *dir, e names.Entry) error {
	if !e.Long {
		return nil
	}
	one, two := names.SideLinks(e.Disk)
	for _, name := range []string{one, two} {
		if err := unix.Symlinkat(e.Sealed, d.fd, name); err != nil && err != unix.EEXIST {
			return err
		}
	}
	return nil
}

// dropSideLinks removes the side links of a long name unless its entry is there.
func (f *FS) dropSideLinks(d *dir, e names.Entry) {
	if !e.Long {
		return
	}
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, e.Disk, &st, unix.AT_SYMLINK_NOFOLLOW); err != unix.ENOENT {
		return
	}
	one, two := names.SideLinks(e.Disk)
	_ = unix.Unlinkat(d.fd, one, 0)
	_ = unix.Unlinkat(d.fd, two, 0)
}
