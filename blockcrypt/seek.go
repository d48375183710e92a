package blockcrypt

import "io"

// SeekData returns the first offset from off on that is not in a hole; [ErrNoData] if off is at or past the end. The
// final segment is always data.
func (f *File) SeekData(off int64) (int64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if off < 0 || off >= f.size {
		return 0, ErrNoData
	}
	for i := off / f.l.segment; i < f.last(); {
		hole, err := f.isHole(i)
		if err != nil {
			return 0, err
		}
		if !hole {
			return max(off, i*f.l.segment), nil
		}
		if i, err = f.nextData(i + 1); err != nil {
			return 0, err
		}
	}
	return max(off, f.last()*f.l.segment), nil
}

// SeekHole returns the first offset from off on that is in a hole, or the size if there is none; [ErrNoData] if
// off is at or past the end.
func (f *File) SeekHole(off int64) (int64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if off < 0 || off >= f.size {
		return 0, ErrNoData
	}
	for i := off / f.l.segment; i < f.last(); i++ {
		next, err := f.nextPermitted(i)
		if err != nil {
			return 0, err
		}
		if i = next; i >= f.last() {
			break
		}
		hole, err := f.isHole(i)
		if err != nil {
			return 0, err
		}
		if hole {
			return max(off, i*f.l.segment), nil
		}
	}
	return f.size, nil
}

// isHole reports whether segment i, which is not the final one, is a hole: permitted, and zeros in the ciphertext. f.mu is held.
func (f *File) isHole(i int64) (bool, error) {
	ok, err := f.permitted(i)
	if err != nil || !ok {
		return false, err
	}
	nonce := make([]byte, prefixSize+nonceSize)
	if err := readFull(f.b, nonce, f.l.offset(i)); err != nil {
		return false, err
	}
	return isZero(nonce), nil
}

// nextData returns the first segment from i on whose slot may have data in the backing. f.mu is held.
func (f *File) nextData(i int64) (int64, error) {
	b, ok := f.b.(interface {
		SeekData(off int64) (int64, error)
	})
	if !ok || i >= f.last() {
		return i, nil
	}
	off, err := b.SeekData(f.l.offset(i))
	if err == io.EOF {
		return f.last(), nil
	} else if err != nil {
		return 0, err
	}
	return max(i, f.l.segmentAt(off)), nil
}

// nextPermitted returns the first segment from i on that may be a hole, or one past the end of the file. f.mu is held.
func (f *File) nextPermitted(i int64) (int64, error) {
	f.holes.mu.Lock()
	defer f.holes.mu.Unlock()
	if err := f.loadRoot(); err != nil {
		return 0, err
	}
	if f.holes.absent {
		return f.last() + 1, nil
	}
	for i <= f.last() {
		k := f.l.mapsBefore(i)
		m, err := f.loadMap(k)
		if err != nil {
			return 0, err
		}
		start := f.l.mapStart(k)
		for j := i - start; j < int64(len(m.bits))*8; j++ {
			if j%8 == 0 && m.bits[j/8] == 0 {
				j += 7
				continue
			}
			if m.get(j) {
				return start + j, nil
			}
		}
		if i = f.l.mapStart(k + 1); i <= f.last() {
			if err := f.checkEnd(); err != nil {
				return 0, err
			}
		}
	}
	return f.last() + 1, nil
}
