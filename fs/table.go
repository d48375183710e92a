package fs

import (
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

// A node is an inode that the kernel knows, or an ancestor of one.
type node struct {
	id   uint64 // what the kernel calls it
	key  inode
	kind uint32 // S_IFMT bits

	// Guarded by table.mu.
	lookups  uint64 // the kernel's references
	children int    // links that have this node for a parent
	link     link   // a name of the node; no parent: none known
	more     []link // further names of a hard-linked file
	gone     bool   // the last name was removed, or there never was one

	removed *unix.Stat_t // attributes of what was removed and is not open, for those who still have a path to it

	mu    sync.Mutex
	open  *openFile // guarded by mu; nil while the file is not open
	attrs uint8     // whether it has extended attributes, see lookForAttrs; guarded by mu

	prefilled bool // the kernel was given the content, see FS.prefill; guarded by mu

	dir *dir // guarded by dirs.mu; nil while the directory is not held open
}

// table holds the nodes. The kernel's number of a node is never used again, so a generation is not needed.
type table struct {
	mu     sync.Mutex
	nextID uint64
	byID   map[uint64]*node // guarded by mu
	byKey  map[inode]*node  // guarded by mu; without the nodes that are gone
	root   *node
}

func (t *table) init(root *node) {
	t.root = root
	root.id = fuse.FUSE_ROOT_ID
	root.lookups = 1
	t.nextID = fuse.FUSE_ROOT_ID
	t.byID = map[uint64]*node{root.id: root}
	t.byKey = map[inode]*node{root.key: root}
}

// get returns the node that the kernel calls id, nil if there is none.
func (t *table) get(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// find returns the node of an inode, nil if the kernel does not know it.
func (t *table) find(key inode) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byKey[key]
}

// look returns the node of an inode found under a name, after noting the name and one more reference of the kernel's. An empty
// parent means a file without a name.
func (t *table) look(st *unix.Stat_t, at link) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := inodeOf(st)
	n := t.byKey[key]
	if n != nil && n.kind != st.Mode&unix.S_IFMT {
		// The inode number was used again behind our back.
		delete(t.byKey, key)
		n.gone, n = true, nil
	}
	if n == nil {
		t.nextID++
		n = &node{id: t.nextID, key: key, kind: st.Mode & unix.S_IFMT}
		t.byID[n.id] = n
		t.byKey[key] = n
	}
	n.lookups++
	if at.parent != nil {
		t.addLink(n, at)
	}
	return n
}

// addLink notes a name of n. t.mu is held.
func (t *table) addLink(n *node, at link) {
	if n.link == at {
		return
	}
	for _, l := range n.more {
		if l == at {
			return
		}
	}
	at.parent.children++
	switch {
	case n.link.parent == nil:
		n.link = at
	case n.kind == unix.S_IFDIR:
		// A directory has one name; the old one is stale.
		t.unlinkLocked(n, n.link)
		n.link = at
	default:
		n.more = append(n.more, at)
	}
	n.gone = false
}

// unlinkLocked forgets a name of n. t.mu is held.
func (t *table) unlinkLocked(n *node, at link) {
	switch {
	case n.link == at:
		n.link = link{}
		if last := len(n.more) - 1; last >= 0 {
			n.link, n.more = n.more[last], n.more[:last]
		}
	default:
		i := -1
		for j, l := range n.more {
			if l == at {
				i = j
			}
		}
		if i < 0 {
			return
		}
		n.more = append(n.more[:i], n.more[i+1:]...)
	}
	if len(n.more) == 0 {
		n.more = nil
	}
	at.parent.children--
	t.drop(at.parent)
}

// unlinked notes that a name of n is no more; last says that it was the inode's last one.
func (t *table) unlinked(n *node, at link, last bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unlinkLocked(n, at)
	if last {
		n.gone = true
		if t.byKey[n.key] == n {
			delete(t.byKey, n.key)
		}
	}
}

// remember keeps the attributes of what has no name any more.
func (t *table) remember(n *node, st *unix.Stat_t) {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := *st
	kept.Nlink = 0
	n.removed = &kept
}

// remembered returns what remember kept, nil if n has a name.
func (t *table) remembered(n *node) *unix.Stat_t {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.removed
}

// revive makes a file without a name, which has just got one, known by its inode again.
func (t *table) revive(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.gone, n.removed = false, nil
	t.byKey[n.key] = n
}

// nameless reports whether n has lost its last name, or never had one.
func (t *table) nameless(n *node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.link.parent == nil
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

// forget takes back references of the kernel's.
func (t *table) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil {
		return
	}
	n.lookups -= min(lookups, n.lookups)
	t.drop(n)
}

// drop removes n from the table if nothing refers to it, and then its parents likewise. t.mu is held.
func (t *table) drop(n *node) {
	if n.lookups > 0 || n.children > 0 || n == t.root {
		return
	}
	if t.byID[n.id] != n {
		return
	}
	delete(t.byID, n.id)
	if t.byKey[n.key] == n {
		delete(t.byKey, n.key)
	}
	for n.link.parent != nil {
		t.unlinkLocked(n, n.link)
	}
}

// each calls fn for every node.
func (t *table) each(fn func(*node)) {
	t.mu.Lock()
	all := make([]*node, 0, len(t.byID))
	for _, n := range t.byID {
		all = append(all, n)
	}
	t.mu.Unlock()
	for _, n := range all {
		fn(n)
	}
}
