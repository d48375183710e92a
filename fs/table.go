package fs

import (
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/journal"
)

// inode names an inode of the ciphertext directory.
type inode = journal.Inode

func inodeOf(st *unix.Stat_t) inode { return inode{Dev: uint64(st.Dev), Ino: st.Ino} }

// A link is one name of a node.
type link struct {
	parent *node
	name   string // plaintext
}

// A node is an inode that the kernel knows, or an ancestor of one. There may be millions, nearly all of them idle: what few nodes have is kept elsewhere.
type node struct {
	id   uint64 // what the kernel calls it
	ino  uint64
	dev  uint32 // the kernel's device numbers have 32 bits
	kind uint8  // unix.DT_REG and so on

	gone bool // the last name was removed, or is about to be: the number of the inode may be another's; guarded by table.mu

	attrs uint8 // whether it has extended attributes, see lookForAttrs; guarded by mu
	given uint8 // 0: the kernel was not given the content, see FS.prefill, or entries, see FS.changedIn; else one more than there are deferred openers; guarded by mu

	// Guarded by table.mu.
	refs uint64 // the kernel's references, and the links that have this node for a parent; none: the table does not know the node any more
	link link   // a name of the node; no parent: none known
	next *node  // see index

	mu   sync.Mutex
	open *openFile // guarded by mu; nil while the file is not open
}

func newNode(st *unix.Stat_t) *node {
	return &node{ino: st.Ino, dev: uint32(st.Dev), kind: kindOf(st)}
}

func kindOf(st *unix.Stat_t) uint8 { return uint8(st.Mode & unix.S_IFMT >> 12) }

// key names the inode of n.
func (n *node) key() inode { return inode{Dev: uint64(n.dev), Ino: n.ino} }

// table holds the nodes. The kernel's number of a node is never used again, so a generation is not needed.
type table struct {
	root *node

	mu    sync.Mutex
	known index // guarded by mu; all nodes but the root

	// What few nodes have, guarded by mu.
	more    map[*node][]link       // further names of hard-linked files
	removed map[*node]*unix.Stat_t // attributes of what has no known name and is not open, for those who still have a path to it
	targets map[*node]string       // of symbolic links whose names went to something else

	forgotten []*node // see forget; guarded by mu
}

func (t *table) init(root *node) {
	root.id, root.refs = fuse.FUSE_ROOT_ID, 1
	t.root = root
	t.known = newIndex()
}

// get returns the node that the kernel calls id, nil if there is none.
func (t *table) get(id uint64) *node {
	if id == fuse.FUSE_ROOT_ID {
		return t.root
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known.get(id)
}

// find returns the node of an inode, nil if the kernel does not know it.
func (t *table) find(key inode) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known.find(key)
}

// look returns the node of an inode found under a name, after noting the name and one more reference of the kernel's. An empty
// parent means a file without a name.
func (t *table) look(st *unix.Stat_t, at link) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.known.find(inodeOf(st))
	if n != nil && n.kind != kindOf(st) {
		// The inode number was used again behind our back.
		n.gone, n = true, nil
	}
	if n == nil {
		n = newNode(st)
		t.known.add(n)
	}
	n.refs++
	if at.parent != nil {
		t.addLink(n, at)
	}
	return n
}

// addLink notes a name of n. t.mu is held.
func (t *table) addLink(n *node, at link) {
	if n.refs == 0 || n.link == at || slices.Contains(t.more[n], at) {
		return
	}
	at.parent.refs++
	switch {
	case n.link.parent == nil:
		n.link = at
	case n.kind == unix.DT_DIR:
		// A directory has one name; the old one is stale.
		t.unlinkLocked(n, n.link)
		n.link = at
	default:
		put(&t.more, n, append(t.more[n], at))
	}
	n.gone = false
	drop(&t.removed, n)
	drop(&t.targets, n)
}

