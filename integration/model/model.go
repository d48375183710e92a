// Package model predicts what a volume holds after a sequence of operations, and finds the shortest sequence that proves it wrong.
//
// The prediction is a tree of []byte, without a file system beneath it. An operation is a line of text, so a failing run can be cut down,
// printed and run again: see [Script]. After a kill of the daemon, what was closed or fsynced must be there, each byte as it was or as a
// later write made it; names and their changes are there in any case.
package model

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A Volume is what a script runs on: made anew for each run.
type Volume interface {
	Mount() (dir string, err error)
	Unmount() error
	Kill() error // the daemon, at once; Mount must then work without further ado
	Close() error
}

// Kinds of nodes.
const (
	file      = 'f'
	directory = 'd'
	symlink   = 'l'
)

// A node is a predicted inode.
type node struct {
	kind    byte
	data    []byte           // of a file
	target  string           // of a symbolic link
	entries map[string]*node // of a directory
	links   int              // names
	attr    string           // value of user.model, "" if it has none
	mode    uint32           // permission bits

	// past holds the contents that the file had since it was last closed or fsynced, that one included; it is empty if there were no
	// changes since.
	past [][]byte
}

// change replaces the content of a file by what edit makes of it.
func (n *node) change(edit func(data []byte) []byte) {
	now := edit(bytes.Clone(n.data))
	n.past = append(n.past, n.data)
	n.data = now
}

// write is an edit that puts p at off.
func write(p []byte, off int64) func([]byte) []byte {
	return func(data []byte) []byte {
		if end := off + int64(len(p)); end > int64(len(data)) {
			data = append(data, make([]byte, end-int64(len(data)))...)
		}
		copy(data[off:], p)
		return data
	}
}

// resize is an edit that changes the size to n bytes.
func resize(n int64) func([]byte) []byte {
	return func(data []byte) []byte {
		if n <= int64(len(data)) {
			return data[:n]
		}
		return append(data, make([]byte, n-int64(len(data)))...)
	}
}

// durable notes that the content must survive from now on.
func (n *node) durable() { n.past = nil }

// survived checks the content of a file after a failure: each byte as it was at the last fsync or close, or as it became later.
func (n *node) survived(got []byte) error {
	versions := append(n.past, n.data)
	if !sizeSurvived(versions, len(got)) {
		return fmt.Errorf("%d bytes after a failure; it had %s", len(got), sizes(versions))
	}
	for i, b := range got {
		if !slices.ContainsFunc(versions, func(v []byte) bool {
			return i < len(v) && v[i] == b || i >= len(v) && b == 0
		}) {
			return fmt.Errorf("byte %d of %d is %#02x after a failure, which it was not since the last fsync or close", i, len(got), b)
		}
	}
	return nil
}

// sizeSurvived reports whether a file may have size bytes after a failure: as many as some version, or as a write had reached that was
// under way; it comes in requests of at most 1 MiB, which end with a page.
func sizeSurvived(versions [][]byte, size int) bool {
	const page, request = 4096, 1 << 20
	for i, v := range versions {
		if len(v) == size {
			return true
		}
		if i > 0 && size%page == 0 && len(versions[i-1]) < size && size < len(v) && len(v) > request {
			return true
		}
	}
	return false
}

func sizes(versions [][]byte) string {
	seen := map[int]bool{}
	for _, v := range versions {
		seen[len(v)] = true
	}
	return strings.Trim(fmt.Sprint(slices.Sorted(maps.Keys(seen))), "[]")
}

// A handle is an open file.
type handle struct {
	node                *node
	fd                  int
	read, write, append bool
	sync                bool // every write is durable when it returns
}

const handleCount = 8

// A world is the predicted volume.
type world struct {
	root    *node
	handles [handleCount]*handle
}

func newWorld() *world {
	return &world{root: &node{kind: directory, entries: map[string]*node{}, links: 1}}
}

// A place is where a path leads: its directory, and what has its last name there, if anything.
type place struct {
	dir  *node
	name string
	node *node
}

// find follows a path. errno names what is wrong with it, "" if its directory is there.
func (w *world) find(path string) (p place, errno string) {
	parts := strings.Split(path, "/")
	dir := w.root
	for _, name := range parts[:len(parts)-1] {
		next := dir.entries[name]
		switch {
		case next == nil:
			return p, "ENOENT"
		case next.kind == symlink:
			return p, "ENOENT" // targets lead nowhere
		case next.kind != directory:
			return p, "ENOTDIR"
		}
		dir = next
	}
	name := parts[len(parts)-1]
	return place{dir, name, dir.entries[name]}, ""
}

// put gives n a name.
func (p place) put(n *node) {
	p.dir.entries[p.name] = n
	n.links++
}

// remove takes the name away.
func (p place) remove() {
	delete(p.dir.entries, p.name)
	p.node.links--
}

// within reports whether n is dir or in the tree below it.
func within(n, dir *node) bool {
	if n == dir {
		return true
	}
	for _, e := range dir.entries {
		if e.kind == directory && within(n, e) {
			return true
		}
	}
	return false
}

// isOpen reports whether a handle can change the file, which then is not closed.
func (w *world) isOpen(n *node) bool {
	return slices.ContainsFunc(w.handles[:], func(h *handle) bool { return h != nil && h.node == n && h.write })
}

// walk calls fn for every name, parents first.
func (w *world) walk(fn func(path string, n *node)) {
	var visit func(prefix string, dir *node)
	visit = func(prefix string, dir *node) {
		for _, name := range slices.Sorted(maps.Keys(dir.entries)) {
			n := dir.entries[name]
			fn(prefix+name, n)
			if n.kind == directory {
				visit(prefix+name+"/", n)
			}
		}
	}
	visit("", w.root)
}
