package blockcrypt

import (
	"bufio"
	"fmt"
	"io"
)

// SealStream writes the ciphertext of all that r yields to w, front to back and without holes. Nothing is written, and fresh not called, if that is no byte.
func SealStream(w io.Writer, r io.Reader, l Layout, fresh Fresh) error {
	in, out := bufio.NewReaderSize(r, chunkSize), bufio.NewWriterSize(w, chunkSize)
	if _, err := in.Peek(1); err == io.EOF {
		return nil
	}
	header, c, err := fresh()
	if err != nil {
		return err
	}
	if int64(len(header)) != l.header {
		panic("blockcrypt: internal error: header of the wrong length")
	}
	out.Write(header) // an error is kept until Flush
	out.Write(make([]byte, rootSize))
	plain, slot := make([]byte, l.segment), make([]byte, l.slot)
	var aad [9]byte
	for i := int64(0); ; i++ {
		if startsMap(l, i) {
			clear(slot)
			out.Write(slot)
		}
		n, err := io.ReadFull(in, plain)
		if err != nil && err != io.ErrUnexpectedEOF {
			return err
		}
		_, err = in.Peek(1)
		if err != nil && err != io.EOF {
			return err
		}
		kind := byte(kindInner)
		if err == io.EOF {
			kind = kindFinal
		}
		c.sealer(1).seal(slot[:n+Overhead], plain[:n], i, kind, &aad)
		if _, err := out.Write(slot[:n+Overhead]); err != nil {
			return err
		}
		switch {
		case kind == kindFinal:
			return out.Flush()
		case (i+1)*l.segment > MaxSize-l.segment:
			return ErrTooLarge
		}
	}
}

// startsMap reports whether the slot of a map precedes that of segment i.
func startsMap(l Layout, i int64) bool {
	k := l.mapsBefore(i)
	return k > 0 && i == l.mapStart(k)
}

// OpenStream verifies a sealed file that is not empty front to back; r is at its hole root, after the header. Unlike [Scan] it ends at the first fault,
// with an error that wraps [ErrAuth] or [ErrSize]. v gets what was authenticated until then.
func OpenStream(r io.Reader, l Layout, c *Cipher, v Visitor) (err error) {
	in := bufio.NewReaderSize(r, chunkSize)
	slot, plain := make([]byte, max(l.slot, rootSize)), make([]byte, l.segment)
	s := &scan{l: l, c: c, v: v}
	if n, err := readSlot(in, slot[:rootSize]); err != nil || n < rootSize {
		return orCut(err)
	}
	if s.root, err = c.openRoot(slot[:rootSize]); err != nil {
		return err
	}
	s.bits = s.root.bits
	for i := int64(0); ; i++ {
		if startsMap(l, i) {
			k := l.mapsBefore(i)
			if n, err := readSlot(in, slot[:l.slot]); err != nil || int64(n) < l.slot {
				return orCut(err)
			}
			if s.absentMap(k); !isZero(slot[:l.slot]) {
				s.bits = make([]byte, l.segment)
				if err := c.openMap(s.bits, slot[:l.slot], k, s.root); err != nil {
					return err
				}
			}
		}
		n, err := readSlot(in, slot[:l.slot])
		if err != nil || n <= Overhead {
			return orCut(err)
		}
		_, err = in.Peek(1)
		if err != nil && err != io.EOF {
			return err
		}
		last := err == io.EOF
		if !last && isZero(slot[:l.slot]) {
			if s.permitted(i) != 0 {
				return fmt.Errorf("%w: segment %d is zeroed, and no hole", ErrAuth, i)
			}
			if v.Hole != nil {
				if err := v.Hole(i*l.segment, l.segment); err != nil {
					return err
				}
			}
			continue
		}
		kind := byte(kindInner)
		if last {
			kind = kindFinal
		}
		if err := c.open(plain[:n-Overhead], slot[:n], i, kind, &s.aad); err != nil {
			return err
		}
		if v.Data != nil {
			if err := v.Data(i*l.segment, plain[:n-Overhead]); err != nil {
				return err
			}
		}
		if last {
			return nil
		}
	}
}

// readSlot reads a slot, or what is left of it at the end of the file.
func readSlot(r io.Reader, slot []byte) (int, error) {
	n, err := io.ReadFull(r, slot)
	if err == io.ErrUnexpectedEOF {
		err = nil
	}
	return n, err
}

// orCut is what reading a slot has failed with, or that there is too little of it.
func orCut(err error) error {
	if err == nil || err == io.EOF {
		return fmt.Errorf("%w: it was cut", ErrSize)
	}
	return err
}
