package fs

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kmsfs/kmsfs/names"
	"github.com/kmsfs/kmsfs/volume"
)

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
		disk := string(e.disk)
		if f.statEntry(d, disk, &st) == nil {
			n := f.nodes.look(&st, link{d.node, name})
			f.entryOut(n, &st, d, disk, entry)
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
	n.giveListed()
	l, err := f.listings.take(d, in.Offset)
	if err != nil {
		return status(err)
	}
	taken, full := 0, false // bytes of entries; whether there is no room for more
	for l.fd >= 0 {
		e, size, name, ok := l.next()
		if !ok {
			if err := l.err; err == nil {
				f.listings.close(l)
			} else if l.last == in.Offset { // else next time: the answer has entries
				f.listings.done(l)
				return status(err)
			}
			break
		}
		if name == "" {
			name, ok = f.plainName(d, string(e.disk))
		}
		if ok {
			if full = !add(d, e, name); full {
				break
			}
			l.last = e.off
		}
		l.skip(size)
		taken += size
	}
	if full && in.Offset != 0 {
		l.ahead = min(taken, listingSize-maxDirent)
	}
	if l.last == in.Offset {
		f.listings.done(l) // the kernel has all of it
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
	case d.node == f.nodes.root && !f.vol.InTree(disk):
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
	disk []byte // part of what was parsed
}

// direntName is where the name is in what getdents64 returns.
const direntName = 19

// parseDirent reads the first entry of what getdents64 returned: d_ino, d_off, d_reclen, d_type and d_name.
func parseDirent(b []byte) (e dirent, size int) {
	e.ino = binary.NativeEndian.Uint64(b)
	e.off = binary.NativeEndian.Uint64(b[8:])
	size = int(binary.NativeEndian.Uint16(b[16:]))
	e.mode = uint32(b[18]) << 12
	name := b[direntName:size]
	e.disk = name[:bytes.IndexByte(name, 0)]
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
			name := string(e.disk)
			if name == "." || name == ".." {
				continue
			}
			if err := fn(name); err != nil {
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
