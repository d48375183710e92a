package fs

import (
	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kmsfs/kmsfs/names"
)

// at calls fn with an open directory and the stored name of n in it. If another name of n was removed meanwhile, it tries again with the next.
func (f *FS) at(n *node, fn func(d *dir, e names.Entry) error) error {
	f.renames.RLock()
	defer f.renames.RUnlock()
	return f.resolve(n, fn)
}

// resolve is at for callers that hold renames.
func (f *FS) resolve(n *node, fn func(d *dir, e names.Entry) error) error {
	if n == f.nodes.root {
		d := f.dirs.cached(n)
		defer f.dirs.release(d)
		return fn(d, names.Entry{Disk: "."})
	}
	for {
		where, ok := f.nodes.where(n)
		if !ok {
			return unix.ESTALE
		}
		err := f.inDir(where.parent, where.name, fn)
		if err != unix.ENOENT {
			return err
		}
		if now, _ := f.nodes.where(n); now == where {
			return err
		}
	}
}

// inDir calls fn with the open directory parent and the stored form of name.
func (f *FS) inDir(parent *node, name string, fn func(d *dir, e names.Entry) error) error {
	d, err := f.dir(parent)
	if err != nil {
		return f.dirFailed(parent, err)
	}
	defer f.dirs.release(d)
	e, err := f.entry(d, name)
	if err != nil {
		return err
	}
	return fn(d, e)
}

// stat reads the attributes of n from the ciphertext entry.
func (f *FS) stat(n *node, st *unix.Stat_t) error {
	if ok, err := f.statOpen(n, st); ok {
		return err
	}
	if last := f.nodes.remembered(n); last != nil {
		*st = *last
		return nil
	}
	if d := f.dirs.cached(n); d != nil {
		defer f.dirs.release(d)
		return unix.Fstat(d.fd, st)
	}
	err := f.at(n, func(d *dir, e names.Entry) error {
		if err := f.statEntry(d, e.Disk, st); err != nil {
			return err
		}
		if inodeOf(st) != n.key() {
			return unix.ESTALE
		}
		return nil
	})
	if err == unix.ENOENT || err == unix.ESTALE {
		// If it has lost its name meanwhile, it was opened before, see hold.
		if ok, err := f.statOpen(n, st); ok {
			return err
		}
	}
	return err
}

// statOpen is stat through the descriptor of an open file, which works when it has no name any more.
func (f *FS) statOpen(n *node, st *unix.Stat_t) (ok bool, err error) {
	if n.kind != unix.DT_REG {
		return false, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open == nil {
		return false, nil
	}
	return true, f.statWith(st, func() error { return unix.Fstat(n.open.fd, st) })
}

// statEntry reads the attributes of an entry of d. The size of a file counts what its journal has not put in place yet.
func (f *FS) statEntry(d *dir, disk string, st *unix.Stat_t) error {
	return f.statWith(st, func() error { return unix.Fstatat(d.fd, disk, st, unix.AT_SYMLINK_NOFOLLOW) })
}

func (f *FS) statWith(st *unix.Stat_t, stat func() error) error {
	size, ok, err := f.journal.Stat(func() inode { return inodeOf(st) }, stat)
	if ok && st.Mode&unix.S_IFMT == unix.S_IFREG {
		st.Size = size
	}
	return err
}

// attr converts the attributes of a ciphertext entry to those of the plaintext.
func (f *FS) attr(st *unix.Stat_t, disk func() (string, error), out *fuse.Attr) {
	*out = fuse.Attr{
		Ino:       st.Ino,
		Size:      f.size(st, disk),
		Blocks:    uint64(st.Blocks),
		Atime:     uint64(st.Atim.Sec),
		Mtime:     uint64(st.Mtim.Sec),
		Ctime:     uint64(st.Ctim.Sec),
		Atimensec: uint32(st.Atim.Nsec),
		Mtimensec: uint32(st.Mtim.Nsec),
		Ctimensec: uint32(st.Ctim.Nsec),
		Mode:      st.Mode,
		Nlink:     uint32(st.Nlink),
		Owner:     fuse.Owner{Uid: st.Uid, Gid: st.Gid},
		Rdev:      uint32(st.Rdev),
		Blksize:   uint32(st.Blksize),
	}
}

// size is the plaintext size of a ciphertext entry. Only a symbolic link in the long form needs more than its
// attributes: disk reads its stored target.
func (f *FS) size(st *unix.Stat_t, disk func() (string, error)) uint64 {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n, _ := f.layout.PlainSize(st.Size)
		return uint64(n)
	case unix.S_IFLNK:
		n, long := names.TargetSize(int(st.Size))
		if long {
			n = f.longTargetSize(disk)
		}
		return uint64(max(n, 0))
	}
	return uint64(st.Size)
}

