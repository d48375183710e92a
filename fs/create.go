package fs

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kmsfs/kmsfs/names"
	"github.com/kmsfs/kmsfs/volume"
)

// makeEntry makes the entry name in the directory parent with make, gives it to the caller and answers with it. The side
// links of a long name are there before the entry, and go again if it could not be made.
func (f *FS) makeEntry(in *fuse.InHeader, name string, mode uint32, out *fuse.EntryOut,
	make func(d *dir, disk string) error) fuse.Status {
	f.renames.RLock()
	defer f.renames.RUnlock()
	err := f.inDir(f.nodes.get(in.NodeId), name, func(d *dir, e names.Entry) error {
		if err := f.addSideLinks(d, e); err != nil {
			return err
		}
		if err := make(d, e.Disk); err != nil {
			f.dropSideLinks(d, e)
			return err
		}
		defer f.changedIn(d)
		var st unix.Stat_t
		if err := f.giveTo(in.Caller, d, d.fd, e.Disk, unix.AT_SYMLINK_NOFOLLOW, &st); err != nil {
			f.undo(d, e, mode)
			return err
		}
		f.entryOut(f.nodes.look(&st, link{d.node, name}), &st, d, e.Disk, out)
		return nil
	})
	return status(err)
}

// undo removes an entry that could not be finished.
func (f *FS) undo(d *dir, e names.Entry, mode uint32) {
	flags := 0
	if mode&unix.S_IFMT == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
		_ = f.removeDirID(d.fd, e.Disk)
	}
	_ = unix.Unlinkat(d.fd, e.Disk, flags)
	f.dropSideLinks(d, e)
}

// giveTo makes the caller the owner of something new in d, as if the caller had made it: the process keeps its own identity throughout. *at calls reach it by fd, disk and flags, see on. The
// group stays if the directory hands down its own (set-group-ID), which the backing file system has done already.
// Changing the owner clears set-ID bits, so the mode is set again. giveTo reads the attributes that it has then.
func (f *FS) giveTo(c fuse.Caller, d *dir, fd int, disk string, flags int, st *unix.Stat_t) error {
	stat := func() error { return unix.Fstatat(fd, disk, st, flags) }
	if err := stat(); err != nil || !f.chown || st.Uid == c.Uid && st.Gid == c.Gid {
		return err
	}
	var parent unix.Stat_t
	if err := unix.Fstat(d.fd, &parent); err != nil {
		return err
	}
	gid := c.Gid
	if parent.Mode&unix.S_ISGID != 0 {
		gid = st.Gid
	}
	if st.Uid == c.Uid && st.Gid == gid {
		return nil
	}
	if err := unix.Fchownat(fd, disk, int(c.Uid), int(gid), flags); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Mode&unix.S_IFMT != unix.S_IFLNK && st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		if err := chmodat(fd, disk, st.Mode&07777); err != nil {
			return err
		}
	}
	return stat()
}

// mode is the mode of a new entry: the caller's umask counts only where the directory has no default ACL, which takes its place.
func (f *FS) mode(parent uint64, mode, umask uint32) uint32 {
	if umask != 0 && f.inherits(f.nodes.get(parent)) {
		return mode
	}
	return mode &^ umask
}

// Values of dir.acl.
const (
	aclUnknown = iota
	aclNone
	aclDefault
)

// inherits reports whether entries made in n get their permissions from a default ACL.
func (f *FS) inherits(n *node) bool {
	f.renames.RLock()
	defer f.renames.RUnlock()
	d, err := f.dir(n)
	if err != nil {
		return false // the request itself will tell
	}
	defer f.dirs.release(d)
	if known := d.acl.Load(); known != aclUnknown {
		return known == aclDefault
	}
	n.mu.Lock() // so that what is found is no older than what aclChanged has forgotten
	defer n.mu.Unlock()
	known := int32(aclNone)
	size, err := unix.Lgetxattr(procPath(d.fd, "."), aclDefaultName, nil)
	if err == nil && size > 0 {
		known = aclDefault
	}
	if err == nil || err == unix.ENODATA || err == unix.EOPNOTSUPP {
		d.acl.Store(known)
	}
	return known == aclDefault
}

// Mkdir implements [fuse.RawFileSystem]. The directory's ID is in it before the kernel hears of the directory, which stays open: who makes one will use it.
func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	mode := f.mode(in.NodeId, in.Mode, in.Umask)
	var made *dir
	s := f.makeEntry(&in.InHeader, name, mode|unix.S_IFDIR, out, func(d *dir, disk string) (err error) {
		if err := unix.Mkdirat(d.fd, disk, mode); err != nil {
			return err
		}
		if f.plain {
			return nil
		}
		made, err = f.newDir(d, disk)
		if err != nil {
			_ = f.removeDirID(d.fd, disk)
			_ = unix.Unlinkat(d.fd, disk, unix.AT_REMOVEDIR)
		}
		return err
	})
	switch {
	case made == nil:
	case s == fuse.OK:
		made.node = f.nodes.get(out.NodeId)
		f.dirs.release(f.dirs.add(made))
	default:
		unix.Close(made.fd)
	}
	return s
}

