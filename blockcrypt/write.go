package blockcrypt

import (
	"errors"
	"fmt"
)

// WriteAt implements [io.WriterAt]; it extends the file as needed, leaving a hole where nothing was written.
func (f *File) WriteAt(p []byte, off int64) (n int, err error) {
	defer f.change()()
	if off < 0 {
		return 0, errors.New("blockcrypt: negative offset")
	}
	if off > MaxSize-int64(len(p)) {
		return 0, ErrTooLarge
	}
	for n < len(p) {
		pos := off + int64(n)
		stop := min(int64(len(p)), int64(n)+chunkSize-pos%f.l.segment)
		if err := f.writeChunk(p[n:stop], pos); err != nil {
			return n, err
		}
		n = int(stop)
	}
	return n, nil
}

// writeChunk writes at most chunkSize bytes of p at off. f.mu is held for writing.
func (f *File) writeChunk(p []byte, off int64) error {
	if f.size == 0 {
		return f.writeFirst(p, off)
	}
	buf := f.l.buffers.Get().(*buffer)
	defer f.l.buffers.Put(buf)
	if off+int64(len(p)) > f.size {
		return f.grow(p, off, buf)
	}
	if f.bad {
		return fmt.Errorf("%w: the file was cut or extended", ErrSize)
	}
	first, last := off/f.l.segment, (off+int64(len(p))-1)/f.l.segment
	keepTail := last == f.last()
	sealed, err := f.sealRange(p, off, f.size, buf)
	if err != nil {
		return err
	}
	if err := f.filled(first, last); err != nil {
		return err
	}
	if keepTail {
		f.hasTail = false
	}
	if err := f.put(sealed, first, last, f.size); err != nil {
		f.forgetHoles()
		return err
	}
	return nil
}

// writeFirst gives an empty file its header and first bytes, in one write if they start in segment 0.
func (f *File) writeFirst(p []byte, off int64) (err error) {
	header, c, err := f.fresh()
	if err != nil {
		return err
	}
	if int64(len(header)) != f.l.header {
		panic("blockcrypt: internal error: header of the wrong length")
	}
	f.c, f.bad, f.hasTail = c, false, false
	f.noHoles()
	defer func() {
		if err != nil {
			_ = f.b.Truncate(0)
			f.c, f.size, f.hasTail = nil, 0, false
		}
	}()
	buf := f.l.buffers.Get().(*buffer)
	defer f.l.buffers.Put(buf)
	first, last := off/f.l.segment, (off+int64(len(p))-1)/f.l.segment
	size := off + int64(len(p))
	sealed, err := f.sealRange(p, off, size, buf)
	if err != nil {
		return err
	}
	if first > 0 {
		if err := f.permit(0, first-1, true); err != nil {
			return err
		}
		if _, err := f.b.WriteAt(header, 0); err != nil {
			return err
		}
		if err := f.put(sealed, first, last, size); err != nil {
			return err
		}
		if err := f.filled(first, last); err != nil {
			return err
		}
	} else {
		// sealRange leaves room for the prologue in front.
		whole := buf.sealed[:f.l.prologue+int64(len(sealed))]
		copy(whole, header)
		clear(whole[f.l.header:f.l.prologue])
		if _, err := f.b.WriteAt(whole, 0); err != nil {
			return err
		}
	}
	f.size = size
	f.setTail(p[max(int64(len(p))-(size-last*f.l.segment), 0):])
	if int64(len(f.tail)) != f.plainLen(last) {
		f.hasTail = false
	}
	return nil
}

// sealRange seals the segments that p covers at off, in a file that will have size bytes, into consecutive slots (without the maps between
// them). Edges keep what the file has there, or zeros beyond its end. The slots lie in buf.sealed behind room for a prologue.
// f.mu is held for writing.
func (f *File) sealRange(p []byte, off, size int64, buf *buffer) ([]byte, error) {
	s := f.l.segment
	first, last := off/s, (off+int64(len(p))-1)/s
	end := off + int64(len(p))
	key := f.c.sealer(int(last - first + 1))
	out := buf.sealed[f.l.prologue:]
	finalIndex := (size - 1) / s
	at := int64(0)
	for i := first; i <= last; i++ {
		n := min(s, size-i*s)
		from, to := max(off-i*s, 0), min(end-i*s, n)
		var plain []byte
		if from == 0 && to == n {
			plain = p[i*s-off:][:n]
		} else {
			var err error
			if plain, err = f.merged(i, n, buf); err != nil {
				return nil, err
			}
			copy(plain[from:to], p[i*s+from-off:])
		}
		kind := byte(kindInner)
		if i == finalIndex {
			kind = kindFinal
		}
		key.seal(out[at:at+n+Overhead], plain, i, kind, &buf.aad)
		at += n + Overhead
	}
	return out[:at], nil
}

