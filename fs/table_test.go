package fs

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newTable returns a table with nothing but a root.
func newTable() *table {
	t := &table{}
	t.init(newNode(&unix.Stat_t{Ino: 2, Mode: unix.S_IFDIR}))
	return t
}

func file(ino uint64) *unix.Stat_t { return &unix.Stat_t{Ino: ino, Mode: unix.S_IFREG} }

func directory(ino uint64) *unix.Stat_t { return &unix.Stat_t{Ino: ino, Mode: unix.S_IFDIR} }

// heap returns the bytes of live objects.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // the first one may leave what finalizers and pools hold
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// An idle inode takes little of the heap, whatever their number: the table grows by steps that do not show. What is forgotten takes nothing.
func TestIdleNodesAreLean(t *testing.T) {
	const most = 125 // bytes, with a name of 20
	table := newTable()
	before := heap()
	n := 0
	for _, until := range []int{50_000, 70_000, 100_000, 140_000} {
		for ; n < until; n++ {
			table.look(file(uint64(1000+n)), link{table.root, fmt.Sprintf("a name such as %05d", n%100_000)})
		}
		each := float64(heap()-before) / float64(n)
		t.Logf("%d nodes: %.1f bytes each", n, each)
		if each > most {
			t.Errorf("each of %d idle nodes takes %.1f bytes, more than %d", n, each, most)
		}
	}
	var ids []uint64
	table.each(func(n *node) { ids = append(ids, n.id) })
	for _, id := range ids {
		table.forget(id, 1)
	}
	// Nobody runs the collector, but whoever forgets very many.
	var m runtime.MemStats
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		runtime.ReadMemStats(&m)
		if m.HeapAlloc < before+8<<20 && m.HeapIdle-m.HeapReleased < 4<<20 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d bytes of the heap are in use, of which %d were before, and %d neither used nor given back", m.HeapAlloc, before, m.HeapIdle-m.HeapReleased)
		}
	}
	if left := int64(heap()) - int64(before); left > 100_000 {
		t.Errorf("%d bytes are left of %d nodes that were forgotten", left, n)
	}
	runtime.KeepAlive(table)
}

// A hard-linked file goes by any of its names, and what was removed by none.
func TestNamesOfANode(t *testing.T) {
	table := newTable()
	dir := table.look(directory(3), link{table.root, "dir"})
	a, b, c := link{table.root, "a"}, link{dir, "b"}, link{table.root, "c"}
	n := table.look(file(4), a)
	for _, at := range []link{b, c, b, a} {
		if table.look(file(4), at) != n {
			t.Fatalf("found by the name %s: another node", at.name)
		}
	}
	want := func(at link) {
		t.Helper()
		if got, ok := table.where(n); got != at || ok != (at.parent != nil) {
			t.Fatalf("the name is %q (%v), want %q", got.name, ok, at.name)
		}
	}
	want(a)
	table.unlinked(n, a)
	want(c)
	table.unlinked(n, link{table.root, "never"})
	want(c)
	table.moved(n, c, a)
	want(b)
	table.unlinked(n, b)
	want(a)
	table.leave(n)
	table.unlinked(n, a)
	table.remember(n, file(4))
	want(link{})
	if table.remembered(n) == nil || table.find(n.key()) != nil || table.get(n.id) != n {
		t.Fatal("what was removed is found by its inode, or not by its number")
	}
	table.named(n, a)
	if table.look(file(4), a) != n || table.remembered(n) != nil {
		t.Fatal("what has a name again is not found by its inode, or its attributes are those of what was removed")
	}
	if table.look(directory(4), b) == n {
		t.Fatal("a directory has the inode number of a file that is no more, and its node")
	}
}

// The attributes of a file that lost the one name that was known are not remembered when it is found by another.
func TestFoundByAnotherName(t *testing.T) {
	table := newTable()
	n := table.look(file(3), link{table.root, "a"})
	table.unlinked(n, link{table.root, "a"})
	kept := file(3)
	kept.Nlink = 1
	table.remember(n, kept)
	if table.look(file(3), link{table.root, "b"}) != n || table.remembered(n) != nil {
		t.Fatal("the file has the attributes of what was removed")
	}
}

