package fs

import (
	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kmsfs/kmsfs/names"
)

// SetAttr implements [fuse.RawFileSystem]: owner, mode, size and times, in that order, because a change of owner clears
// set-ID bits and a change of size sets times.
func (f *FS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	err := f.setattr(cancel, n, in)
	f.journal.Changed(n.key())
	if err != nil {
		return f.fail(n, "change", err)
	}
	return f.getattr(n, out)
}

func (f *FS) setattr(cancel <-chan struct{}, n *node, in *fuse.SetAttrIn) error {
	uid, setUID := in.GetUID()
	gid, setGID := in.GetGID()
	if setUID || setGID {
		if err := f.on(n, func(fd int, disk string, flags int) error {
			return unix.Fchownat(fd, disk, int(int32(uid)), int(int32(gid)), flags)
		}); err != nil {
			return err
		}
		if err := f.dropCapability(n); err != nil {
			return err
		}
	}
	if mode, ok := in.GetMode(); ok {
		if n.kind == unix.DT_DIR && mode&unix.S_IXUSR == 0 {
			f.holdAll()
		}
		if err := f.on(n, func(fd int, disk string, _ int) error { return chmodat(fd, disk, mode) }); err != nil {
			return err
		}
	}
	if size, ok := in.GetSize(); ok {
		if int64(size) < 0 {
			return unix.EFBIG
		}
		err := f.using(cancel, n, true, func(o *openFile) error {
			if err := f.killPrivileges(n, in.Valid&fuse.FATTR_KILL_SUIDGID != 0); err != nil {
				return err
			}
			if size > 0 {
				if err := o.prepare(); err != nil {
					return err
				}
			}
			n.ungiven() // a page that it drops, and that is written in part next, it has not
			if err := o.data.Truncate(int64(size)); err != nil || in.Valid&fuse.FATTR_FH != 0 && in.Fh&uncached == 0 {
				return err
			}
			return o.save() // no close will follow, should only readers have it open
		})
		if err != nil {
			return err
		}
	}
	return f.setTimes(n, in)
}

func (f *FS) setTimes(n *node, in *fuse.SetAttrIn) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	switch {
	case in.Valid&fuse.FATTR_ATIME_NOW != 0:
		times[0].Nsec = unix.UTIME_NOW
	case in.Valid&fuse.FATTR_ATIME != 0:
		times[0] = unix.Timespec{Sec: int64(in.Atime), Nsec: int64(in.Atimensec)}
	}
	switch {
	case in.Valid&fuse.FATTR_MTIME_NOW != 0:
		times[1].Nsec = unix.UTIME_NOW
	case in.Valid&fuse.FATTR_MTIME != 0:
		times[1] = unix.Timespec{Sec: int64(in.Mtime), Nsec: int64(in.Mtimensec)}
	}
	if times[0].Nsec == unix.UTIME_OMIT && times[1].Nsec == unix.UTIME_OMIT {
		return nil
	}
	return f.on(n, func(fd int, disk string, flags int) error {
		return f.journal.Times(n.key(), func() error {
			if disk == "" {
				return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(fd, ""), times, 0)
			}
			return unix.UtimesNanoAt(fd, disk, times, flags)
		})
	})
}

// on calls fn with what *at calls need to reach n: its descriptor, an empty name and AT_EMPTY_PATH if it is open, else a directory, a
// name and AT_SYMLINK_NOFOLLOW.
func (f *FS) on(n *node, fn func(fd int, disk string, flags int) error) error {
	open, err := f.withOpen(n, func(o *openFile) error { return fn(o.fd, "", unix.AT_EMPTY_PATH) })
	if open {
		return err
	}
	return f.at(n, func(d *dir, e names.Entry) error { return fn(d.fd, e.Disk, unix.AT_SYMLINK_NOFOLLOW) })
}

// dropSetGID takes the set-group-ID bit away from n, as an ACL does that is set by somebody who is not in its group.
func (f *FS) dropSetGID(n *node) error {
	defer f.journal.Changed(n.key())
	return f.on(n, func(fd int, disk string, flags int) error {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, disk, &st, flags); err != nil || st.Mode&unix.S_ISGID == 0 {
			return err
		}
		return chmodat(fd, disk, st.Mode&07777&^unix.S_ISGID)
	})
}

// dropCapability removes the file capabilities of n, as a change of owner does.
func (f *FS) dropCapability(n *node) error {
	if n.kind != unix.DT_REG || n.bare() {
		return nil
	}
	x, ok := f.names.XattrName(capabilityName)
	if !ok {
		return nil
	}
	err := f.xattrs(n, func(c xattrCalls) error { return c.remove(x.Disk) })
	if err == unix.ENODATA || err == unix.EOPNOTSUPP || err == unix.EPERM {
		return nil
	}
	return err
}
