package blockcrypt

import (
	"fmt"
	"io"
)

// A FaultKind says what is wrong with a part of a sealed file.
type FaultKind uint8

// The kinds of faults.
const (
	FaultAuth     FaultKind = iota + 1 // a segment does not authenticate
	FaultZero                          // a segment is zeroed, and no hole map permits it
	FaultHole                          // a segment is zeroed, and the hole map that says whether it may be is damaged
	FaultMap                           // a hole map does not authenticate; no byte is lost by that alone
	FaultCut                           // the last segment is sound, but was not the last one
	FaultExtended                      // a segment is sound, but was the last one: what follows was added
	FaultSize                          // the ciphertext ends where none can end
	FaultRead                          // the storage below does not give the bytes
)

// String says what is wrong and what the likely cause is.
func (k FaultKind) String() string {
	switch k {
	case FaultAuth:
		return "does not authenticate: changed, moved, or from another file"
	case FaultZero:
		return "zeroed where no hole was made"
	case FaultHole:
		return "zeroed, and the hole map that says whether it may be is damaged"
	case FaultMap:
		return "hole map does not authenticate: changed or moved"
	case FaultCut:
		return "the file was cut: more followed here, how much cannot be told"
	case FaultExtended:
		return "the file once ended here: what follows was added, or this is an old version of the segment"
	case FaultSize:
		return "no file ends here: it was cut or extended"
	case FaultRead:
		return "cannot be read from the storage below"
	}
	return fmt.Sprintf("fault %d", uint8(k))
}

// A Fault is a bad range of a sealed file.
type Fault struct {
	Kind                 FaultKind
	Off, Len             int64 // bytes of plaintext that are lost; Len is 0 where none of those that the size tells of is
	SealedOff, SealedLen int64 // bytes of ciphertext that are at fault
	Err                  error // for FaultRead
}

// A Visitor gets what a scan finds, in order of offsets. Functions may be nil; a scan stops with the first error of one.
type Visitor struct {
	Data  func(off int64, p []byte) error // authenticated plaintext; p is valid during the call only
	Hole  func(off, n int64) error        // an authenticated hole
	Fault func(Fault) error
}

// Scan verifies every slot and hole map of a sealed file of size bytes that is not empty, and its length. Neither memory nor the
// number of faults that it keeps grows with the file; it does not stop at a fault. r may implement SeekData as a [Backing] does.
func Scan(r io.ReaderAt, size int64, l Layout, c *Cipher, v Visitor) error {
	s := &scan{r: r, size: size, l: l, c: c, v: v}
	s.plain, s.sound = l.PlainSize(size)
	s.n = l.Segments(s.plain)
	if err := s.run(); err != nil {
		return err
	}
	return s.flush()
}

// A scan is one run of Scan.
type scan struct {
	r     io.ReaderAt
	size  int64 // of the ciphertext
	l     Layout
	c     *Cipher
	v     Visitor
	plain int64 // bytes of plaintext, as the size tells
	sound bool  // the size is possible
	n     int64 // segments

	root    holeRoot
	badRoot bool
	bits    []byte // the bitmap of the map before the segments at hand; nil if all its bits are all
	all     bool
	badMap  bool

	held Fault // the last fault, which the next one may continue
	aad  [9]byte
}

func (s *scan) run() error {
	l := s.l
	if s.size <= l.prologue {
		return s.fault(Fault{Kind: FaultSize, Len: s.plain, SealedLen: s.size})
	}
	if err := s.readRoot(); err != nil {
		return err
	}
	buf := l.buffers.Get().(*buffer)
	defer l.buffers.Put(buf)
	for i, k := int64(0), int64(0); i < s.n; {
		if now := l.mapsBefore(i); now != k {
			k = now
			if err := s.readMap(k); err != nil {
				return err
			}
		}
		next, err := s.skip(i)
		if err != nil {
			return err
		}
		if next > i {
			i = next
			if now := l.mapsBefore(i); now != k && i != l.mapStart(now) {
				k = now // its slot was passed over
			}
			continue
		}
		end := min(i+chunkSize/l.segment, l.mapStart(k+1), s.n)
		if err := s.chunk(i, end, buf); err != nil {
			return err
		}
		i = end
	}
	return nil
}

// readRoot reads the hole root.
func (s *scan) readRoot() error {
	slot := make([]byte, rootSize)
	f := Fault{Kind: FaultMap, SealedOff: s.l.header, SealedLen: rootSize}
	if err := readFull(s.r, slot, s.l.header); err != nil {
		s.badRoot, s.badMap, f.Kind, f.Err = true, true, FaultRead, err
		return s.fault(f)
	}
	root, err := s.c.openRoot(slot)
	if err != nil {
		s.badRoot, s.badMap = true, true
		return s.fault(f)
	}
	s.root, s.bits = root, root.bits
	return nil
}

// readMap reads map k ≥ 1.
func (s *scan) readMap(k int64) error {
	slot := make([]byte, s.l.slot)
	f := Fault{Kind: FaultMap, Off: s.l.mapStart(k) * s.l.segment, SealedOff: s.l.mapOffset(k), SealedLen: s.l.slot}
	s.absentMap(k)
	if err := readFull(s.r, slot, f.SealedOff); err != nil {
		s.badMap, f.Kind, f.Err = true, FaultRead, err
		return s.fault(f)
	}
	if isZero(slot) {
		return nil
	}
	s.bits = make([]byte, s.l.segment)
	s.badMap = s.c.openMap(s.bits, slot, k, s.root) != nil
	if s.badMap {
		return s.fault(f)
	}
	return nil
}

// absentMap takes map k for absent.
func (s *scan) absentMap(k int64) {
	s.bits, s.all = nil, s.root.covers(k)
	s.badMap = s.badRoot // what an absent map says is in the root
}

