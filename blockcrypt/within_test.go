package blockcrypt

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// elsewhere is a Backing that puts what it reads anywhere in the buffer.
type elsewhere struct {
	*memory
	t     *testing.T
	r     *rand.Rand
	reads int
	err   error
}

// ReadWithin implements Backing.
func (e *elsewhere) ReadWithin(buf []byte, off int64, n int) ([]byte, error) {
	e.reads++
	if len(buf) < n+12<<10 {
		e.t.Errorf("room for %d bytes in a buffer of %d", n, len(buf))
	}
	for i := range buf {
		buf[i] = 0xee
	}
	p := buf[e.r.IntN(len(buf)-n+1):][:n]
	if e.err != nil {
		return nil, e.err
	}
	m, err := e.ReadAt(p, off)
	return p[:m], err
}

// TestReadWithin reads from a backing that chooses where to read to.
func TestReadWithin(t *testing.T) {
	for segment, size := range map[int]int{4096: rootBits*4096 + 3<<20 + 17, 65536: 5<<20 + 17} { // the first has a hole map
		v := newVolume(t, AES256GCM, segment)
		want := content(size)
		e := &elsewhere{memory: v.written(t, want, 1), t: t, r: rand.New(rand.NewPCG(1, 2))}
		f, err := Open(e, v.l, v.cipher(t, 1), nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			n := 1 + e.r.IntN(2<<20)
			off := len(want) - 1 - e.r.IntN(5<<20)
			got := make([]byte, n)
			m, err := f.ReadAt(got, int64(off))
			if !bytes.Equal(got[:m], want[off:min(off+n, len(want))]) || err != nil && err != io.EOF || m < n != (off+n > len(want)) {
				t.Fatalf("%d of %d bytes at %d of %d: %v", m, n, off, len(want), err)
			}
		}
		if e.reads == 0 {
			t.Error("it was not asked")
		}
		e.b = e.b[:len(e.b)-1]
		if _, err := f.ReadAt(make([]byte, 100), int64(len(want)-100)); !errors.Is(err, ErrSize) {
			t.Errorf("cut: %v", err)
		}
		e.err = errInjected
		if _, err := f.ReadAt(make([]byte, 100), int64(len(want)-100)); !errors.Is(err, errInjected) {
			t.Errorf("failing: %v", err)
		}
	}
}
