package fs

import (
	"hash/maphash"
	"iter"
	"math/bits"
	"runtime/debug"
	"slices"
)

// hashBits is how much of a node's number is the hash of its inode. What is left to the sequence number lasts for 10^12 nodes; the hash, for lists that stay short, for 16 million at a time.
const hashBits = 24

const (
	// manyNodes is how many nodes there must have been for memory to be given back when most are forgotten: about 7 MB.
	manyNodes = 1 << 16
	// fewNodes is how many may be left when memory is given back for the last time.
	fewNodes = manyNodes >> 10
)

// An index finds nodes by the kernel's numbers and by their inodes. One table serves both, because the number that it gives a node ends with the hash of the inode.
//
// It is a table of lists, one more than there are nodes, and grows and shrinks by one list at a time (linear hashing): no request waits until a million nodes have found new
// places, and what is forgotten takes no memory.
type index struct {
	seed  maphash.Seed
	last  uint64  // sequence number of the node that was added last
	lists []*node // linked by node.next
	most  int     // how many nodes there were since there were few
}

func newIndex() index { return index{seed: maphash.MakeSeed(), lists: make([]*node, 1)} }

func (x *index) hash(key inode) uint64 { return maphash.Comparable(x.seed, key) % (1 << hashBits) }

// list returns the list of the nodes whose numbers, or hashes, are such as id.
func (x *index) list(id uint64) **node {
	last := uint64(len(x.lists) - 1)
	i := id % (1 << min(bits.Len64(last), hashBits))
	if i > last {
		i = lower(i) // not split yet
	}
	return &x.lists[i]
}

// lower returns the list from which list i was split.
func lower(i uint64) uint64 { return i &^ (1 << (bits.Len64(i) - 1)) }

// get returns the node that the kernel calls id, nil if there is none.
func (x *index) get(id uint64) *node {
	n := *x.list(id)
	for n != nil && n.id != id {
		n = n.next
	}
	return n
}

// find returns the node of an inode, nil if there is none. Those that are gone do not count.
func (x *index) find(key inode) *node {
	n := *x.list(x.hash(key))
	for n != nil && (n.gone || n.key() != key) {
		n = n.next
	}
	return n
}

// add gives n a number, and keeps n.
func (x *index) add(n *node) {
	x.last++
	n.id = x.last<<hashBits | x.hash(n.key())
	x.lists = append(x.lists, nil)
	split := &x.lists[lower(uint64(len(x.lists)-1))]
	rest := *split
	*split = nil
	x.putAll(rest)
	x.putAll(n)
}

// putAll puts what was a list into the lists where it belongs now.
func (x *index) putAll(n *node) {
	for n != nil {
		rest, l := n.next, x.list(n.id)
		n.next, *l = *l, n
		n = rest
	}
}

// remove takes out n, if it is there.
func (x *index) remove(n *node) {
	at := x.list(n.id)
	for *at != n {
		if *at == nil {
			return
		}
		at = &(*at).next
	}
	*at, n.next = n.next, nil

	last := len(x.lists) - 1
	rest := x.lists[last]
	x.lists[last] = nil
	x.lists = x.lists[:last]
	x.putAll(rest)
	x.most = max(x.most, last)
	if cap(x.lists) > 4*len(x.lists) {
		x.lists = slices.Clone(x.lists)
		if x.most >= manyNodes {
			// An idle process would do that by and by, after some minutes. Once is not enough: those that are left may lie in as many pages as all of them did.
			go debug.FreeOSMemory()
		}
		if last <= fewNodes {
			x.most = 0
		}
	}
}

// all returns every node.
func (x *index) all() iter.Seq[*node] {
	return func(yield func(*node) bool) {
		for _, n := range x.lists {
			for ; n != nil; n = n.next {
				if !yield(n) {
					return
				}
			}
		}
	}
}
