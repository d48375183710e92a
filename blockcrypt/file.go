// Package blockcrypt presents sealed segments as randomly readable and writable plaintext.
//
// A ciphertext file is header ‖ hole root ‖ slots; a slot is prefix ‖ nonce ‖ ciphertext ‖ tag of one segment. The last segment is sealed as
// final, which authenticates the length; hole maps say which slots may be all zeros. docs/format.md sections 5 and 6 are
// normative. A [Layout] is the arithmetic, a [Cipher] the cryptography, and a [File] puts both over a [Backing].
package blockcrypt

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// A Backing holds the bytes of a ciphertext file. It may implement these, too:
//
//	PunchHole(off, n int64) error        // zero a range and free its space; else zeros are written
//	Preallocate(off, n int64) error      // make sure that writes to a range find space; else nothing is done
//	SeekData(off int64) (int64, error)   // the next offset that may hold data, io.EOF if none; else all is data
//	Begin(); End()                       // called around the changes of one operation, which belong together
//	Quiet()                              // called after Begin: this operation is not one of a program, and is not to show in the modification time
type Backing interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	Size() (int64, error)
}

// Fresh makes the header and the cipher of a file that is about to get its first byte.
type Fresh func() (header []byte, c *Cipher, err error)

// A File is the plaintext of a ciphertext file. Reads run side by side, changes one at a time.
type File struct {
	b     Backing
	l     Layout
	fresh Fresh

	mu      sync.RWMutex
	c       *Cipher // guarded by mu; nil while the file is empty
	size    int64   // plaintext bytes; guarded by mu
	bad     bool    // the ciphertext has an impossible size; guarded by mu
	tail    []byte  // plaintext of the final segment if hasTail; guarded by mu
	hasTail bool    // guarded by mu
	holes   holes   // has its own lock, taken after mu
}

// Open returns the plaintext of b. c is nil if, and only if, b is empty. The File reads nothing yet.
func Open(b Backing, l Layout, c *Cipher, fresh Fresh) (*File, error) {
	f := &File{b: b, l: l, c: c, fresh: fresh}
	sealed, err := b.Size()
	if err != nil {
		return nil, err
	}
	plain, ok := l.PlainSize(sealed)
	if (sealed == 0) != (c == nil) {
		return nil, fmt.Errorf("%w: %d bytes", ErrSize, sealed)
	}
	f.size, f.bad = plain, !ok
	return f, nil
}

// change locks f for an operation that changes it; the function returned ends it.
func (f *File) change() (done func()) {
	b, ok := f.b.(interface {
		Begin()
		End()
	})
	f.mu.Lock()
	if !ok {
		return f.mu.Unlock
	}
	b.Begin()
	return func() {
		f.mu.Unlock()
		b.End() // it may wait: readers need not
	}
}

// Size returns the plaintext size in bytes.
func (f *File) Size() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.size
}

// last is the index of the final segment. f.mu is held and the file is not empty.
func (f *File) last() int64 { return (f.size - 1) / f.l.segment }

// plainLen is the number of plaintext bytes in segment i. f.mu is held.
func (f *File) plainLen(i int64) int64 { return min(f.l.segment, f.size-i*f.l.segment) }

// kind is how segment i is sealed. f.mu is held.
func (f *File) kind(i int64) byte {
	if i == f.last() {
		return kindFinal
	}
	return kindInner
}

