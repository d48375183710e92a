package blockcrypt

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// maxMaps bounds the numbers of hole maps: a file of MaxSize has fewer.
const maxMaps = 1 << 34

// A holeRoot is what a hole root says, docs/format.md section 6.
type holeRoot struct {
	from, to int64  // an absent map k permits everything if from ≤ k < to
	bits     []byte // the bitmap of the first segments; nil if there is no root, and so no hole
}

// covers reports whether map k permits everything by its absence.
func (r holeRoot) covers(k int64) bool { return r.from <= k && k < r.to }

// sameUpTo returns the first map after k of which covers says something else, or a number that no file has maps for, whoever made it so large.
func (r holeRoot) sameUpTo(k int64) int64 {
	switch {
	case k < r.from:
		return r.from
	case k < r.to:
		return r.to
	}
	return maxMaps << 8
}

// parseRoot reads the plaintext of a hole root, whose bitmap it keeps.
func parseRoot(plain []byte) (holeRoot, error) {
	from, to := binary.BigEndian.Uint64(plain), binary.BigEndian.Uint64(plain[8:])
	if none := from == 0 && to == 0; !none && (from < 1 || from >= to || to > maxMaps) {
		return holeRoot{}, fmt.Errorf("%w: hole root with maps %d to %d", ErrAuth, from, to)
	}
	return holeRoot{int64(from), int64(to), plain[rootFixed:]}, nil
}

// appendRoot is the inverse of parseRoot.
func appendRoot(dst []byte, r holeRoot) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.from))
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.to))
	return append(dst, r.bits...)
}

// openRoot opens the stored form of a hole root.
func (c *Cipher) openRoot(slot []byte) (holeRoot, error) {
	if isZero(slot) {
		return holeRoot{}, nil
	}
	plain := make([]byte, rootPlain)
	if err := c.open(plain, slot, 0, kindMap, new([9]byte)); err != nil {
		return holeRoot{}, err
	}
	return parseRoot(plain)
}

// openMap opens the slot of map k into bits. A map that is there says what it says, whether the root covers it or not.
func (c *Cipher) openMap(bits, slot []byte, k int64, r holeRoot) error {
	if !isZero(slot) {
		return c.open(bits, slot, k, kindMap, new([9]byte))
	}
	if r.covers(k) {
		fill(bits)
	} else {
		clear(bits)
	}
	return nil
}

func fill(bits []byte) {
	for i := range bits {
		bits[i] = 0xff
	}
}

// bit reports bit i of a bitmap.
func bit(bits []byte, i int64) bool { return bits[i/8]>>(i%8)&1 == 1 }

// permit permits all from the given bit up to, but without, to.
func (m *holeMap) permit(from, to int64) {
	for i := from; i < to; i++ {
		if i%8 > 0 || to-i < 8 {
			m.set(i, true)
			continue
		}
		if m.bits[i/8] != 0xff {
			m.bits[i/8], m.dirty = 0xff, true
		}
		i += 7
	}
}

// holes is what a file's hole maps permit. Maps are loaded when they are needed.
type holes struct {
	mu       sync.Mutex
	loaded   bool
	absent   bool  // there is no hole root: no segment may be a hole
	from, to int64 // as in holeRoot; within the file
	stale    bool  // the stored range goes beyond the file
	maps     map[int64]*holeMap
}

// A holeMap is one bitmap; the root is map 0.
type holeMap struct {
	bits  []byte
	dirty bool // it, or the root's range, differs from what is stored
}

func (m *holeMap) get(i int64) bool { return bit(m.bits, i) }

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

// loadRoot reads the hole root. f.mu is held, and holes.mu.
func (f *File) loadRoot() error {
	h := &f.holes
	if h.loaded {
		return nil
	}
	slot := make([]byte, rootSize)
	if err := readFull(f.b, slot, f.l.header); err != nil {
		return err
	}
	r, err := f.c.openRoot(slot)
	if err != nil {
		return err
	}
	h.maps = make(map[int64]*holeMap)
	h.absent = r.bits == nil
	if !h.absent {
		h.maps[0] = &holeMap{bits: r.bits}
	}
	h.from, h.to = r.from, min(r.to, f.l.mapsBefore(f.last())+1)
	h.stale = h.to < r.to // a crash left it so
	h.dropEmptyRange()
	h.loaded = true
	return nil
}

