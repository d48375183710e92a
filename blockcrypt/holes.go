package blockcrypt

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"sync"
)

// noGroup is the root's "from" when no map is permissive by absence.
const noGroup = math.MaxUint64

// holes is what a file's hole maps permit, docs/format.md section 6. Maps are loaded when they are needed.
type holes struct {
	mu     sync.Mutex
	loaded bool
	absent bool   // there is no hole root: no segment may be a hole
	from   uint64 // an absent map from this one on permits everything
	maps   map[int64]*holeMap
}

// A holeMap is one bitmap.
type holeMap struct {
	bits  []byte
	dirty bool // differs from what is stored
}

func (m *holeMap) get(i int64) bool { return m.bits[i/8]>>(i%8)&1 == 1 }

// set changes bit i.
func (m *holeMap) set(i int64, v bool) {
	if m.get(i) != v {
		m.bits[i/8] ^= 1 << (i % 8)
		m.dirty = true
	}
}

// permitted reports whether segment i may be a hole. f.mu is held.
func (f *File) permitted(i int64) (bool, error) {
	f.holes.mu.Lock()
	defer f.holes.mu.Unlock()
	if err := f.loadRoot(); err != nil || f.holes.absent {
		return false, err
	}
	k := f.l.mapsBefore(i)
	m, err := f.loadMap(k)
	if err != nil {
		return false, err
	}
	return m.get(i - f.l.mapStart(k)), nil
}

// loadRoot reads the hole root. holes.mu is held.
func (f *File) loadRoot() error {
	h := &f.holes
	if h.loaded {
		return nil
	}
	root := make([]byte, rootSize)
	if err := readFull(f.b, root, f.l.header); err != nil {
		return err
	}
	h.from, h.maps = noGroup, make(map[int64]*holeMap)
	h.absent = isZero(root)
	if !h.absent {
		plain := make([]byte, rootPlain)
		if err := f.c.open(plain, root, 0, kindMap, new([9]byte)); err != nil {
			return err
		}
		h.from = binary.BigEndian.Uint64(plain)
		h.maps[0] = &holeMap{bits: plain[8:]}
	}
	h.loaded = true
	return nil
}

// loadMap returns map k of a file that has a hole root. holes.mu is held.
func (f *File) loadMap(k int64) (*holeMap, error) {
	h := &f.holes
	if m := h.maps[k]; m != nil {
		return m, nil
	}
	slot := make([]byte, f.l.slot)
	n, err := f.b.ReadAt(slot, f.l.mapOffset(k))
	if err != nil && err != io.EOF {
		return nil, err
	}
	clear(slot[n:]) // a file may end before its map
	m := &holeMap{bits: make([]byte, f.l.segment)}
	switch {
	case !isZero(slot):
		if err := f.c.open(m.bits, slot, k, kindMap, new([9]byte)); err != nil {
			return nil, err
		}
	case uint64(k) >= h.from:
		for i := range m.bits {
			m.bits[i] = 0xff
		}
	}
	h.maps[k] = m
	return m, nil
}

// noHoles empties the maps of a file that has just got a header. f.mu is held for writing.
func (f *File) noHoles() {
	f.holes.mu.Lock()
	defer f.holes.mu.Unlock()
	f.holes.loaded, f.holes.absent = true, true
	f.holes.from, f.holes.maps = noGroup, make(map[int64]*holeMap)
}

// forgetHoles drops what is in memory after a failure; what is stored counts. f.mu is held for writing.
func (f *File) forgetHoles() {
	f.holes.mu.Lock()
	defer f.holes.mu.Unlock()
	f.holes.loaded, f.holes.maps = false, nil
}

// filled takes the permissions of segments first to last back, in memory: they are data now. f.mu is held for writing.
func (f *File) filled(first, last int64) error {
	f.holes.mu.Lock()
	defer f.holes.mu.Unlock()
	if err := f.loadRoot(); err != nil || f.holes.absent {
		return err
	}
	for i := first; i <= last; i++ {
		k := f.l.mapsBefore(i)
		m, err := f.loadMap(k)
		if err != nil {
			return err
		}
		m.set(i-f.l.mapStart(k), false)
	}
	return nil
}

// permit stores the permission for segments first to last to be holes. It must be called before they become holes. end says that nothing
// follows them: the file is growing over them. f.mu is held for writing.
func (f *File) permit(first, last int64, end bool) error {
	f.holes.mu.Lock()
	defer f.holes.mu.Unlock()
	h := &f.holes
	if err := f.loadRoot(); err != nil {
		return err
	}
	if h.absent {
		h.absent, h.from = false, noGroup
		h.maps[0] = &holeMap{bits: make([]byte, rootBits/8), dirty: true}
	}
	kFirst, kLast := f.l.mapsBefore(first), f.l.mapsBefore(last)
	if end && kLast > kFirst {
		// Maps after the first are not there yet, and need not be.
		if from := uint64(kFirst + 1); h.from > from {
			h.from = from
			h.maps[0].dirty = true
		}
		for k := range h.maps {
			if k > kFirst {
				delete(h.maps, k)
			}
		}
		last = min(last, f.l.mapStart(kFirst+1)-1)
		kLast = kFirst
	}
	for i := first; i <= last; i++ {
		k := f.l.mapsBefore(i)
		m, err := f.loadMap(k)
		if err != nil {
			return err
		}
		m.set(i-f.l.mapStart(k), true)
	}
	for k := kFirst; k <= kLast; k++ {
		if err := f.storeMap(k); err != nil {
			return err
		}
	}
	return f.storeMap(0)
}

// trimHoles forgets the permissions of segments from the given one on, in memory. f.mu is held for writing.
func (f *File) trimHoles(from int64) error {
	f.holes.mu.Lock()
	defer f.holes.mu.Unlock()
	h := &f.holes
	if err := f.loadRoot(); err != nil || h.absent {
		return err
	}
	k := f.l.mapsBefore(from)
	for other := range h.maps {
		if other > k {
			delete(h.maps, other)
		}
	}
	m, err := f.loadMap(k)
	if err != nil {
		return err
	}
	for i := from - f.l.mapStart(k); i < int64(len(m.bits))*8; i++ {
		m.set(i, false)
	}
	if uint64(k) < h.from && h.from != noGroup {
		h.from = noGroup // the maps it spoke of are gone
		h.maps[0].dirty = true
	}
	return nil
}

// Flush stores the hole maps that writes have changed. Until then they permit more than they need to, never less.
func (f *File) Flush() error {
	defer f.change()()
	f.holes.mu.Lock()
	defer f.holes.mu.Unlock()
	for k := range f.holes.maps {
		if err := f.storeMap(k); err != nil {
			return err
		}
	}
	return nil
}

// storeMap writes map k if it is dirty. f.mu is held for writing, and holes.mu.
func (f *File) storeMap(k int64) error {
	m := f.holes.maps[k]
	if m == nil || !m.dirty {
		return nil
	}
	plain, off := m.bits, f.l.mapOffset(max(k, 1))
	if k == 0 {
		plain = append(binary.BigEndian.AppendUint64(nil, f.holes.from), m.bits...)
		off = f.l.header
	}
	slot := make([]byte, len(plain)+Overhead)
	f.c.sealer(1).seal(slot, plain, k, kindMap, new([9]byte))
	if _, err := f.b.WriteAt(slot, off); err != nil {
		return fmt.Errorf("write hole map %d: %w", k, err)
	}
	m.dirty = false
	return nil
}
