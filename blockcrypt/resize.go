package blockcrypt

import (
	"errors"
	"fmt"
)

// Truncate changes the size to n bytes. Growing leaves a hole; cutting to 0 drops the header, so that the next byte written gets a new one.
func (f *File) Truncate(n int64) error {
	defer f.change()()
	switch {
	case n < 0:
		return errors.New("blockcrypt: negative size")
	case n > MaxSize:
		return ErrTooLarge
	case n == 0:
		if err := f.b.Truncate(0); err != nil {
			return err
		}
		f.c, f.size, f.bad, f.hasTail = nil, 0, false, false
		f.forgetHoles()
		return nil
	case f.bad:
		return fmt.Errorf("%w: the file was cut or extended", ErrSize)
	case n == f.size:
		return f.b.Truncate(f.l.SealedSize(n)) // for its times
	case n > f.size:
		return f.writeChunk([]byte{0}, n-1)
	}
	return f.shrink(n)
}

// shrink seals what becomes the final segment as such, and then cuts. f.mu is held for writing.
func (f *File) shrink(n int64) error {
	buf := f.l.buffers.Get().(*buffer)
	defer f.l.buffers.Put(buf)
	if err := f.loadTail(buf); err != nil {
		return err
	}
	i := (n - 1) / f.l.segment
	var plain []byte
	if i == f.last() {
		plain = append(plain, f.tail...)
	} else {
		p, err := f.readSegment(i, buf)
		if err != nil {
			return err
		}
		plain = append(plain, p...)
	}
	kept := plain[:n-i*f.l.segment]
	if err := f.trimHoles(i); err != nil {
		return err
	}
	slot := make([]byte, len(plain)+Overhead)
	f.c.sealer(1).seal(slot, kept, i, kindFinal, &buf.aad)
	_, err := f.b.WriteAt(slot[:len(kept)+Overhead], f.l.offset(i))
	if err == nil {
		err = f.b.Truncate(f.l.SealedSize(n))
	}
	if err != nil {
		// Put the segment back as it was.
		f.c.sealer(1).seal(slot, plain, i, f.kind(i), &buf.aad)
		_, _ = f.b.WriteAt(slot, f.l.offset(i))
		f.forgetHoles()
		return err
	}
	f.size = n
	f.setTail(kept)
	return nil
}

// PunchHole makes a range read as zeros and frees the space of whole segments in it; the size stays.
func (f *File) PunchHole(off, n int64) error {
	defer f.change()()
	if off < 0 || n < 0 {
		return errors.New("blockcrypt: negative range")
	}
	end := f.size
	if n < f.size-off {
		end = off + n
	}
	if off >= end {
		return nil
	}
	if f.bad {
		return fmt.Errorf("%w: the file was cut or extended", ErrSize)
	}
	s := f.l.segment
	first := (off + s - 1) / s // the first segment that is covered whole
	stop := min(end/s, f.last())
	if first >= stop {
		return f.zero(off, end)
	}
	if f.l.mapsBefore(first) < f.l.mapsBefore(stop-1) { // it may take long, and is for nothing if the file has no such end
		buf := f.l.buffers.Get().(*buffer)
		defer f.l.buffers.Put(buf)
		if err := f.loadTail(buf); err != nil {
			return err
		}
	}
	if err := f.zero(off, first*s); err != nil {
		return err
	}
	if err := f.zero(stop*s, end); err != nil {
		return err
	}
	if err := f.permit(first, stop-1, false); err != nil {
		f.forgetHoles()
		return err
	}
	return f.punchSegments(first, stop)
}

// punchSegments punches the slots of segments first ≤ i < stop, and none of a map. f.mu is held for writing.
func (f *File) punchSegments(first, stop int64) error {
	for i := first; i < stop; {
		from, next := f.l.offset(i), f.l.mapStart(f.l.mapsBefore(i)+1)
		end := f.l.mapOffset(f.l.mapsBefore(next))
		// Where the backing has no data there is no map, either, and there may be no end to them.
		data, err := f.nextData(i)
		if err != nil {
			return err
		}
		if data > next {
			next = data
			if end = f.l.offset(next); next == f.l.mapStart(f.l.mapsBefore(next)) {
				end -= f.l.slot // the data may be the map's
			}
		}
		if next >= stop {
			next, end = stop, f.l.offset(stop-1)+f.l.slot
		}
		if err := f.punch(from, end-from); err != nil {
			return err
		}
		i = next
	}
	return nil
}

// zero writes zeros from off to end, within the file. f.mu is held for writing.
func (f *File) zero(off, end int64) error {
	zeros := make([]byte, min(max(end-off, 0), f.l.segment))
	for off < end {
		n := min(f.l.segment-off%f.l.segment, end-off)
		if err := f.writeChunk(zeros[:n], off); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// punch zeroes a range of the backing.
func (f *File) punch(off, n int64) error {
	if b, ok := f.b.(interface{ PunchHole(off, n int64) error }); ok {
		return b.PunchHole(off, n)
	}
	zeros := make([]byte, min(n, chunkSize))
	for n > 0 {
		part := min(n, int64(len(zeros)))
		if _, err := f.b.WriteAt(zeros[:part], off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// Allocate reserves space for a range, as far as the backing can. The file grows to hold the range.
func (f *File) Allocate(off, n int64) error {
	defer f.change()()
	if off < 0 || n <= 0 {
		return errors.New("blockcrypt: bad range")
	}
	if off > MaxSize-n {
		return ErrTooLarge
	}
	b, ok := f.b.(interface{ Preallocate(off, n int64) error })
	start, end := f.l.offset(off/f.l.segment), f.l.SealedSize(off+n)
	if off+n <= f.size {
		if ok {
			return b.Preallocate(start, end-start)
		}
		return nil
	}
	if err := f.writeChunk([]byte{0}, off+n-1); err != nil {
		return err
	}
	if ok {
		return b.Preallocate(start, end-start)
	}
	return nil
}
