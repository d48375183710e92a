package fsck

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/names"
)

// lostName stands for a name that cannot be told in a plaintext path.
const lostName = "?"

// A place is where something is: its ciphertext path and its plaintext path.
type place struct {
	sealed, plain string
	suspect       bool // a file whose first write a crash may have torn
}

func (p place) child(disk, name string) place {
	return place{sealed: filepath.Join(p.sealed, disk), plain: path.Join(p.plain, name)}
}

func (p place) fault(kind Kind, cause string) Fault {
	f := Fault{Kind: kind, Ciphertext: p.sealed, Plaintext: p.plain, Cause: cause}
	if p.suspect && (kind == Header || kind == Content || kind == HoleMap) {
		f.Kind, f.Harmless = Leftover, true
		f.Cause = "a crash interrupted the first write to this file, which nobody had synced; it reads as empty: " + cause
	}
	return f
}

// unreadable reports that the storage below refuses.
func (c *checker) unreadable(at place, err error) {
	c.fault(at.fault(Unreadable, "not checked: "+err.Error()), nil)
}

// A directory is an open directory.
type directory struct {
	f     *os.File
	id    header.ID
	known bool // its ID is
	root  bool
	at    place
}

// directory checks everything in d, and closes it.
func (c *checker) directory(d *directory) {
	c.count(&c.report.Directories)
	var children sync.WaitGroup
	defer d.f.Close()
	defer children.Wait()
	err := cipherdir.Each(d.f, func(e os.DirEntry) error {
		disk := e.Name()
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if d.root && !c.v.InTree(disk) {
			return nil
		}
		children.Add(1)
		one := func() error {
			defer children.Done()
			c.entry(d, disk)
			return nil
		}
		if !c.group.TryGo(one) {
			_ = one()
		}
		return nil
	})
	if err != nil && c.ctx.Err() == nil {
		c.unreadable(d.at, err)
	}
}

// entry checks one entry of d.
func (c *checker) entry(d *directory, disk string) {
	if !c.plain && names.IsSide(disk) {
		c.side(d, disk)
		return
	}
	at := d.at.child(disk, c.name(d, disk))
	st, err := lstat(d.f, disk)
	if err == unix.ENOENT {
		return
	} else if err != nil {
		c.unreadable(at, err)
		return
	}
	c.attributes(d.f, disk, at)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		sub, err := cipherdir.OpenDir(int(d.f.Fd()), disk)
		if err != nil {
			c.count(&c.report.Directories)
			c.unreadable(at, err)
			return
		}
		child := &directory{f: sub, at: at}
		c.directoryID(child)
		c.directory(child)
	case unix.S_IFREG:
		c.count(&c.report.Files)
		if st.Nlink > 1 && !c.first(c.inodes, inode{st.Dev, st.Ino}) {
			return
		}
		c.file(d.f, disk, at)
	case unix.S_IFLNK:
		c.count(&c.report.Links)
		c.link(d.f, disk, at)
	default:
		c.count(&c.report.Others)
	}
}

// first reports whether an inode is new, and notes it.
func (c *checker) first(seen map[inode]bool, i inode) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := seen[i]
	seen[i] = true
	return !old
}

// name checks the stored name of an entry and returns the plaintext one, or a question mark.
func (c *checker) name(d *directory, disk string) string {
	switch {
	case c.plain:
		return disk
	case !d.known:
		return lostName // the fault is the directory's
	case names.IsLong(disk):
		return c.longName(d, disk)
	}
	name, err := c.names.Open(d.id, disk)
	if err != nil {
		c.fault(d.at.child(disk, lostName).fault(Name, "name does not authenticate: changed, or moved here from another directory or volume"), nil)
		return lostName
	}
	return c.onlySpelling(d, disk, name)
}

// onlySpelling refuses a name in the long form that has a short one.
func (c *checker) onlySpelling(d *directory, disk, name string) string {
	if e, err := c.names.Name(d.id, name); err != nil || e.Disk != disk {
		c.fault(d.at.child(disk, name).fault(Name, "name is not stored the way it should be: no look-up finds it"), nil)
	}
	return name
}

// longName is name for an entry whose two side links tell its name. One of them is enough to mend the other.
func (c *checker) longName(d *directory, disk string) string {
	one, two := names.SideLinks(disk)
	var name, sound string
	bad := make(map[string]error)
	for _, side := range []string{one, two} {
		sealed, err := readlink(d.f, side)
		var got string
		if err == nil {
			got, err = c.names.OpenLong(d.id, disk, sealed)
		}
		if err != nil {
			bad[side] = err
			continue
		}
		name, sound = got, sealed
	}
	if sound == "" {
		c.fault(d.at.child(disk, lostName).fault(Name, "both links that tell this long name are lost or changed"), nil)
		return lostName
	}
	for side, err := range bad {
		at := d.at.child(disk, name)
		at.sealed = filepath.Join(d.at.sealed, side)
		c.fault(at.fault(SideLink, missing(err)+"; its twin is sound"), func() error { return relink(d.f, side, sound) })
	}
	return c.onlySpelling(d, disk, name)
}