func (h *holes) dropEmptyRange() {
	if h.from >= h.to {
		h.from, h.to = 0, 0
	}
}

// loadMap returns map k of a file that has a hole root. holes.mu is held.
func (f *File) loadMap(k int64) (*holeMap, error) {
	h := &f.holes
	if m := h.maps[k]; m != nil {
		return m, nil
	}
	slot, err := f.readMap(k)
	if err != nil {
		return nil, err
	}
	m := &holeMap{bits: make([]byte, f.l.segment)}
	if err := f.c.openMap(m.bits, slot, k, holeRoot{from: h.from, to: h.to}); err != nil {
		return nil, err
	}
	h.maps[k] = m
	return m, nil
}

// readMap reads the slot of map k ≥ 1, which may lie beyond the end of the file.
func (f *File) readMap(k int64) ([]byte, error) {
	slot := make([]byte, f.l.slot)
	n, err := f.b.ReadAt(slot, f.l.mapOffset(k))
	if err != nil && err != io.EOF {
		return nil, err
	}
	clear(slot[n:])
	return slot, nil
}

// noHoles empties the maps of a file that has just got a header. f.mu is held for writing.
func (f *File) noHoles() {
	f.holes.mu.Lock()
	defer f.holes.mu.Unlock()
	f.holes.loaded, f.holes.absent = true, true
	f.holes.from, f.holes.to, f.holes.stale, f.holes.maps = 0, 0, false, nil
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
	f.holes.renew()
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

// renew makes sure that a change of the file ends a range that goes beyond it. h.mu is held.
func (h *holes) renew() {
	if h.stale {
		h.stale, h.maps[0].dirty = false, true
	}
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
		h.absent = false
		h.maps = map[int64]*holeMap{0: {bits: make([]byte, rootBits/8), dirty: true}}
	}
	h.renew()
	kFirst, kLast := f.l.mapsBefore(first), f.l.mapsBefore(last)
	if end {
		// Maps beyond the present end are not there yet, and need not be.
		lo := kFirst + 1
		if kFirst > 0 && first == f.l.mapStart(kFirst) {
			lo = kFirst
		}
		if lo <= kLast {
			for k := range h.maps {
				if k >= lo {
					delete(h.maps, k)
				}
			}
			if err := f.addRange(lo, kLast+1); err != nil {
				return err
			}
			last, kLast = f.l.mapStart(lo)-1, lo-1
		}
	}
	for k := kFirst; k <= kLast; k++ {
		var err error
		if k, err = f.skipAbsent(k); err != nil {
			return err
		}
		if k > kLast {
			break
		}
		m, err := f.loadMap(k)
		if err != nil {
			return err
		}
		start := f.l.mapStart(k)
		m.permit(max(first, start)-start, min(last+1, f.l.mapStart(k+1))-start)
	}
	return f.storeMaps(kFirst, kLast)
}

// skipAbsent returns the first map from k on that may not permit everything by its absence, as far as the backing can tell: there may be no end to those that do. f.mu is held, and
// holes.mu.
func (f *File) skipAbsent(k int64) (int64, error) {
	h := &f.holes
	b, ok := f.b.(interface {
		SeekData(off int64) (int64, error)
	})
	for ok && h.from <= k && k < h.to && h.maps[k] == nil {
		off, err := b.SeekData(f.l.mapOffset(k))
		next := h.to
		switch {
		case err == io.EOF:
		case err != nil:
			return 0, err
		case off < f.l.mapOffset(k)+f.l.slot:
			return k, nil
		default:
			next = min(next, max(k+1, f.l.mapsBefore(f.l.segmentAt(off))))
		}
		for other := range h.maps {
			if other > k {
				next = min(next, other)
			}
		}
		k = next
	}
	return k, nil
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
	if h.to > k+1 {
		h.to = k + 1 // the others are cut off
		h.dropEmptyRange()
		h.maps[0].dirty = true
	}
	return nil
}

// Flush stores the hole maps that writes have changed. Until then they permit more than they need to, never less.
func (f *File) Flush() error {
	defer f.change()()
	f.holes.mu.Lock()
	defer f.holes.mu.Unlock()
	if !f.holes.loaded || f.holes.absent {
		return nil
	}
	if b, ok := f.b.(interface{ Quiet() }); ok {
		b.Quiet() // the file may be closed after its times were set
	}
	return f.storeMaps(0, maxMaps)
}
