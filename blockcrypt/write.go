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
	sealed, err := f.sealRange(buf.sealed, p, off, f.size, buf)
	if err != nil {
		return err
	}
	if err := f.filled(first, last); err != nil {
		return err
	}
	if keepTail {
		f.hasTail = false
	}
	if err := f.put(sealed, first, last); err != nil {
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
	sealed, err := f.sealRange(buf.sealed[f.l.prologue:], p, off, size, buf)
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
		if err := f.put(sealed, first, last); err != nil {
			return err
		}
		if err := f.filled(first, last); err != nil {
			return err
		}
	} else {
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
// them) from the start of out, which is part of buf.sealed. Edges keep what the file has there, or zeros beyond its end.
// f.mu is held for writing.
func (f *File) sealRange(out, p []byte, off, size int64, buf *buffer) ([]byte, error) {
	s := f.l.segment
	first, last := off/s, (off+int64(len(p))-1)/s
	end := off + int64(len(p))
	key := f.c.sealer(int(last - first + 1))
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

// grow writes p at off, past the end of the file. A failure is undone by cutting the file and sealing the old final segment as it
// was. f.mu is held for writing.
func (f *File) grow(p []byte, off int64, buf *buffer) (err error) {
	s := f.l.segment
	if err := f.loadTail(buf); err != nil {
		return err // a file that was cut must not be sealed anew
	}
	size, oldLast, oldSealed := off+int64(len(p)), f.last(), f.l.SealedSize(f.size)
	first, last := off/s, (size-1)/s
	defer func() {
		if err != nil {
			f.restore(oldLast, oldSealed)
		}
	}()

	slots, at := buf.sealed, int64(0)
	if first > oldLast {
		// p does not reach the old final segment, which is none any more.
		full := append(append(buf.segment[:0], f.tail...), make([]byte, s-int64(len(f.tail)))...)
		f.c.sealer(1).seal(slots[:f.l.slot], full, oldLast, kindInner, &buf.aad)
		at = f.l.slot
		if first > oldLast+1 {
			if err := f.permit(oldLast+1, first-1, true); err != nil {
				return err
			}
		}
	}
	sealed, err := f.sealRange(slots[at:], p, off, size, buf)
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
	if first == oldLast+1 {
		first, sealed = oldLast, slots[:at+int64(len(sealed))]
	}
	if err := f.put(sealed, first, last); err != nil {
		return err
	}
	if first > oldLast {
		if err := f.put(slots[:at], oldLast, oldLast); err != nil {
			return err
		}
	}
	f.size = size
	// The new final segment is in p, or it is the old one with p behind.
	start := last * s
	switch {
	case off <= start:
		f.setTail(p[start-off:])
	case last == oldLast:
		if gap := size - start - int64(len(f.tail)); gap > 0 {
			f.tail = append(f.tail, make([]byte, gap)...)
		}
		copy(f.tail[off-start:], p)
	default:
		f.hasTail = false
	}
	return nil
}

// restore undoes a failed growth as far as the backing lets it: the old final segment, f.tail, is sealed as final again.
func (f *File) restore(last, sealedSize int64) {
	f.forgetHoles()
	slot := make([]byte, len(f.tail)+Overhead)
	f.c.sealer(1).seal(slot, f.tail, last, kindFinal, new([9]byte))
	if f.b.Truncate(sealedSize) == nil {
		_, _ = f.b.WriteAt(slot, f.l.offset(last))
	}
}

// put writes consecutive slots of segments first to last around the maps between them. f.mu is held for writing.
func (f *File) put(sealed []byte, first, last int64) error {
	for i := first; i <= last; {
		// A run of slots with no map between them.
		stop := min(last, f.l.mapStart(f.l.mapsBefore(i)+1)-1)
		n := min((stop-i+1)*f.l.slot, int64(len(sealed)))
		if _, err := f.b.WriteAt(sealed[:n], f.l.offset(i)); err != nil {
			return fmt.Errorf("write segments %d to %d: %w", i, stop, err)
		}
		i, sealed = stop+1, sealed[n:]
	}
	return nil
}
