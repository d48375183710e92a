package fs

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

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

// A million idle inodes take a million times this many bytes of the heap, whatever their number is: the table grows by steps that do not show.
func TestIdleNodesAreLean(t *testing.T) {
	const most = 125 // with names of 20 bytes
	table := newTable()
	before := heap()
	n := 0
	for _, until := range []int{50_000, 70_000, 100_000, 140_000} {
		for ; n < until; n++ {
			table.look(file(uint64(1000+n)), link{table.root, fmt.Sprintf("name of 20 bytes %03d", n%1000)})
		}
		each := float64(heap()-before) / float64(n)
		t.Logf("%d nodes: %.1f bytes each", n, each)
		if each > most {
			t.Errorf("an idle node of %d takes %.1f bytes, more than %d", n, each, most)
		}
	}
	ids := ids(table)
	runtime.KeepAlive(&ids)
	for _, id := range ids {
		table.forget(id, 1)
	}
	ids = nil
	if left := int64(heap()) - int64(before); left > 100_000 {
		t.Errorf("%d bytes are left of %d nodes that were forgotten", left, n)
	}
	runtime.KeepAlive(table)
}

func ids(t *table) (ids []uint64) {
	t.each(func(n *node) { ids = append(ids, n.id) })
	return ids
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
