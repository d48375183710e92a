package fs

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kmsfs/kmsfs/names"
	"github.com/kmsfs/kmsfs/volume"
)

const (
	// maxListings is how many listings are kept between requests, each with a descriptor and a buffer.
	maxListings = 64
	// listingSize is how much of a directory is read at once, in bytes.
	listingSize = 32 << 10
)

// A listing is how far somebody has listed a directory. One that is in use belongs to its request alone.
type listing struct {
	node *node
	fd   int    // -1 when the end was reached
	rest []byte // what of buf is not consumed yet
	last uint64 // offset behind the entry that was returned last

	buf *[listingSize]byte // entries as getdents64 returned them; nil when the end was reached
}

// listings keeps those that are likely to be gone on with, the one used last in front. Kernels from 5.1 on open directories without asking, so there is
// nothing to know them by but the directory and the offset. Who is not found here, because others have listed many
// directories since, or because the directory has changed, seeks.
type listings struct {
	mu  sync.Mutex
	lru []*listing // guarded by mu

	buffers sync.Pool // of *[listingSize]byte: most directories are listed in one request
}

// take returns a listing of d that goes on at an offset.
func (c *listings) take(d *dir, off uint64) (*listing, error) {
	if off != 0 { // from the start, a directory is always read anew
		if l := c.kept(d.node, off); l != nil {
			return l, nil
		}
	}
	fd, err := openDot(d.fd)
	if err != nil {
		return nil, err
	}
	if off != 0 {
		if _, err := unix.Seek(fd, int64(off), 0); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	buf, ok := c.buffers.Get().(*[listingSize]byte)
	if !ok {
		buf = new([listingSize]byte)
	}
	return &listing{node: d.node, fd: fd, buf: buf, last: off}, nil
}

// kept returns the listing of n that has come to an offset, and was used last of those that have; nil if none is kept.
func (c *listings) kept(n *node, off uint64) *listing {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.lru, func(l *listing) bool { return l.node == n && l.last == off })
	if i < 0 {
		return nil
	}
	l := c.lru[i]
	c.lru = slices.Delete(c.lru, i, i+1)
	return l
}

// keep takes back a listing that somebody may go on with.
func (c *listings) keep(l *listing) {
	c.mu.Lock()
	var old *listing
	if last := len(c.lru) - 1; last >= maxListings-1 {
		old = c.lru[last]
		c.lru = slices.Delete(c.lru, last, last+1)
	}
	c.lru = slices.Insert(c.lru, 0, l)
	c.mu.Unlock()
	c.close(old)
}

// drop ends the listings of a directory that are kept, all there are if n is nil, and reports whether there were any.
func (c *listings) drop(n *node) bool {
	c.mu.Lock()
	var old []*listing
	c.lru = slices.DeleteFunc(c.lru, func(l *listing) bool {
		gone := n == nil || l.node == n
		if gone {
			old = append(old, l)
		}
		return gone
	})
	c.mu.Unlock()
	for _, l := range old {
		c.close(l)
	}
	return len(old) > 0
}

// changedIn is called when entries of d have changed, before the kernel hears of it. Whoever begins to list d afterwards is to find the change, but may go on where somebody is now
// who began before: with what that one has read ahead, and, since the kernel keeps what it has listed before it has all of it, with what is kept there.
func (f *FS) changedIn(d *dir) {
	if f.listings.drop(d.node) {
		_ = f.kernel.Invalidate(d.node.id, 0, 0)
	}
}

// close gives back what l holds; nil holds nothing.
func (c *listings) close(l *listing) {
	if l != nil && l.fd >= 0 {
		unix.Close(l.fd)
		c.buffers.Put(l.buf)
		l.fd, l.buf, l.rest = -1, nil, nil
	}
}

// OpenDir implements [fuse.RawFileSystem]. The kernel need not ask, and keeps what it has listed: it knows of every change.
func (f *FS) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if f.opensDirs {
		return fuse.ENOSYS // which it takes for "do not ask again"
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	return fuse.OK
}

// ReleaseDir implements [fuse.RawFileSystem].
func (f *FS) ReleaseDir(*fuse.ReleaseIn) {}

// FsyncDir implements [fuse.RawFileSystem].
func (f *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	fd, err := f.openListed(f.nodes.get(in.NodeId))
	if err == unix.ESTALE {
		return fuse.OK // removed: nothing is left to sync
	} else if err != nil {
		return status(err)
	}
	defer unix.Close(fd)
	return status(again(func() error { return unix.Fsync(fd) }))
}

// openListed opens the directory n for more than *at calls.
func (f *FS) openListed(n *node) (fd int, err error) {
	f.renames.RLock()
	defer f.renames.RUnlock()
	d, err := f.dir(n)
	if err != nil {
		return -1, err
	}
	defer f.dirs.release(d)
	return openDot(d.fd)
}

// openDot opens a directory that is open for *at calls only.
func openDot(pathFd int) (fd int, err error) {
	return unix.Openat(pathFd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// ReadDir implements [fuse.RawFileSystem].
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(_ *dir, e dirent, name string) bool {
		return out.AddDirEntry(fuse.DirEntry{Mode: e.mode, Name: name, Ino: e.ino, Off: e.off})
	})
}