// newDir gives a directory that was just made in parent its ID.
func (f *FS) newDir(parent *dir, disk string) (*dir, error) {
	fd, err := unix.Openat(parent.fd, disk, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	d := &dir{fd: fd, id: names.NewDirID()}
	if err := f.writeDirID(fd, d.id, names.DirLink, names.DirLinkCopy); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if parent.acl.Load() == aclNone {
		d.acl.Store(aclNone) // nothing to inherit
	}
	return d, nil
}

// Mknod implements [fuse.RawFileSystem]: FIFOs, sockets, devices, and regular files.
func (f *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	mode := f.mode(in.NodeId, in.Mode&^unix.S_IFMT, in.Umask) | in.Mode&unix.S_IFMT
	return f.makeEntry(&in.InHeader, name, mode, out, func(d *dir, disk string) error {
		return unix.Mknodat(d.fd, disk, mode, int(in.Rdev))
	})
}

// Symlink implements [fuse.RawFileSystem].
func (f *FS) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	sealed := f.names.SealTarget(target)
	disk := sealed.Disk
	if sealed.Long() {
		var err error
		if disk, err = f.putLongTarget(sealed.Blob); err != nil {
			return status(err)
		}
	}
	s := f.makeEntry(in, name, unix.S_IFLNK, out, func(d *dir, entry string) error {
		return unix.Symlinkat(disk, d.fd, entry)
	})
	if s != fuse.OK && sealed.Long() {
		f.dropLongTarget(disk)
	}
	return s
}

// Readlink implements [fuse.RawFileSystem].
func (f *FS) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return nil, fuse.Status(unix.ESTALE)
	}
	if target, ok := f.nodes.keptTarget(n); ok {
		return []byte(target), fuse.OK
	}
	stored, err := f.readlink(n)
	if err != nil {
		return nil, status(err)
	}
	target, err := f.target(stored)
	if err != nil {
		return nil, f.fail(n, "read the target of", err)
	}
	return []byte(target), fuse.OK
}

// target opens the stored target of a symbolic link.
func (f *FS) target(stored string) (string, error) {
	id, ok := names.ParseLongTarget(stored)
	if !ok {
		return f.names.OpenTarget(stored)
	}
	blob, err := f.longTarget(id)
	if err != nil {
		return "", err
	}
	return f.names.OpenLongTarget(blob)
}

// readlink reads the stored target of a symbolic link.
func (f *FS) readlink(n *node) (string, error) {
	var disk string
	err := f.at(n, func(d *dir, e names.Entry) (err error) {
		disk, err = readlinkat(d.fd, e.Disk)
		return err
	})
	return disk, err
}

// Long targets of symbolic links are files of their own in the volume's directory, docs/format.md section 8.

// withLongTarget calls fn with the open directory of long targets, and the name of one.
func (f *FS) withLongTarget(id [16]byte, fn func(dir int, name string) error) error {
	dir, err := volume.OpenLinks(f.vol.MetaFd())
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return fn(dir, hex.EncodeToString(id[:]))
}

// putLongTarget stores a sealed target durably and returns the target of the link that stands for it.
func (f *FS) putLongTarget(blob []byte) (disk string, err error) {
	var id [16]byte
	rand.Read(id[:])
	err = f.withLongTarget(id, func(dir int, name string) error {
		fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(fd), name)
		_, err = file.Write(blob)
		err = errors.Join(err, file.Sync(), file.Close())
		if err != nil {
			_ = unix.Unlinkat(dir, name, 0)
		}
		return err
	})
	return names.LongTarget(id), err
}

func (f *FS) longTarget(id [16]byte) (blob []byte, err error) {
	err = f.withLongTarget(id, func(dir int, name string) error {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		blob = make([]byte, 2*unix.PathMax)
		n, err := unix.Pread(fd, blob, 0)
		blob = blob[:max(n, 0)]
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("long target: %w", unix.EIO)
	}
	return blob, nil
}

// longTargetSize is the plaintext length of a link in the long form, 0 if that cannot be told.
func (f *FS) longTargetSize(disk func() (string, error)) int64 {
	target, err := disk()
	if err != nil {
		return 0
	}
	id, ok := names.ParseLongTarget(target)
	if !ok {
		return 0
	}
	var st unix.Stat_t
	err = f.withLongTarget(id, func(dir int, name string) error {
		return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	if err != nil {
		return 0
	}
	return st.Size - names.TargetOverhead
}

// dropLongTarget removes what a link in the long form stands for; any other target is left alone.
func (f *FS) dropLongTarget(disk string) {
	if id, ok := names.ParseLongTarget(disk); ok {
		_ = f.withLongTarget(id, func(dir int, name string) error { return unix.Unlinkat(dir, name, 0) })
	}
}