// entryOut fills the answer to a request that gave the kernel a reference to n.
func (f *FS) entryOut(n *node, st *unix.Stat_t, d *dir, disk string, out *fuse.EntryOut) {
	out.NodeId = n.id
	out.Generation = 1
	out.SetEntryTimeout(lifetime)
	out.SetAttrTimeout(lifetime)
	f.attr(st, func() (string, error) { return readlinkat(d.fd, disk) }, &out.Attr)
}

// Lookup implements [fuse.RawFileSystem]. An absent entry is an answer that the kernel may keep.
func (f *FS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	f.renames.RLock()
	defer f.renames.RUnlock()
	parent := f.nodes.get(in.NodeId)
	if parent != nil && f.hidden(parent, name) {
		return fuse.ENOENT
	}
	err := f.inDir(parent, name, func(d *dir, e names.Entry) error {
		return f.found(d, e, name, out)
	})
	if err == unix.ENOENT {
		out.SetEntryTimeout(lifetime)
		return fuse.OK
	}
	return status(err)
}

// found looks an entry of d up and answers with it.
func (f *FS) found(d *dir, e names.Entry, name string, out *fuse.EntryOut) error {
	var st unix.Stat_t
	if err := f.statEntry(d, e.Disk, &st); err != nil {
		return err
	}
	n := f.nodes.look(&st, link{d.node, name})
	if f.journal.Doubts() {
		f.examineEntry(n, d, e.Disk)
		if err := f.statEntry(d, e.Disk, &st); err != nil {
			f.nodes.forget(n.id, 1)
			return err
		}
	}
	f.entryOut(n, &st, d, e.Disk, out)
	return nil
}

// Forget implements [fuse.RawFileSystem].
func (f *FS) Forget(id, lookups uint64) {
	for _, n := range f.nodes.forget(id, lookups) {
		if n.kind == unix.DT_DIR {
			f.closeDir(n)
		} else {
			f.forceClose(n) // see keep
		}
	}
}

// GetAttr implements [fuse.RawFileSystem].
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	return f.getattr(n, out)
}

func (f *FS) getattr(n *node, out *fuse.AttrOut) fuse.Status {
	var st unix.Stat_t
	if err := f.stat(n, &st); err != nil {
		return status(err)
	}
	out.SetTimeout(lifetime)
	f.attr(&st, func() (string, error) { return f.readlink(n) }, &out.Attr)
	if target, ok := f.nodes.keptTarget(n); ok {
		out.Size = uint64(len(target)) // a long one is not stored any more
	}
	return fuse.OK
}

// Statx implements [fuse.RawFileSystem]; the kernel uses it for birth times.
func (f *FS) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	var sx unix.Statx_t
	const mask = unix.STATX_BASIC_STATS | unix.STATX_BTIME
	st := unix.Stat_t{Ino: n.key().Ino, Dev: n.key().Dev}
	sizes := func(fd int, name string, flags int) error {
		return f.statWith(&st, func() error {
			err := unix.Statx(fd, name, flags, mask, &sx)
			st.Mode, st.Size = uint32(sx.Mode), int64(sx.Size)
			return err
		})
	}
	err := f.on(n, sizes)
	if err != nil {
		return status(err)
	}
	out.SetTimeout(lifetime)
	out.Statx.FromStatx(&sx)
	out.Statx.Size = f.size(&st, func() (string, error) { return f.readlink(n) })
	out.Statx.Attributes, out.Statx.AttributesMask = 0, 0 // those of the ciphertext are not ours
	return fuse.OK
}

// StatFs implements [fuse.RawFileSystem].
func (f *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st unix.Statfs_t
	if err := unix.Fstatfs(f.vol.RootFd(), &st); err != nil {
		return status(err)
	}
	*out = fuse.StatfsOut{
		Blocks:  st.Blocks,
		Bfree:   st.Bfree,
		Bavail:  st.Bavail,
		Files:   st.Files,
		Ffree:   st.Ffree,
		Bsize:   uint32(st.Bsize),
		Frsize:  uint32(st.Frsize),
		NameLen: unix.NAME_MAX,
	}
	return fuse.OK
}
