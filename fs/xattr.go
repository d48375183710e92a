package fs

import (
	"bytes"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/names"
)

const (
	capabilityName = "security.capability"
	selinuxName    = "security.selinux"
	aclAccessName  = "system.posix_acl_access"
	aclDefaultName = "system.posix_acl_default"
)

// Values of node.attrs. What is known stays true: every change comes through here.
const (
	attrsUnknown = iota
	attrsNone
	attrsSome // or there were some
)

// An xattrCalls reaches the stored attributes of an inode: of the open file fd or, since most of the system calls know no *at form, of what is called disk in the directory fd by a path.
type xattrCalls struct {
	fd   int
	disk string // "" for an open file
}

func (c xattrCalls) get(name string, dst []byte) (int, error) {
	if c.disk == "" {
		return unix.Fgetxattr(c.fd, name, dst)
	}
	return unix.Lgetxattr(procPath(c.fd, c.disk), name, dst)
}

func (c xattrCalls) set(name string, value []byte, flags int) error {
	if c.disk == "" {
		return unix.Fsetxattr(c.fd, name, value, flags)
	}
	return unix.Lsetxattr(procPath(c.fd, c.disk), name, value, flags)
}

func (c xattrCalls) remove(name string) error {
	if c.disk == "" {
		return unix.Fremovexattr(c.fd, name)
	}
	return unix.Lremovexattr(procPath(c.fd, c.disk), name)
}

func (c xattrCalls) list(dst []byte) (int, error) {
	if c.disk == "" {
		return unix.Flistxattr(c.fd, dst)
	}
	return listxattrat(c.fd, c.disk, dst)
}

// xattrs calls fn with the way to n's attributes: through its descriptor if it is open, else through its name. n.mu is held meanwhile.
func (f *FS) xattrs(n *node, fn func(c xattrCalls) error) error {
	if n == nil {
		return unix.ESTALE
	}
	open, err := f.withOpen(n, func(o *openFile) error { return fn(xattrCalls{fd: o.fd}) })
	if open {
		return err
	}
	return f.at(n, func(d *dir, e names.Entry) error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.attrs == attrsUnknown {
			// What is found will be remembered, and another file may have got the name just now; n may have a further one.
			var st unix.Stat_t
			if err := unix.Fstatat(d.fd, e.Disk, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
			if inodeOf(&st) != n.key() {
				return unix.ENOENT
			}
		}
		return fn(xattrCalls{d.fd, e.Disk})
	})
}

// changeXattrs is xattrs for a change.
func (f *FS) changeXattrs(n *node, fn func(c xattrCalls) error) error {
	return f.xattrs(n, func(c xattrCalls) error {
		defer f.journal.Changed(n.key())
		n.attrs = attrsSome
		return fn(c)
	})
}

// bare reports whether n is known to have no extended attributes.
func (n *node) bare() bool {
	if n == nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.attrs == attrsNone
}

// lookForAttrs finds out whether n has attributes, if nobody has looked yet, and reports whether it has none. n.mu is held.
func (n *node) lookForAttrs(c xattrCalls) (none bool) {
	if n.attrs == attrsUnknown {
		n.attrs = attrsSome
		var buf [256]byte
		if m, err := c.list(buf[:]); err == nil && !slices.ContainsFunc(strings.Split(string(buf[:m]), "\x00"), isAttribute) {
			n.attrs = attrsNone
		}
	}
	return n.attrs == attrsNone
}

// isAttribute reports whether a stored attribute is one of a file's, and not one of the volume or of the file system below.
func isAttribute(disk string) bool {
	_, ok := names.IsXattr(disk)
	return ok || isACL(disk)
}

// noAttribute is the error for a name that no attribute can have here: one that ends with its namespace, or in a namespace that there is not.
func noAttribute(name string) error {
	switch name {
	case "user.", "trusted.", "security.":
		return unix.EINVAL
	}
	return unix.EOPNOTSUPP
}

func isACL(name string) bool { return name == aclAccessName || name == aclDefaultName }

// GetXAttr implements [fuse.RawFileSystem]. The kernel asks at every first write (for file capabilities), and ls for every file; most files have
// no attributes at all, which is remembered.
func (f *FS) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	value, err := f.getXattr(f.nodes.get(in.NodeId), name)
	if err == unix.ENODATA && name == selinuxName {
		// As on any file system without labels: programs that want to show them ask once, and not for every file.
		err = unix.EOPNOTSUPP
	}
	if err != nil {
		return 0, status(err)
	}
	return fit(value, dest)
}