// ReadAt implements [io.ReaderAt]. Bytes that it returns have been authenticated.
func (f *File) ReadAt(p []byte, off int64) (n int, err error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if off < 0 {
		return 0, errors.New("blockcrypt: negative offset")
	}
	if off >= f.size {
		return 0, io.EOF
	}
	atEnd := int64(len(p)) >= f.size-off
	if atEnd {
		p = p[:f.size-off]
	}
	for n < len(p) {
		// A chunk ends at a segment boundary.
		pos := off + int64(n)
		stop := min(int64(len(p)), int64(n)+chunkSize-pos%f.l.segment)
		if err := f.readChunk(p[n:stop], pos); err != nil {
			return n, err
		}
		n = int(stop)
	}
	if atEnd && n == len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readChunk fills p from off with one read of the backing. f.mu is held for reading at least.
func (f *File) readChunk(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	s := f.l.segment
	first, last := off/s, (off+int64(len(p))-1)/s
	if f.bad && last == f.last() {
		return fmt.Errorf("%w: the file was cut or extended", ErrSize)
	}
	buf := f.l.buffers.Get().(*buffer)
	defer f.l.buffers.Put(buf)
	start := f.l.offset(first)
	sealed := buf.sealed[:f.l.offset(last)+f.plainLen(last)+Overhead-start]
	if err := readFull(f.b, sealed, start); err != nil {
		return err
	}
	for i := first; i <= last; i++ {
		at := f.l.offset(i) - start
		n := f.plainLen(i)
		slot := sealed[at : at+n+Overhead]
		from, to := max(off-i*s, 0), min(off+int64(len(p))-i*s, n)
		dst := p[i*s+from-off:]
		if from == 0 && to == n {
			if err := f.open(dst[:n], slot, i, buf); err != nil {
				return err
			}
			continue
		}
		if err := f.open(buf.segment[:n], slot, i, buf); err != nil {
			return err
		}
		copy(dst, buf.segment[from:to])
	}
	return nil
}

// open opens the slot of segment i into dst. f.mu is held.
func (f *File) open(dst, slot []byte, i int64, buf *buffer) error {
	if isZero(slot[:prefixSize+nonceSize]) && isZero(slot) {
		if i == f.last() {
			return fmt.Errorf("%w: final segment %d is zeroed", ErrAuth, i)
		}
		ok, err := f.permitted(i)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%w: segment %d is zeroed, and no hole", ErrAuth, i)
		}
		clear(dst)
		return nil
	}
	return f.c.open(dst, slot, i, f.kind(i), &buf.aad)
}

// readSegment opens segment i into buf.segment. f.mu is held.
func (f *File) readSegment(i int64, buf *buffer) ([]byte, error) {
	n := f.plainLen(i)
	slot := make([]byte, n+Overhead)
	if err := readFull(f.b, slot, f.l.offset(i)); err != nil {
		return nil, err
	}
	return buf.segment[:n], f.open(buf.segment[:n], slot, i, buf)
}

// loadTail makes sure that f.tail is the plaintext of the final segment: it was authenticated as such.
// f.mu is held for writing and the file is not empty.
func (f *File) loadTail(buf *buffer) error {
	if f.hasTail {
		return nil
	}
	plain, err := f.readTail(buf)
	if err != nil {
		return err
	}
	f.setTail(plain)
	return nil
}

// readTail opens the final segment into buf.segment, which authenticates the size, too. f.mu is held.
func (f *File) readTail(buf *buffer) ([]byte, error) {
	if f.bad {
		return nil, fmt.Errorf("%w: the file was cut or extended", ErrSize)
	}
	return f.readSegment(f.last(), buf)
}

// checkEnd makes sure that the size is that of the file: whoever can write the ciphertext can make it as large as he likes. f.mu is held.
func (f *File) checkEnd() error {
	if f.hasTail {
		return nil
	}
	buf := f.l.buffers.Get().(*buffer)
	defer f.l.buffers.Put(buf)
	_, err := f.readTail(buf)
	return err
}

func (f *File) setTail(plain []byte) {
	f.tail = append(f.tail[:0], plain...)
	f.hasTail = true
}

// readFull fills p; that the backing ends early is [ErrSize].
func readFull(b io.ReaderAt, p []byte, off int64) error {
	n, err := b.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return fmt.Errorf("%w: it ends early", ErrSize)
	}
	return err
}

// isZero reports whether b is all zeros.
func isZero(b []byte) bool {
	for len(b) >= 8 {
		if b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
