package journal

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
)

// Kinds of records, docs/format.md section 10.
const (
	kindChange = 1 // extents and a size
	kindGrow   = 2 // everything before is in place; what lies past the size is not to be kept
)

const (
	recordMagic  = 0x6b6d6a72 // "kmjr"
	recordHeader = 40         // magic, length, generation, sequence number, digest
	digestSize   = 16
	recordFixed  = recordHeader + 64 // with the fields of constant length
	extentSize   = 17
	maxPath      = 1 << 16

	idStart, idEnd = 24, 40 // where the header of a ciphertext file has its ID, section 4.1
)

// A record is a change of one file.
type record struct {
	kind    byte
	grown   bool     // what lies in place up to keep is part of the file
	ino     uint64   // inode number
	version uint32   // inode generation; 0 if unknown
	fileID  [16]byte // in place when the file was opened; zeros if it was empty
	keep    int64    // bytes in place beyond this are not part of the file
	size    int64    // of the ciphertext afterwards
	mtime   uint64   // of the ciphertext afterwards, see stamp; 0 if unknown
	path    string   // in the ciphertext directory, as far as known; "" if it has none
	extents []extent
}

// encoded returns how many bytes the record takes in the log, a multiple of 8.
func (r *record) encoded() int64 {
	n := int64(recordFixed+len(r.path)) + extentSize*int64(len(r.extents))
	for _, e := range r.extents {
		n += int64(len(e.data))
	}
	return (n + 7) &^ 7
}

// newID returns the file ID in the header that the record puts in place, zeros if it puts none there.
func (r *record) newID() (id [16]byte) {
	if len(r.extents) > 0 && r.extents[0].holdsID() {
		id = [16]byte(r.extents[0].data[idStart:])
	}
	return id
}

// append appends the record, with a digest over all of it.
func (r *record) append(b []byte, generation, sequence uint64) []byte {
	start, size := len(b), r.encoded()
	be := binary.BigEndian
	b = be.AppendUint32(b, recordMagic)
	b = be.AppendUint32(b, uint32(size))
	b = be.AppendUint64(b, generation)
	b = be.AppendUint64(b, sequence)
	b = append(b, make([]byte, digestSize)...)
	grown := byte(0)
	if r.grown {
		grown = 1
	}
	b = append(b, r.kind, grown)
	b = be.AppendUint16(b, uint16(len(r.path)))
	b = be.AppendUint32(b, uint32(len(r.extents)))
	b = be.AppendUint64(b, r.ino)
	b = be.AppendUint32(b, r.version)
	b = be.AppendUint32(b, 0)
	b = append(b, r.fileID[:]...)
	b = be.AppendUint64(b, uint64(r.keep))
	b = be.AppendUint64(b, uint64(r.size))
	b = be.AppendUint64(b, r.mtime)
	b = append(b, r.path...)
	for _, e := range r.extents {
		b = be.AppendUint64(b, uint64(e.off))
		b = be.AppendUint64(b, uint64(e.n))
		zero := byte(0)
		if e.data == nil {
			zero = 1
		}
		b = append(b, zero)
	}
	for _, e := range r.extents {
		b = append(b, e.data...)
	}
	b = append(b, make([]byte, size-int64(len(b)-start))...)
	sum := recordSum(b[start:])
	copy(b[start+recordHeader-digestSize:], sum[:digestSize])
	return b
}

// recordSum is the digest of a record, whose place in it is left out.
func recordSum(b []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write(b[:recordHeader-digestSize])
	h.Write(b[recordHeader:])
	return [sha256.Size]byte(h.Sum(nil))
}

var errRecord = errors.New("journal: not a record")

// recordLen returns the length of the record that starts with b, 0 if none does.
func recordLen(b []byte, generation, sequence uint64) int64 {
	be := binary.BigEndian
	if len(b) < recordHeader || be.Uint32(b) != recordMagic || be.Uint64(b[8:]) != generation || be.Uint64(b[16:]) != sequence {
		return 0
	}
	n := int64(be.Uint32(b[4:]))
	if n < recordFixed || n%8 != 0 {
		return 0
	}
	return n
}

// parseRecord is the inverse of append. It keeps b. Lengths are checked before they are used.
func parseRecord(b []byte) (*record, error) {
	be := binary.BigEndian
	if len(b) < recordFixed || int64(be.Uint32(b[4:])) != int64(len(b)) {
		return nil, errRecord
	}
	if sum := recordSum(b); [digestSize]byte(sum[:]) != [digestSize]byte(b[recordHeader-digestSize:]) {
		return nil, errRecord
	}
	f := b[recordHeader:]
	r := &record{
		kind:    f[0],
		grown:   f[1] == 1,
		ino:     be.Uint64(f[8:]),
		version: be.Uint32(f[16:]),
		fileID:  [16]byte(f[24:]),
		keep:    int64(be.Uint64(f[40:])),
		size:    int64(be.Uint64(f[48:])),
		mtime:   be.Uint64(f[56:]),
	}
	pathLen, extents := int(be.Uint16(f[2:])), int64(be.Uint32(f[4:]))
	rest := b[recordFixed:]
	if r.kind != kindChange && r.kind != kindGrow || f[1] > 1 || r.keep < 0 || r.size < 0 ||
		int64(len(rest)) < int64(pathLen)+extents*extentSize {
		return nil, errRecord
	}
	r.path = string(rest[:pathLen])
	list, data := rest[pathLen:int64(pathLen)+extents*extentSize], rest[int64(pathLen)+extents*extentSize:]
	r.extents = make([]extent, extents)
	end := int64(0)
	for i := range r.extents {
		e := extent{off: int64(be.Uint64(list)), n: int64(be.Uint64(list[8:]))}
		if e.off < end || e.n <= 0 || e.end() < e.off || list[16] > 1 {
			return nil, errRecord
		}
		if end = e.end(); list[16] == 0 {
			if e.n > int64(len(data)) {
				return nil, errRecord
			}
			e.data, data = data[:e.n:e.n], data[e.n:]
		}
		r.extents[i], list = e, list[extentSize:]
	}
	if end > r.size || len(data) >= 8 {
		return nil, errRecord
	}
	return r, nil
}
