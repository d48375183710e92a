package blockcrypt

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"
)

const (
	rootSize    = 512                         // the hole root, docs/format.md section 6
	rootPlain   = rootSize - Overhead         // its plaintext
	rootFixed   = 16                          // bytes of it before the bitmap
	rootBits    = 8 * (rootPlain - rootFixed) // segments it covers: 3,648
	chunkSize   = 1 << 20                     // plaintext handled at once
	minSegment  = 1 << 12
	maxSegment  = 1 << 16
	maxHeader   = 65024
	headerUnit  = 512
	maxPlainLog = 60
)

// MaxSize is the largest plaintext size of a file, in bytes.
const MaxSize int64 = 1 << maxPlainLog

// Errors that callers branch on.
var (
	// ErrTooLarge says that a file would grow past MaxSize.
	ErrTooLarge = errors.New("blockcrypt: file too large")
	// ErrSize says that the ciphertext has a length that no file has: it was cut or extended.
	ErrSize = errors.New("blockcrypt: impossible ciphertext size")
	// ErrNoData says that there is no data, or no hole, at or after an offset.
	ErrNoData = errors.New("blockcrypt: offset beyond the end")
)

// A Layout is the geometry of a volume's files, docs/format.md section 5.4, and the buffers that its files share.
type Layout struct {
	segment  int64 // s, bytes of plaintext
	slot     int64 // S
	header   int64 // H
	prologue int64 // P
	perMap   int64 // segments that a map covers
	buffers  *sync.Pool
}

// A buffer is scratch space for one request.
type buffer struct {
	sealed  []byte // room for a chunk, its edges and map slots
	segment []byte // room for one plaintext segment
	aad     [9]byte
}

// NewLayout returns the geometry for segments and headers of the given sizes in bytes.
func NewLayout(segmentSize, headerSize int) (Layout, error) {
	s, h := int64(segmentSize), int64(headerSize)
	if bits.OnesCount64(uint64(s)) != 1 || s < minSegment || s > maxSegment {
		return Layout{}, fmt.Errorf("blockcrypt: bad segment size %d", s)
	}
	if h < headerUnit || h > maxHeader || h%headerUnit != 0 {
		return Layout{}, fmt.Errorf("blockcrypt: bad header length %d", h)
	}
	l := Layout{segment: s, slot: s + Overhead, header: h, prologue: h + rootSize, perMap: 8 * s}
	room := l.prologue + (chunkSize/s+4)*l.slot
	l.buffers = &sync.Pool{New: func() any {
		return &buffer{sealed: make([]byte, room), segment: make([]byte, s)}
	}}
	return l, nil
}

// Prologue returns how many bytes precede the first slot.
func (l Layout) Prologue() int64 { return l.prologue }

// mapsBefore is m(i): the number of map slots before segment i.
func (l Layout) mapsBefore(i int64) int64 {
	if i < rootBits {
		return 0
	}
	return 1 + (i-rootBits)/l.perMap
}

// offset is where the slot of segment i starts.
func (l Layout) offset(i int64) int64 { return l.prologue + (i+l.mapsBefore(i))*l.slot }

// mapStart is the first segment that map k covers.
func (l Layout) mapStart(k int64) int64 {
	if k == 0 {
		return 0
	}
	return rootBits + (k-1)*l.perMap
}

// mapOffset is where the slot of map k ≥ 1 starts.
func (l Layout) mapOffset(k int64) int64 { return l.offset(l.mapStart(k)) - l.slot }

// Maps returns the number of hole-map slots in a file of the given plaintext size.
func (l Layout) Maps(plain int64) int64 {
	if plain <= 0 {
		return 0
	}
	return l.mapsBefore((plain - 1) / l.segment)
}

// Segments returns the number of segments of a file of the given plaintext size.
func (l Layout) Segments(plain int64) int64 { return (plain + l.segment - 1) / l.segment }

// SealedSize returns the size of the ciphertext of plain bytes, of which there are at most MaxSize.
func (l Layout) SealedSize(plain int64) int64 {
	if plain <= 0 {
		return 0
	}
	last := (plain - 1) / l.segment
	return l.offset(last) + Overhead + plain - last*l.segment
}

// PlainSize is the inverse of SealedSize. For a size that is no ciphertext's, ok is false, and plain is what it would be if the last
// segment had one byte.
func (l Layout) PlainSize(sealed int64) (plain int64, ok bool) {
	if sealed <= 0 {
		return 0, sealed == 0
	}
	if sealed <= l.prologue {
		return 1, false
	}
	slot := (sealed - l.prologue - 1) / l.slot
	rest := sealed - l.prologue - slot*l.slot // 1 to l.slot
	i, isMap := l.segmentOf(slot)
	if isMap || rest <= Overhead {
		return i*l.segment + 1, false
	}
	return i*l.segment + rest - Overhead, true
}

// segmentOf returns the segment in a slot, or after it if the slot is a map's.
func (l Layout) segmentOf(slot int64) (i int64, isMap bool) {
	if slot < rootBits {
		return slot, false
	}
	group, within := (slot-rootBits)/(l.perMap+1), (slot-rootBits)%(l.perMap+1)
	i = rootBits + group*l.perMap
	if within == 0 {
		return i, true
	}
	return i + within - 1, false
}

// segmentAt returns the segment whose slot holds the byte at a sealed offset, or the next one.
func (l Layout) segmentAt(offset int64) int64 {
	if offset < l.prologue {
		return 0
	}
	i, _ := l.segmentOf((offset - l.prologue) / l.slot)
	return i
}
