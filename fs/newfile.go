package fs

import (
	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kmsfs/kmsfs/names"
)

// Create implements [fuse.RawFileSystem]. A new file is 0 bytes long; its header comes with its first bytes.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	mode := f.mode(in.NodeId, in.Mode&07777, in.Umask)
	f.renames.RLock()
	defer f.renames.RUnlock()
	return status(f.inDir(f.nodes.get(in.NodeId), name, func(d *dir, e names.Entry) error {
		if err := f.addSideLinks(d, e); err != nil {
			return err
		}
		// The kernel asks only where it knows of no such entry, and holds the directory's lock.
		fd, err := unix.Openat(d.fd, e.Disk, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_NOATIME|unix.O_CLOEXEC, mode)
		if err != nil {
			f.dropSideLinks(d, e)
			return err
		}
		defer f.changedIn(d)
		if err := f.created(in.Caller, in.Flags, link{d.node, name}, d, fd, out); err != nil {
			f.undo(d, e, unix.S_IFREG) // the kernel goes on believing that there is no such entry
			return err
		}
		return nil
	}))
}

// created gives fd, a new and empty file in d, to the caller, who opens it with flags, and answers with it. It takes fd over. No name in at means that it has none.
func (f *FS) created(c fuse.Caller, flags uint32, at link, d *dir, fd int, out *fuse.CreateOut) error {
	var st unix.Stat_t
	if err := f.giveTo(c, d, fd, "", unix.AT_EMPTY_PATH, &st); err != nil {
		unix.Close(fd)
		return err
	}
	n := f.nodes.look(&st, at)
	n.mu.Lock()
	defer n.mu.Unlock()
	if d.acl.Load() == aclNone {
		n.attrs = attrsNone // nothing to inherit
	}
	if n.open != nil {
		// Somebody who found the entry in a listing was faster.
		unix.Close(fd)
	} else {
		o, err := f.openOn(f.openKnown, n, fd, true)
		if err != nil {
			if at.parent != nil {
				f.nodes.leave(n)
				f.nodes.unlinked(n, at)
			}
			f.nodes.forget(n.id, 1)
			return err
		}
		o.shared = n.deferred() > 0
		n.open = o
	}
	n.open.refs++
	n.open.openedWith(flags)
	f.entryOut(n, &st, d, "", &out.EntryOut)
	out.OpenFlags, out.Fh = openFlags(true), handle(flags)
	if f.flushes && flags&unix.O_ACCMODE == unix.O_WRONLY {
		// Nobody reads or maps the file by this handle. What is written does not go through the page cache, so that the kernel has no pages to fill, does not ask for file
		// capabilities, and has nothing to tell when the file is closed. A reader of a small file gets its content when it opens it.
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH
		out.Fh |= uncached
	}
	return nil
}

// What the kernel's handle of an opened file says, each a bit.
const (
	uncached = 1 << iota // the file is written past the page cache, and closed without a word
	deferred             // nothing was opened for it yet
	synced               // each change is to be durable before it is answered; the kernel sees to it for writes through the page cache only
)

// handle is what the flags that a file is opened with ask for.
func handle(flags uint32) uint64 {
	if flags&unix.O_DSYNC != 0 { // O_SYNC has its bit
		return synced
	}
	return 0
}

// changed is called when the content has been changed by a handle, other than by a write: what no close will save, and no sync make durable, is now.
func (o *openFile) changed(handle uint64) error {
	switch {
	case handle&synced != 0:
		return o.sync(false)
	case handle&uncached != 0:
		return o.file.Save()
	}
	return nil
}

// written is changed after a write with flags. The kernel does not ask for the sync that those may want of a write past the page cache.
func (o *openFile) written(handle uint64, flags uint32) error {
	switch {
	case handle&uncached == 0:
		return nil
	case flags&unix.O_DSYNC != 0:
		return o.sync(flags&unix.O_SYNC != unix.O_SYNC)
	}
	return o.file.Save()
}

// Tmpfile implements [fuse.RawFileSystem]: a file without a name.
func (f *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	mode := f.mode(in.NodeId, in.Mode&07777, in.Umask)
	f.renames.RLock()
	defer f.renames.RUnlock()
	d, err := f.dir(f.nodes.get(in.NodeId))
	if err != nil {
		return status(err)
	}
	defer f.dirs.release(d)
	flags := unix.O_RDWR | unix.O_TMPFILE | unix.O_NOATIME | unix.O_CLOEXEC | int(in.Flags)&unix.O_EXCL
	fd, err := unix.Openat(d.fd, ".", flags, mode)
	if err != nil {
		return status(err)
	}
	return status(f.created(in.Caller, in.Flags, link{}, d, fd, out))
}
