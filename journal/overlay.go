package journal

import "sort"

// An extent is a changed range of a file: data, or n zeros where data is nil.
type extent struct {
	off, n int64
	data   []byte
	dirty  bool // not in the log yet
}

func (e extent) end() int64 { return e.off + e.n }

// holdsID reports whether e is the beginning of a file, with the file ID.
func (e extent) holdsID() bool { return e.off == 0 && len(e.data) >= idEnd }

// part returns what of e lies from off to end.
func (e extent) part(off, end int64) extent {
	off, end = max(off, e.off), min(end, e.end())
	if e.data != nil {
		e.data = e.data[off-e.off : end-e.off]
	}
	e.off, e.n = off, end-off
	return e
}

// An overlay is the changes of a file that are not in place: extents sorted by offset, none overlapping another.
type overlay []extent

// find returns the index of the first extent that ends after off.
func (o overlay) find(off int64) int {
	return sort.Search(len(o), func(i int) bool { return o[i].end() > off })
}

// put adds e, in place of whatever the overlay had there. It keeps e.data.
func (o *overlay) put(e extent) {
	s := *o
	i := s.find(e.off)
	k := i // extents i to k-1 overlap e
	for k < len(s) && s[k].off < e.end() {
		k++
	}
	var keep [3]extent
	parts := keep[:0]
	if i < k && s[i].off < e.off {
		parts = append(parts, s[i].part(0, e.off))
	}
	parts = append(parts, e)
	if i < k && s[k-1].end() > e.end() {
		parts = append(parts, s[k-1].part(e.end(), s[k-1].end()))
	}
	switch grow := len(parts) - (k - i); {
	case grow > 0:
		s = append(s, keep[:grow]...)
		copy(s[k+grow:], s[k:len(s)-grow])
	case grow < 0:
		s = append(s[:k+grow], s[k:]...)
	}
	copy(s[i:], parts)
	*o = s
}

// cut drops what lies at size or after it.
func (o *overlay) cut(size int64) {
	s := *o
	i := s.find(size)
	if i < len(s) && s[i].off < size {
		s[i] = s[i].part(0, size)
		i++
	}
	clear(s[i:])
	*o = s[:i]
}

// read fills p from off with what the overlay has, and calls gap for the ranges between.
func (o overlay) read(p []byte, off int64, gap func(p []byte, off int64) error) error {
	end := off + int64(len(p))
	for i := o.find(off); off < end; i++ {
		next := end
		if i < len(o) {
			next = min(end, o[i].off)
		}
		if next > off {
			if err := gap(p[:next-off], off); err != nil {
				return err
			}
			p, off = p[next-off:], next
		}
		if off == end {
			return nil
		}
		e := o[i].part(off, end)
		if e.data == nil {
			clear(p[:e.n])
		} else {
			copy(p, e.data)
		}
		p, off = p[e.n:], e.end()
	}
	return nil
}

// bytes returns how many bytes of data the extents hold.
func (o overlay) bytes() (n int64) {
	for _, e := range o {
		n += int64(len(e.data))
	}
	return n
}