func (f *FS) getXattr(n *node, name string) (value []byte, err error) {
	if !isACL(name) && !names.Stores(name) {
		return nil, noAttribute(name)
	}
	if n.bare() {
		return nil, unix.ENODATA
	}
	var x names.Xattr
	stored := false
	err = f.xattrs(n, func(c xattrCalls) (err error) {
		if n.lookForAttrs(c) {
			return unix.ENODATA
		}
		if x, stored = f.names.XattrName(name); !stored {
			x.Disk = name
		}
		value, err = cipherdir.Whole(func(dst []byte) (int, error) { return c.get(x.Disk, dst) })
		return err
	})
	if err != nil || !stored {
		return value, err
	}
	if value, err = f.names.OpenXattr(x, value); err != nil {
		f.fail(n, "read attribute of", err)
	}
	return value, err
}

// fit answers a request for an attribute or a list: an empty dest asks for the size only.
func fit(value, dest []byte) (uint32, fuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	copy(dest, value)
	return uint32(len(value)), fuse.OK
}

// ListXAttr implements [fuse.RawFileSystem]. Attributes that this volume did not seal are left out.
func (f *FS) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	var list bytes.Buffer
	n := f.nodes.get(in.NodeId)
	err := f.xattrs(n, func(c xattrCalls) error {
		if n.lookForAttrs(c) {
			return nil
		}
		raw, err := cipherdir.Whole(c.list)
		if err != nil {
			return err
		}
		for _, disk := range strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00") {
			if full, ok := f.attributeName(c, disk); ok {
				list.WriteString(full + "\x00")
			}
		}
		return nil
	})
	if err != nil {
		return 0, status(err)
	}
	return fit(list.Bytes(), dest)
}

// attributeName returns the plaintext name of a stored attribute, if it is one of ours.
func (f *FS) attributeName(c xattrCalls, disk string) (string, bool) {
	if isACL(disk) {
		return disk, true
	}
	hashed, ok := names.IsXattr(disk)
	if !ok {
		return "", false
	}
	var value []byte
	if hashed {
		var err error
		if value, err = cipherdir.Whole(func(dst []byte) (int, error) { return c.get(disk, dst) }); err != nil {
			return "", false
		}
	}
	full, err := f.names.OpenXattrName(disk, value)
	if err != nil {
		f.log.Error("extended attribute does not authenticate", "attribute", disk, "err", err)
	}
	return full, err == nil
}

// SetXAttr implements [fuse.RawFileSystem].
func (f *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	n := f.nodes.get(in.NodeId)
	if n != nil && n.kind == unix.DT_DIR && name == aclAccessName && closesDir(data) {
		f.holdAll()
	}
	err := f.changeXattrs(n, func(c xattrCalls) error {
		if isACL(name) {
			defer f.aclChanged(n)
			return c.set(name, data, int(in.Flags))
		}
		x, ok := f.names.XattrName(name)
		if !ok {
			return noAttribute(name)
		}
		if name == capabilityName && n.open != nil {
			n.open.killed = false
		}
		return c.set(x.Disk, f.names.SealXattr(x, data), int(in.Flags))
	})
	// The kernel says so of default ACLs, too, which do not change the mode.
	if err == nil && f.tellsACL && name == aclAccessName && in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 {
		err = f.dropSetGID(n)
	}
	return status(err)
}

// closesDir reports whether an ACL in the kernel's form, a version of 4 bytes and entries of 8 in order, keeps the owner out of a directory: the first entry is his, and has permissions in its
// third byte.
func closesDir(acl []byte) bool { return len(acl) > 6 && acl[6]&1 == 0 }

// aclChanged makes inherits look again. n.mu is held.
func (f *FS) aclChanged(n *node) {
	if d := f.dirs.cached(n); d != nil {
		d.acl.Store(aclUnknown)
		f.dirs.release(d)
	}
}

// RemoveXAttr implements [fuse.RawFileSystem].
func (f *FS) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	n := f.nodes.get(in.NodeId)
	return status(f.changeXattrs(n, func(c xattrCalls) error {
		if isACL(name) {
			defer f.aclChanged(n)
			return c.remove(name)
		}
		x, ok := f.names.XattrName(name)
		if !ok {
			return noAttribute(name)
		}
		return c.remove(x.Disk)
	}))
}