// unlinkLocked forgets a name of n. t.mu is held.
func (t *table) unlinkLocked(n *node, at link) {
	more := t.more[n]
	last := len(more) - 1
	i := slices.Index(more, at)
	switch {
	case n.link == at && last < 0:
		n.link = link{}
	case n.link == at:
		n.link, i = more[last], last
	case i < 0:
		return
	}
	if last > 0 {
		put(&t.more, n, slices.Delete(more, i, i+1))
	} else if last == 0 {
		drop(&t.more, n)
	}
	t.release(at.parent, 1)
}

// unlinked notes that a name of n is no more.
func (t *table) unlinked(n *node, at link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unlinkLocked(n, at)
}

// leave says that n is about to lose its last name: from then on the file system below may give its inode number to another file, which is not to be taken for n.
func (t *table) leave(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.gone = true
}

// stay takes back what leave and keepTarget said.
func (t *table) stay(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.gone = false
	drop(&t.removed, n)
	drop(&t.targets, n)
}

// keepTarget keeps the target and the attributes of a symbolic link that is about to lose its name.
func (t *table) keepTarget(n *node, target string, st *unix.Stat_t) {
	t.remember(n, st)
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.refs > 0 {
		put(&t.targets, n, target)
	}
}

// keptTarget returns what keepTarget kept; ok is false if nothing is.
func (t *table) keptTarget(n *node) (target string, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	target, ok = t.targets[n]
	return target, ok
}

// remember keeps the attributes of what has no name that is known, and is not open.
func (t *table) remember(n *node, st *unix.Stat_t) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.refs == 0 {
		return
	}
	kept := *st
	put(&t.removed, n, &kept)
	n.gone = st.Nlink == 0
}

// remembered returns what remember kept, nil if nothing is.
func (t *table) remembered(n *node) *unix.Stat_t {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.removed[n]
}

// named notes a name that n got.
func (t *table) named(n *node, at link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addLink(n, at)
}

// nameless reports whether n has lost its last name, or none is known.
func (t *table) nameless(n *node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.gone || n.link.parent == nil
}

// moved notes that n has another name than it had.
func (t *table) moved(n *node, from, to link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unlinkLocked(n, from)
	t.addLink(n, to)
}

// where returns a name of n; ok is false if none is known.
func (t *table) where(n *node) (at link, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.link, n.link.parent != nil
}

// forget takes back references of the kernel's, and returns what is forgotten since it was called last and may be held open: directories, and what was removed.
func (t *table) forget(id, lookups uint64) (opened []*node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.known.get(id); n != nil {
		t.release(n, lookups)
	}
	opened, t.forgotten = t.forgotten, nil
	return opened
}

// release takes back references to n. With the last, n is forgotten, and then what nothing else refers to above it. t.mu is held.
func (t *table) release(n *node, refs uint64) {
	if n.refs -= min(refs, n.refs); n.refs > 0 {
		return
	}
	t.known.remove(n)
	if n.kind == unix.DT_DIR || n.gone {
		t.forgotten = append(t.forgotten, n)
	}
	drop(&t.removed, n)
	drop(&t.targets, n)
	for n.link.parent != nil {
		t.unlinkLocked(n, n.link)
	}
}

// files returns the kernel's numbers of some files that it knows.
func (t *table) files() (ids []uint64) {
	const some = 8
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := range t.known.all() {
		if n.kind != unix.DT_REG {
			continue
		}
		if ids = append(ids, n.id); len(ids) == some {
			break
		}
	}
	return ids
}

// each calls fn for every node but the root.
func (t *table) each(fn func(*node)) {
	t.mu.Lock()
	all := slices.Collect(t.known.all())
	t.mu.Unlock()
	for _, n := range all {
		fn(n)
	}
}

// put sets what few nodes have.
func put[V any](m *map[*node]V, n *node, v V) {
	if *m == nil {
		*m = map[*node]V{}
	}
	(*m)[n] = v
}

// drop takes it from n. A map does not shrink, so that of the last one is given up.
func drop[V any](m *map[*node]V, n *node) {
	delete(*m, n)
	if len(*m) == 0 {
		*m = nil
	}
}