// ReadDirPlus implements [fuse.RawFileSystem].
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(d *dir, e dirent, name string) bool {
		entry := out.AddDirLookupEntry(fuse.DirEntry{Mode: e.mode, Name: name, Ino: e.ino, Off: e.off})
		if entry == nil {
			return false
		}
		if name == "." || name == ".." || f.journal.Doubts() {
			return true
		}
		var st unix.Stat_t
		if f.statEntry(d, e.disk, &st) == nil {
			n := f.nodes.look(&st, link{d.node, name})
			f.entryOut(n, &st, d, e.disk, entry)
		}
		return true // without attributes if it is gone: the kernel will ask
	})
}

// list hands the entries of an open directory to add, from the requested offset on, until it refuses one. Names come from the
// directory alone: no file is opened.
func (f *FS) list(in *fuse.ReadIn, add func(d *dir, e dirent, name string) bool) fuse.Status {
	n := f.nodes.get(in.NodeId)
	f.renames.RLock()
	defer f.renames.RUnlock()
	d, err := f.dir(n)
	if err == unix.ESTALE {
		return fuse.OK // removed: nothing is left to list
	} else if err != nil {
		return status(f.dirFailed(n, err))
	}
	defer f.dirs.release(d)
	l, err := f.listings.take(d, in.Offset)
	if err != nil {
		return status(err)
	}
	for l.fd >= 0 {
		if len(l.rest) == 0 {
			n, err := unix.Getdents(l.fd, l.buf[:])
			if err != nil {
				f.listings.close(l)
				return status(err)
			}
			if n == 0 {
				f.listings.close(l)
				break
			}
			l.rest = l.buf[:n]
		}
		e, size := parseDirent(l.rest)
		if name, ok := f.plainName(d, e.disk); ok {
			if !add(d, e, name) {
				break
			}
			l.last = e.off
		}
		l.rest = l.rest[size:]
	}
	if l.last == in.Offset {
		f.listings.close(l) // the kernel has all of it
	} else {
		f.listings.keep(l)
	}
	return fuse.OK
}

// plainName returns the name of a stored entry; ok is false for what is not an entry, and for names that do
// not authenticate: one of those must not hide the rest.
func (f *FS) plainName(d *dir, disk string) (name string, ok bool) {
	switch {
	case disk == "." || disk == "..":
		return disk, true
	case d.node == f.nodes.root && (disk == volume.MetaDir || disk == "lost+found" && !f.plain):
		return "", false
	case f.plain:
		return disk, true
	case names.IsSide(disk):
		return "", false
	}
	var err error
	if names.IsLong(disk) {
		one, two := names.SideLinks(disk)
		for _, side := range []string{one, two} {
			var sealed string
			if sealed, err = readlinkat(d.fd, side); err == nil {
				if name, err = f.names.OpenLong(d.id, disk, sealed); err == nil {
					return name, true
				}
			}
		}
	} else if name, err = f.names.Open(d.id, disk); err == nil {
		return name, true
	}
	sealed, plain := f.paths(d.node)
	f.log.Error("name does not authenticate; it is left out", "ciphertext", sealed+"/"+disk, "directory", plain, "err", err)
	return "", false
}

// hidden reports whether an entry belongs to the volume itself and not to its files.
func (f *FS) hidden(parent *node, name string) bool {
	return f.plain && parent == f.nodes.root && name == volume.MetaDir
}

// A dirent is an entry as the kernel lists it.
type dirent struct {
	ino  uint64
	off  uint64 // where the listing goes on
	mode uint32 // S_IFMT bits
	disk string
}

// parseDirent reads the first entry of what getdents64 returned: d_ino, d_off, d_reclen, d_type and d_name.
func parseDirent(b []byte) (e dirent, size int) {
	e.ino = binary.NativeEndian.Uint64(b)
	e.off = binary.NativeEndian.Uint64(b[8:])
	size = int(binary.NativeEndian.Uint16(b[16:]))
	e.mode = uint32(b[18]) << 12
	name := b[19:size]
	for i, c := range name {
		if c == 0 {
			name = name[:i]
			break
		}
	}
	e.disk = string(name)
	return e, size
}

// readNames calls fn for every name in an open directory but "." and "..".
func readNames(fd int, fn func(name string) error) error {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return err
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil || n == 0 {
			return err
		}
		for rest := buf[:n]; len(rest) > 0; {
			e, size := parseDirent(rest)
			rest = rest[size:]
			if e.disk == "." || e.disk == ".." {
				continue
			}
			if err := fn(e.disk); err != nil {
				return err
			}
		}
	}
}

// dirFailed logs that a directory cannot be used, unless an errno says it all.
func (f *FS) dirFailed(n *node, err error) error {
	if errors.Is(err, names.ErrAuth) || status(err) == fuse.EIO {
		sealed, plain := f.paths(n)
		f.log.Error("cannot use directory", "ciphertext", sealed, "plaintext", plain, "err", err)
	}
	return err
}