// permitted is what is known of segment i, whose map is at hand: a fault, or 0.
func (s *scan) permitted(i int64) FaultKind {
	switch {
	case s.badMap:
		return FaultHole
	case s.bits == nil && s.all, s.bits != nil && bit(s.bits, i-s.l.mapStart(s.l.mapsBefore(i))):
		return 0
	}
	return FaultZero
}

// skip passes over what the backing knows to be zeros from the slot of segment i on, maps included; it returns the first segment that has to
// be read. The map of segment i is at hand.
func (s *scan) skip(i int64) (next int64, err error) {
	b, ok := s.r.(interface {
		SeekData(off int64) (int64, error)
	})
	if !ok {
		return i, nil
	}
	off, err := b.SeekData(s.l.offset(i))
	switch {
	case err == io.EOF:
		next = s.n - 1
	case err != nil:
		return i, nil // the read will tell
	default:
		next = min(s.l.segmentAt(off), s.n-1)
	}
	for at := i; at < next; {
		k := s.l.mapsBefore(at)
		if at > i && at == s.l.mapStart(k) {
			s.absentMap(k)
		}
		stop := min(next, s.l.mapStart(k+1))
		if s.bits == nil { // all maps up to a bound of the range are like this one; there may be no end to them
			stop = min(next, s.l.mapStart(max(s.root.sameUpTo(k), k+1)))
		}
		if err := s.zeros(at, stop); err != nil {
			return at, err
		}
		at = stop
	}
	return max(next, i), nil
}

// zeros judges zeroed segments from ≤ i < to, all of the map that is at hand.
func (s *scan) zeros(from, to int64) error {
	for from < to {
		kind, stop := s.permitted(from), from+1
		if s.badMap || s.bits == nil {
			stop = to
		}
		for stop < to && s.permitted(stop) == kind {
			stop++
		}
		var err error
		if kind != 0 {
			err = s.lost(kind, from, stop, nil)
		} else if err = s.flush(); err == nil && s.v.Hole != nil {
			err = s.v.Hole(from*s.l.segment, (stop-from)*s.l.segment)
		}
		if err != nil {
			return err
		}
		from = stop
	}
	return nil
}

// chunk reads and judges segments from ≤ i < to, all of the map that is at hand.
func (s *scan) chunk(from, to int64, buf *buffer) error {
	start := s.l.offset(from)
	stop := s.endOf(to - 1)
	sealed := buf.sealed[:stop-start]
	if err := readFull(s.r, sealed, start); err != nil {
		if to-from > 1 { // find out which of them
			for i := from; i < to; i++ {
				if err := s.chunk(i, i+1, buf); err != nil {
					return err
				}
			}
			return nil
		}
		return s.lost(FaultRead, from, to, err)
	}
	for i := from; i < to; i++ {
		at := s.l.offset(i) - start
		if err := s.slot(i, sealed[at:min(at+s.l.slot, int64(len(sealed)))], buf.segment); err != nil {
			return err
		}
	}
	return nil
}

// endOf returns where the slot of segment i ends.
func (s *scan) endOf(i int64) int64 {
	start := s.l.offset(i)
	return start + min(s.l.slot, s.size-start) // no sum beyond the largest size that there is
}

// slot judges segment i.
func (s *scan) slot(i int64, slot, plain []byte) error {
	last := i == s.n-1
	switch {
	case last && !s.sound:
		return s.lost(FaultSize, i, i+1, nil)
	case isZero(slot) && last:
		return s.lost(FaultZero, i, i+1, nil)
	case isZero(slot):
		return s.zeros(i, i+1)
	}
	plain = plain[:len(slot)-Overhead]
	kind, other, fault := byte(kindInner), byte(kindFinal), FaultExtended
	if last {
		kind, other, fault = kindFinal, kindInner, FaultCut
	}
	wrong := false
	if s.c.open(plain, slot, i, kind, &s.aad) != nil {
		if s.c.open(plain, slot, i, other, &s.aad) != nil {
			return s.lost(FaultAuth, i, i+1, nil)
		}
		wrong = true
	}
	if err := s.flush(); err != nil {
		return err
	}
	if s.v.Data != nil {
		if err := s.v.Data(i*s.l.segment, plain); err != nil {
			return err
		}
	}
	if wrong {
		return s.fault(Fault{Kind: fault, Off: i*s.l.segment + int64(len(plain)), SealedOff: s.l.offset(i), SealedLen: int64(len(slot))})
	}
	return nil
}

// lost reports segments from ≤ i < to as lost.
func (s *scan) lost(kind FaultKind, from, to int64, err error) error {
	off := from * s.l.segment
	start := min(s.l.offset(from), s.size)
	return s.fault(Fault{
		Kind: kind, Off: off, Len: min(to*s.l.segment, s.plain) - off,
		SealedOff: start, SealedLen: s.endOf(to-1) - start, Err: err,
	})
}

// fault reports a fault, joined to the one before if it continues that.
func (s *scan) fault(f Fault) error {
	h := &s.held
	if h.Kind == f.Kind && f.Len > 0 && h.Len > 0 && h.Off+h.Len == f.Off && h.SealedOff+h.SealedLen == f.SealedOff {
		h.Len, h.SealedLen = h.Len+f.Len, h.SealedLen+f.SealedLen
		return nil
	}
	if err := s.flush(); err != nil {
		return err
	}
	*h = f
	return nil
}

// flush hands out the fault that is held back.
func (s *scan) flush() error {
	if s.held.Kind == 0 || s.v.Fault == nil {
		return nil
	}
	f := s.held
	s.held = Fault{}
	return s.v.Fault(f)
}
