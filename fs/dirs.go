package fs

import (
	"container/list"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/names"
)

// maxDirs is how many directories are held open at once beyond those in use.
const maxDirs = 2048

// A dir is a directory held open.
type dir struct {
	node *node
	fd   int      // O_PATH: for *at calls only
	id   [16]byte // directory ID, docs/format.md section 7.1; unused with plaintext names

	acl atomic.Int32 // whether it has a default ACL: see FS.inherits

	refs int           // guarded by dirs.mu
	elem *list.Element // in dirs.lru; guarded by dirs.mu; nil when dropped from the cache
}

// dirs caches open directories, the least recently used last.
type dirs struct {
	mu   sync.Mutex
	open map[*node]*dir // guarded by mu
	lru  list.List      // of *dir, all of open but the root; guarded by mu
}

// openRoot makes the root node and holds its directory open for good.
func (f *FS) openRoot() error {
	var st unix.Stat_t
	if err := unix.Fstat(f.vol.RootFd(), &st); err != nil {
		return fmt.Errorf("stat %s: %w", f.vol.Dir(), err)
	}
	fd, err := unix.FcntlInt(uintptr(f.vol.RootFd()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", f.vol.Dir(), err)
	}
	root := newNode(&st)
	f.nodes.init(root)
	f.dirs.open = map[*node]*dir{root: {node: root, fd: fd, id: f.vol.Header().FileID, refs: 1}}
	return nil
}

// dir returns the directory n, held open until release is called.
func (f *FS) dir(n *node) (*dir, error) {
	if n == nil {
		return nil, unix.ESTALE
	}
	if n.kind != unix.DT_DIR {
		return nil, unix.ENOTDIR
	}
	if d := f.dirs.cached(n); d != nil {
		return d, nil
	}
	at, ok := f.nodes.where(n)
	if !ok {
		return nil, unix.ESTALE // removed while in use
	}
	parent, err := f.dir(at.parent)
	if err != nil {
		return nil, err
	}
	defer f.dirs.release(parent)
	e, err := f.entry(parent, at.name)
	if err != nil {
		return nil, err
	}
	d, err := f.openDir(parent.fd, e.Disk, n)
	if err != nil {
		return nil, err
	}
	return f.dirs.add(d), nil
}

// openDir opens the directory called disk in the directory parent, and reads its ID.
func (f *FS) openDir(parent int, disk string, n *node) (*dir, error) {
	fd, err := unix.Openat(parent, disk, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if inodeOf(&st) != n.key() {
		unix.Close(fd)
		return nil, unix.ESTALE // another directory was put in its place
	}
	d := &dir{node: n, fd: fd}
	if !f.plain {
		if d.id, err = f.directoryID(fd); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	return d, nil
}

// directoryID returns the ID of an open directory: from either of its two links, mending the other; a new
// one if there is neither link nor entry.
func (f *FS) directoryID(fd int) ([16]byte, error) {
	var broken []string
	var id [16]byte
	found := false
	var first error
	for _, name := range []string{names.DirLink, names.DirLinkCopy} {
		target, err := readlinkat(fd, name)
		var got [16]byte
		if err == nil {
			got, err = f.names.OpenDirID(target)
		}
		switch {
		case err != nil:
			broken = append(broken, name)
			if first == nil || !errors.Is(err, unix.ENOENT) {
				first = err
			}
		case !found:
			id, found = got, true
		}
	}
	if !found {
		switch empty, err := f.isEmpty(fd); {
		case err != nil:
			return id, err
		case !empty:
			return id, fmt.Errorf("%w: directory ID lost: %v", unix.EIO, first)
		}
		id = names.NewDirID()
	}
	if len(broken) > 0 && !f.readOnly {
		for _, name := range broken {
			_ = unix.Unlinkat(fd, name, 0)
		}
		if err := f.writeDirID(fd, id, broken...); err != nil {
			return id, err
		}
	}
	return id, nil
}

// writeDirID stores a directory's ID in it.
func (f *FS) writeDirID(fd int, id [16]byte, links ...string) error {
	for _, name := range links {
		if err := unix.Symlinkat(f.names.SealDirID(id), fd, name); err != nil {
			return err
		}
	}
	return nil
}

// entry returns how name is stored in d. The root of a volume with plaintext names hides the volume's own directory.
func (f *FS) entry(d *dir, name string) (names.Entry, error) {
	if !f.plain {
		return f.names.Name(d.id, name)
	}
	if f.hidden(d.node, name) {
		return names.Entry{}, unix.EPERM
	}
	if len(name) > unix.NAME_MAX {
		return names.Entry{}, unix.ENAMETOOLONG
	}
	return names.Entry{Disk: name}, nil
}

// cached returns n's directory if it is held open.
func (c *dirs) cached(n *node) *dir {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.open[n]
	if d == nil {
		return nil
	}
	d.refs++
	if d.elem != nil {
		c.lru.MoveToFront(d.elem)
	}
	return d
}

// add puts d into the cache; if the directory is there already, it closes d and returns that one.
func (c *dirs) add(d *dir) *dir {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have := c.open[d.node]; have != nil {
		unix.Close(d.fd)
		have.refs++
		return have
	}
	d.refs = 1
	c.open[d.node] = d
	d.elem = c.lru.PushFront(d)
	for e := c.lru.Back(); e != nil && c.lru.Len() > maxDirs; {
		old := e.Value.(*dir)
		e = e.Prev()
		if old.refs == 0 {
			c.dropLocked(old)
		}
	}
	return d
}

// dropLocked takes d out of the cache, and closes it if nobody uses it. c.mu is held.
func (c *dirs) dropLocked(d *dir) {
	if d.elem == nil {
		return
	}
	c.lru.Remove(d.elem)
	d.elem = nil
	delete(c.open, d.node)
	if d.refs == 0 {
		unix.Close(d.fd)
	}
}

// release says that the caller no longer uses d.
func (c *dirs) release(d *dir) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d.refs--
	if d.refs == 0 && d.elem == nil {
		unix.Close(d.fd)
	}
}

// closeDir closes what is held open of a directory that was removed or forgotten.
func (f *FS) closeDir(n *node) {
	f.dirs.remove(n)
	f.listings.drop(n)
}

// remove takes a directory out of the cache.
func (c *dirs) remove(n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.open[n]; d != nil {
		c.dropLocked(d)
	}
}

func (c *dirs) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.lru.Front(); e != nil; e = c.lru.Front() {
		c.dropLocked(e.Value.(*dir))
	}
}

// readlinkat reads a symbolic link of any length.
func readlinkat(fd int, name string) (string, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Readlinkat(fd, name, buf)
		if err != nil {
			return "", err
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
		buf = make([]byte, 2*len(buf))
	}
}