// merged returns what segment i has now, with zeros up to n bytes. f.mu is held for writing.
func (f *File) merged(i, n int64, buf *buffer) ([]byte, error) {
	plain := buf.segment[:n]
	have := int64(0)
	if f.size > 0 && i <= f.last() {
		have = min(f.plainLen(i), n)
		if i == f.last() {
			if err := f.loadTail(buf); err != nil {
				return nil, err
			}
			copy(plain, f.tail)
		} else if _, err := f.readSegment(i, buf); err != nil {
			return nil, err
		}
	}
	clear(plain[have:])
	return plain, nil
}

// grow writes p at off, past the end of the file. Everything beyond the old end is written before the old final
// segment, so that a failure can be undone by cutting the file. f.mu is held for writing.
func (f *File) grow(p []byte, off int64, buf *buffer) (err error) {
	s := f.l.segment
	if err := f.loadTail(buf); err != nil {
		return err // a file that was cut must not be sealed anew
	}
	size, oldLast, oldSealed := off+int64(len(p)), f.last(), f.l.SealedSize(f.size)
	first, last := off/s, (size-1)/s
	old := append([]byte(nil), f.tail...)
	defer func() {
		if err != nil {
			f.restore(old, oldLast, oldSealed)
		}
	}()

	var tailSlot []byte // the old final segment, sealed anew, if p does not reach it
	if first > oldLast {
		tailSlot = make([]byte, f.l.slot)
		full := make([]byte, s)
		copy(full, old)
		f.c.sealer(1).seal(tailSlot, full, oldLast, kindInner, &buf.aad)
		if first > oldLast+1 {
			if err := f.permit(oldLast+1, first-1, true); err != nil {
				return err
			}
		}
	}
	sealed, err := f.sealRange(p, off, size, buf)
	if err != nil {
		return err
	}
	// permit may have loaded maps that say more than is so.
	if err := f.filled(max(first, oldLast+1), last); err != nil {
		return err
	}
	if first <= oldLast {
		if err := f.filled(first, min(last, oldLast)); err != nil {
			return err
		}
	}
	if err := f.put(sealed, first, last, f.size); err != nil {
		return err
	}
	if tailSlot != nil {
		if err := f.put(tailSlot, oldLast, oldLast, f.size); err != nil {
			return err
		}
	}
	f.size = size
	// The new final segment is in p, or it is the old one with p behind.
	start := last * s
	switch {
	case off <= start:
		f.setTail(p[start-off:])
	case first == oldLast && last == oldLast:
		tail := make([]byte, size-start)
		copy(tail, old)
		copy(tail[off-start:], p)
		f.setTail(tail)
	default:
		f.hasTail = false
	}
	return nil
}

// restore undoes a failed growth as far as the backing lets it: the old final segment is sealed as final again.
func (f *File) restore(tail []byte, last, sealedSize int64) {
	f.forgetHoles()
	slot := make([]byte, len(tail)+Overhead)
	f.c.sealer(1).seal(slot, tail, last, kindFinal, new([9]byte))
	if f.b.Truncate(sealedSize) == nil {
		_, _ = f.b.WriteAt(slot, f.l.offset(last))
	}
	f.setTail(tail)
}

// put writes consecutive slots of segments first to last around the maps between them: what lies beyond the end of a file of oldSize
// bytes first, then the rest. f.mu is held for writing.
func (f *File) put(sealed []byte, first, last, oldSize int64) error {
	end := f.l.SealedSize(oldSize)
	for _, beyond := range []bool{true, false} {
		for i, at := first, int64(0); i <= last; {
			// A run of slots with no map between them.
			stop := min(last, f.l.mapStart(f.l.mapsBefore(i)+1)-1)
			n := min((stop-i+1)*f.l.slot, int64(len(sealed))-at)
			off, run := f.l.offset(i), sealed[at:at+n]
			split := min(max(end-off, 0), n)
			part := run[:split]
			if beyond {
				off, part = off+split, run[split:]
			}
			if len(part) > 0 {
				if _, err := f.b.WriteAt(part, off); err != nil {
					return fmt.Errorf("write segments %d to %d: %w", i, stop, err)
				}
			}
			i, at = stop+1, at+n
		}
	}
	return nil
}