// missing says how a link is damaged.
func missing(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT):
		return "missing"
	case errors.Is(err, unix.EINVAL):
		return "not a symbolic link"
	case errors.Is(err, names.ErrAuth):
		return "does not authenticate: changed, or from elsewhere"
	}
	return err.Error()
}

// relink puts a symbolic link in the place of whatever is there, unless that is a directory, and makes it durable.
func relink(dir *os.File, name, target string) error {
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && err != unix.ENOENT {
		return err
	}
	if err := unix.Symlinkat(target, int(dir.Fd()), name); err != nil {
		return err
	}
	return dir.Sync()
}

// side checks a side link of a long name: it must belong to an entry. Those of the directory itself were checked before.
func (c *checker) side(d *directory, disk string) {
	if disk == names.DirLink || disk == names.DirLinkCopy {
		return
	}
	entry, ok := names.SideOf(disk)
	if !ok {
		return
	}
	if _, err := lstat(d.f, entry); err != unix.ENOENT {
		return
	}
	f := d.at.child(disk, "").fault(Leftover, "the entry whose name it tells is gone: a crash came between, or the entry was removed from outside")
	f.Harmless = true
	c.fault(f, func() error { return unix.Unlinkat(int(d.f.Fd()), disk, 0) })
}

// directoryID finds out d's ID from its two links, each of which mends the other.
func (c *checker) directoryID(d *directory) {
	if c.plain {
		d.known = true
		return
	}
	type twin struct {
		name string
		id   header.ID
		err  error
	}
	twins := []twin{{name: names.DirLink}, {name: names.DirLinkCopy}}
	for i := range twins {
		t := &twins[i]
		var target string
		if target, t.err = readlink(d.f, t.name); t.err == nil {
			var id [16]byte
			id, t.err = c.names.OpenDirID(target)
			t.id = id
		}
	}
	a, b := twins[0], twins[1]
	empty := c.isEmpty(d)
	unsure := false
	if a.err == nil && b.err == nil && a.id != b.id {
		// Both are this volume's; one was brought from another directory. The entries tell which, unless they were brought from both.
		byA, byB := c.opensNames(d, a.id), c.opensNames(d, b.id)
		if byB && !byA {
			a, b = b, a
		}
		b.err = fmt.Errorf("%w: the ID of another directory", names.ErrAuth)
		unsure = byA == byB && !empty
	}
	if a.err != nil {
		a, b = b, a
	}
	switch {
	case a.err != nil && empty:
		f := d.at.fault(Leftover, "an empty directory without an ID, as a crash during mkdir leaves it; the next mount gives it one")
		f.Harmless = true
		c.fault(f, nil)
		return
	case a.err != nil:
		c.fault(d.at.fault(DirectoryID, "both links that hold the directory's ID are lost or changed: the names in it cannot be told"), nil)
		return
	case unsure:
		c.fault(d.at.fault(DirectoryID, "the two links hold the IDs of two directories, and the entries do not tell which is right; remove the wrong one of "+a.name+" and "+b.name), nil)
	case b.err != nil:
		at := place{sealed: filepath.Join(d.at.sealed, b.name), plain: d.at.plain}
		kind, harmless := DirectoryID, empty && errors.Is(b.err, unix.ENOENT)
		if harmless {
			kind = Leftover
		}
		f := at.fault(kind, missing(b.err)+"; its twin is sound")
		f.Harmless = harmless
		c.fault(f, func() error { return relink(d.f, b.name, c.names.SealDirID(a.id)) })
	}
	d.id, d.known = a.id, true
	c.mu.Lock()
	again := c.ids[d.id]
	c.ids[d.id] = true
	c.mu.Unlock()
	if again {
		c.fault(d.at.fault(DirectoryID, "another directory has the same ID: one is a copy of the other"), nil)
	}
}

// errStop ends a listing early.
var errStop = errors.New("stop")

// isEmpty reports whether a directory has no entry but its own links.
func (c *checker) isEmpty(d *directory) bool {
	err := cipherdir.Each(d.f, func(e os.DirEntry) error {
		if names.IsSide(e.Name()) {
			return nil
		}
		return errStop
	})
	return err == nil
}

// opensNames reports whether an ID opens a name in the directory.
func (c *checker) opensNames(d *directory, id header.ID) bool {
	err := cipherdir.Each(d.f, func(e os.DirEntry) error {
		disk := e.Name()
		var err error
		switch {
		case names.IsSide(disk):
			return nil
		case names.IsLong(disk):
			side, _ := names.SideLinks(disk)
			var sealed string
			if sealed, err = readlink(d.f, side); err == nil {
				_, err = c.names.OpenLong(id, disk, sealed)
			}
		default:
			_, err = c.names.Open(id, disk)
		}
		if err == nil {
			return errStop
		}
		return nil
	})
	return errors.Is(err, errStop)
}
