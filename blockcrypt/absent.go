package blockcrypt

import (
	"fmt"
	"slices"
)

// One contiguous range of hole maps may be absent and permit everything, so that a hole of any size costs little
// (docs/format.md section 6). A map that is stored leaves the range, and what the range loses by that is stored, too: else an attacker could zero a map
// together with the data that it forbids to be zeros. Maps are stored first and the root last, so that a crash leaves a permission too
// many, never one too few.

// addRange adds the absent maps from ≤ k < to, which lie beyond the end of the file, to the range; if they are not adjacent to it, the
// smaller of the two is stored. f.mu is held for writing, and holes.mu.
func (f *File) addRange(from, to int64) error {
	h := &f.holes
	switch {
	case h.to == 0 || from <= h.to && to >= h.from:
		if h.to != 0 {
			from, to = min(from, h.from), max(to, h.to)
		}
		return f.setRange(from, to)
	case to-from >= h.to-h.from:
		return f.setRange(from, to)
	}
	ones := make([]byte, f.l.segment)
	fill(ones)
	for k := from; k < to; k++ {
		if err := f.writeMap(k, ones); err != nil {
			return err
		}
	}
	return nil
}

// setRange changes the range, in memory, after it has stored the maps that leave it. f.mu is held for writing, and holes.mu.
func (f *File) setRange(from, to int64) error {
	h := &f.holes
	if from == h.from && to == h.to {
		return nil
	}
	ones := make([]byte, f.l.segment)
	fill(ones)
	for k := h.from; k < h.to; k++ {
		if from <= k && k < to {
			k = to - 1
			continue
		}
		if m := h.maps[k]; m != nil && m.dirty {
			if err := f.storeMap(k); err != nil {
				return err
			}
			continue
		}
		slot, err := f.readMap(k)
		if err != nil {
			return err
		}
		if !isZero(slot) {
			continue // a crash left it inside the range
		}
		if err := f.writeMap(k, ones); err != nil {
			return err
		}
	}
	h.from, h.to = from, to
	h.dropEmptyRange()
	h.maps[0].dirty = true
	return nil
}

// storeMaps writes what is dirty of the maps first to last, and the root. f.mu is held for writing, and holes.mu.
func (f *File) storeMaps(first, last int64) error {
	h := &f.holes
	var dirty []int64
	for k, m := range h.maps {
		if k >= max(first, 1) && k <= last && m.dirty {
			dirty = append(dirty, k)
		}
	}
	slices.Sort(dirty)
	// The largest part of the range without any of them is what stays of it.
	from, to, start := h.from, h.from, h.from
	for _, k := range append(dirty, h.to) {
		if k < start || k > h.to {
			continue
		}
		if k-start > to-from {
			from, to = start, k
		}
		start = k + 1
	}
	if err := f.setRange(from, to); err != nil {
		return err
	}
	for _, k := range dirty {
		if err := f.storeMap(k); err != nil {
			return err
		}
	}
	return f.storeMap(0)
}

// storeMap writes map k if it is dirty. f.mu is held for writing, and holes.mu.
func (f *File) storeMap(k int64) error {
	h := &f.holes
	m := h.maps[k]
	if m == nil || !m.dirty {
		return nil
	}
	plain := m.bits
	if k == 0 {
		plain = appendRoot(nil, holeRoot{h.from, h.to, m.bits})
	}
	if err := f.writeMap(k, plain); err != nil {
		return err
	}
	m.dirty = false
	return nil
}

// writeMap seals the plaintext of map k, or of the root if k is 0, and writes it. f.mu is held for writing.
func (f *File) writeMap(k int64, plain []byte) error {
	off := f.l.header
	if k > 0 {
		off = f.l.mapOffset(k)
	}
	slot := make([]byte, len(plain)+Overhead)
	f.c.sealer(1).seal(slot, plain, k, kindMap, new([9]byte))
	if _, err := f.b.WriteAt(slot, off); err != nil {
		return fmt.Errorf("write hole map %d: %w", k, err)
	}
	return nil
}
