package blockcrypt

import (
	"errors"
	"math"
	"testing"
)

// A patient is a sparse backing that loses its patience after some calls.
type patient struct {
	*sparse
	calls int
}

var errImpatient = errors.New("too many calls")

func (p *patient) call() error {
	if p.calls--; p.calls < 0 {
		return errImpatient
	}
	return nil
}

func (p *patient) ReadAt(b []byte, off int64) (int, error) {
	if err := p.call(); err != nil {
		return 0, err
	}
	return p.sparse.ReadAt(b, off)
}

func (p *patient) SeekData(off int64) (int64, error) {
	if err := p.call(); err != nil {
		return 0, err
	}
	return p.sparse.SeekData(off)
}

func (p *patient) PunchHole(off, n int64) error {
	if err := p.call(); err != nil {
		return err
	}
	for k, page := range p.pages {
		from, to := max(off-k*512, 0), min(off+n-k*512, 512)
		if from < to {
			clear(page[from:to])
		}
		if isZero(page[:]) {
			delete(p.pages, k)
		}
	}
	return nil
}

// TestHugePunch punches all of the largest file there can be: that does not cost more than the data in it. The data and the maps behind it stay as they are.
func TestHugePunch(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	s := new(sparse)
	f := v.openSparse(t, s)
	const middle = 20 << 30
	for _, change := range []func() error{
		func() error { _, err := f.WriteAt([]byte("start"), 0); return err },
		func() error { return f.Truncate(MaxSize) },
		func() error { _, err := f.WriteAt([]byte("middle"), middle); return err },
		f.Flush,
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
	}
	p := &patient{s, 2000}
	f, err := Open(p, v.l, v.cipher(t, 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.PunchHole(0, MaxSize); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if at, err := f.SeekData(0); err != nil || at != f.last()*4096 {
			t.Errorf("data at %d, %v", at, err)
		}
		b := make([]byte, 5000)
		for _, off := range []int64{0, middle, MaxSize - 5000} {
			if _, err := f.ReadAt(b, off); err != nil && off+5000 < MaxSize || !isZero(b) {
				t.Errorf("at %d: %v, zeros: %v", off, err, isZero(b))
			}
		}
		f = v.openSparse(t, s)
	}
	if n := len(s.pages); n > 30+200*9 {
		t.Errorf("%d pages are left", n)
	}
}

// TestExtended has a file that has holes made huge by whoever can write its ciphertext: nothing runs to its end before that authenticates.
func TestExtended(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	s := new(sparse)
	f := v.openSparse(t, s)
	for _, off := range []int64{0, 1 << 20} {
		if _, err := f.WriteAt(make([]byte, 4096), off); err != nil {
			t.Fatal(err)
		}
	}
	s.size = v.l.SealedSize(MaxSize)
	p := &patient{s, 2000}
	f, err := Open(p, v.l, v.cipher(t, 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	if at, err := f.SeekHole(1 << 20); !errors.Is(err, ErrAuth) {
		t.Errorf("a hole at %d, %v", at, err)
	}
	if err := f.PunchHole(0, MaxSize); !errors.Is(err, ErrAuth) {
		t.Errorf("punched: %v", err)
	}
}

// TestScanLargest scans files of the largest sizes that a file system can have.
func TestScanLargest(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	for _, less := range []int64{0, 1, 30, 39, 41, 4000, 5000} {
		s := new(sparse)
		f := v.openSparse(t, s)
		if _, err := f.WriteAt([]byte("start"), 0); err != nil {
			t.Fatal(err)
		}
		s.size = math.MaxInt64 - less
		lost, kinds := int64(0), 0
		err := Scan(&patient{s, 2000}, s.size, v.l, v.cipher(t, 1), Visitor{Fault: func(f Fault) error {
			if f.Off < 0 || f.Len < 0 || f.SealedOff < 0 || f.SealedLen < 0 || f.SealedOff > s.size-f.SealedLen {
				t.Errorf("%d less: %+v", less, f)
			}
			lost += f.Len
			kinds++
			return nil
		}})
		if size, _ := v.l.PlainSize(s.size); err != nil || kinds == 0 || lost < size-4096 || lost > size {
			t.Errorf("%d less: %d of %d bytes lost in %d faults, %v", less, lost, size, kinds, err)
		}
	}
}
