package fs

import (
	"encoding/binary"
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kmsfs/kmsfs/names"
	"github.com/kmsfs/kmsfs/volume"
)

// A listing is how far somebody has listed a directory. Kernels from 5.1 on open directories without asking, so that there is nothing to keep it by but the
// directory: two that list it at once go on from each other's place, or seek.
type listing struct {
	mu   sync.Mutex
	fd   int    // 0 while nobody lists; guarded by mu
	buf  []byte // entries as getdents64 returned them; guarded by mu
	rest []byte // what of buf is not consumed yet; guarded by mu
	last uint64 // offset behind the entry that was returned last; guarded by mu
}

// at opens the directory pathFd, if need be, and goes to an offset. l.mu is held.
func (l *listing) at(pathFd int, off uint64) error {
	if l.fd == 0 {
		fd, err := openDot(pathFd)
		if err != nil {
			return err
		}
		l.fd, l.buf = fd, make([]byte, 32<<10)
	}
	if off == l.last && off != 0 {
		return nil // from the start, a listing is always read anew
	}
	l.rest, l.last = nil, off
	_, err := unix.Seek(l.fd, int64(off), 0)
	return err
}

// close ends the listing; whoever goes on with it opens the directory again. l.mu is held, or nobody has the directory any more.
func (l *listing) close() {
	if l.fd != 0 {
		unix.Close(l.fd)
	}
	l.fd, l.buf, l.rest, l.last = 0, nil, nil, 0
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

	l := &d.listing
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.at(d.fd, in.Offset); err != nil {
		return status(err)
	}
	for {
		if len(l.rest) == 0 {
			n, err := unix.Getdents(l.fd, l.buf)
			if err != nil {
				return status(err)
			}
			if n == 0 {
				if in.Offset == l.last {
					l.close() // the kernel has all of it
				}
				return fuse.OK
			}
			l.rest = l.buf[:n]
		}
		e, size := parseDirent(l.rest)
		if name, ok := f.plainName(d, e.disk); ok {
			if !add(d, e, name) {
				return fuse.OK
			}
			l.last = e.off
		}
		l.rest = l.rest[size:]
	}
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