// A file that never had a name, and was closed, has left its inode number to others.
func TestNeverNamed(t *testing.T) {
	table := newTable()
	n := table.look(file(3), link{})
	if table.find(n.key()) != n {
		t.Fatal("an open file without a name is not found")
	}
	table.remember(n, file(3))
	if table.look(file(3), link{table.root, "new"}) == n {
		t.Fatal("a new file with the inode number is taken for it")
	}
}

// Nodes are kept while the kernel or a node below refers to them, and then leave nothing behind, whatever still happens to them.
func TestForgottenNodes(t *testing.T) {
	table := newTable()
	dir := table.look(directory(3), link{table.root, "dir"})
	sub := table.look(directory(4), link{dir, "sub"})
	n := table.look(file(5), link{sub, "a"})
	table.look(file(5), link{dir, "b"})
	table.forget(dir.id, 1)
	table.forget(sub.id, 1)
	table.forget(n.id, 1)
	for _, known := range []*node{dir, sub, n} {
		if table.get(known.id) != known || table.find(known.key()) != known {
			t.Fatal("a node is forgotten while it is in use")
		}
	}
	table.forget(n.id, 1)
	table.forget(n.id, 1)
	table.remember(n, file(5))
	table.moved(n, link{sub, "a"}, link{table.root, "c"})
	for _, gone := range []*node{dir, sub, n} {
		if table.get(gone.id) != nil || table.find(gone.key()) != nil {
			t.Fatal("a node is not forgotten")
		}
	}
	if table.root.refs != 1 || len(table.known.lists) != 1 || table.more != nil || table.removed != nil {
		t.Fatalf("what is left: %+v", table)
	}
}

// Nodes are found by number and by inode as in two maps, while the index grows and shrinks at random.
func TestIndexIsTwoMaps(t *testing.T) {
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 0))
		x := newIndex()
		var nodes []*node
		byID, byKey := map[uint64]*node{}, map[inode]*node{}
		used := map[uint64]bool{}
		for _, grow := range []int{90, 10, 60, 0} { // per cent of operations that add
			for range 3000 {
				if r.IntN(100) < grow {
					n := newNode(&unix.Stat_t{Dev: r.Uint64N(3), Ino: r.Uint64N(3000), Mode: unix.S_IFREG})
					if old := byKey[n.key()]; old != nil {
						old.gone = true
					}
					x.add(n)
					if used[n.id] {
						t.Fatalf("seed %d: number %d is used again", seed, n.id)
					}
					used[n.id], byID[n.id], byKey[n.key()] = true, n, n
					nodes = append(nodes, n)
				} else if len(nodes) > 0 {
					i := r.IntN(len(nodes))
					n := nodes[i]
					nodes = slices.Delete(nodes, i, i+1)
					x.remove(n)
					x.remove(n) // again: nothing happens
					delete(byID, n.id)
					if byKey[n.key()] == n {
						delete(byKey, n.key())
					}
				}
			}
			for id := range used {
				if n := x.get(id); n != byID[id] {
					t.Fatalf("seed %d: node %d is %v, want %v", seed, id, n, byID[id])
				}
			}
			for dev := range uint64(3) {
				for ino := range uint64(3000) {
					key := inode{Dev: dev, Ino: ino}
					if n := x.find(key); n != byKey[key] {
						t.Fatalf("seed %d: inode %v is %v, want %v", seed, key, n, byKey[key])
					}
				}
			}
			if got := len(slices.Collect(x.all())); got != len(nodes) {
				t.Fatalf("seed %d: %d nodes, want %d", seed, got, len(nodes))
			}
			if len(x.lists) != len(nodes)+1 || cap(x.lists) > max(4*len(x.lists), 8) {
				t.Fatalf("seed %d: %d lists, room for %d, for %d nodes", seed, len(x.lists), cap(x.lists), len(nodes))
			}
		}
	}
}
