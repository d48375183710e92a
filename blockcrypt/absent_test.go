package blockcrypt

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// openSparse opens a file over s.
func (v volume) openSparse(t *testing.T, s *sparse) *File {
	t.Helper()
	var c *Cipher
	if s.size > 0 {
		c = v.cipher(t, 1)
	}
	f, err := Open(s, v.l, c, func() ([]byte, *Cipher, error) { return make([]byte, headerSize), v.cipher(t, 1), nil })
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestAbsentMaps writes, punches and grows a file of many maps, and zeroes what an attacker may: a map with all that it covers.
func TestAbsentMaps(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	l := v.l
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 3))
		s := new(sparse)
		f := v.openSparse(t, s)
		data := make(map[int64]bool) // segments that hold data; all others do not
		write := func(i int64) {
			t.Helper()
			if _, err := f.WriteAt(bytes.Repeat([]byte{7}, 4096), i*4096); err != nil {
				t.Fatal(err)
			}
			if old := f.size; old > 0 {
				data[i] = true
			}
		}
		write(0)
		for range 40 {
			i := l.mapStart(int64(r.IntN(30))) + int64(r.IntN(4))
			switch r.IntN(6) {
			case 0, 1, 2:
				write(i)
			case 3:
				if i >= f.size/4096 { // the last byte that growing leaves is data
					if err := f.Truncate((i + 1) * 4096); err != nil {
						t.Fatal(err)
					}
				}
			case 4:
				if err := f.PunchHole(i*4096, 4096); err != nil {
					t.Fatal(err)
				}
				if i < f.last() {
					delete(data, i)
				}
			case 5:
				if r.IntN(2) == 0 {
					n := max(i, 1)
					if n*4096 < f.size {
						if err := f.Truncate(n * 4096); err != nil {
							t.Fatal(err)
						}
						for j := range data {
							if j >= n {
								delete(data, j)
							}
						}
					}
				} else {
					f = v.openSparse(t, s) // as after a crash
				}
			}
		}
		// Every segment that has data now is written again and flushed: no permission may stay for it.
		for i := range data {
			write(i)
		}
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
		f = v.openSparse(t, s)
		p := make([]byte, 4096)
		for i := range data {
			if _, err := f.ReadAt(p, i*4096); err != nil && err != io.EOF || p[0] != 7 && i != f.last() {
				t.Fatalf("seed %d: segment %d: %v", seed, i, err)
			}
		}
		if f.holes.absent {
			continue
		}
		for k := f.holes.from; k < f.holes.to; k++ {
			if slot, err := f.readMap(k); err != nil || !isZero(slot) {
				t.Errorf("seed %d: map %d is stored, and covered by absence, %v", seed, k, err)
			}
		}
		for i := range data {
			k := l.mapsBefore(i)
			if k == 0 || i == f.last() {
				continue
			}
			edited := &sparse{pages: make(map[int64]*[512]byte), size: s.size}
			for n, page := range s.pages {
				edited.pages[n] = page
			}
			for _, at := range []int64{l.mapOffset(k), l.offset(i)} {
				for n := at / 512; n <= (at+l.slot-1)/512; n++ {
					page := new([512]byte)
					if old := s.pages[n]; old != nil {
						*page = *old
					}
					from, to := max(at-n*512, 0), min(at+l.slot-n*512, 512)
					clear(page[from:to])
					edited.pages[n] = page
				}
			}
			if _, err := v.openSparse(t, edited).ReadAt(p, i*4096); !errors.Is(err, ErrAuth) {
				t.Errorf("seed %d: segment %d zeroed with its map %d: %v", seed, i, k, err)
			}
		}
	}
}

// TestStaleRange has a root whose range goes beyond the file, as a crash between permission and growth leaves it.
func TestStaleRange(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	s := new(sparse)
	f := v.openSparse(t, s)
	if _, err := f.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	before := s.size
	if err := f.permit(1, v.l.mapStart(9), true); err != nil {
		t.Fatal(err)
	}
	if s.size != before {
		t.Fatalf("permitting holes changed the size from %d to %d", before, s.size)
	}
	f = v.openSparse(t, s)
	for i := int64(0); i < v.l.mapStart(1)+2; i++ {
		if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 4096), i*4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	f = v.openSparse(t, s)
	if ok, err := f.permitted(v.l.mapStart(1)); ok || err != nil || s.size != v.l.SealedSize(f.size) {
		t.Errorf("permission for data: %v, %v; %d bytes", ok, err, s.size)
	}
	if f.holes.to != 0 || f.holes.stale {
		t.Errorf("the range still is %d to %d, stale: %v", f.holes.from, f.holes.to, f.holes.stale)
	}
}

func FuzzHoleRoot(f *testing.F) {
	f.Add(make([]byte, rootPlain))
	f.Add(appendRoot(nil, holeRoot{1, 5, bytes.Repeat([]byte{0xa5}, rootBits/8)}))
	f.Fuzz(func(t *testing.T, plain []byte) {
		if len(plain) != rootPlain {
			return
		}
		r, err := parseRoot(plain)
		if err != nil {
			return
		}
		if !bytes.Equal(appendRoot(nil, r), plain) {
			t.Fatal("a second spelling of a hole root")
		}
		if r.from > r.to || r.covers(0) || r.to > maxMaps {
			t.Fatalf("maps %d to %d", r.from, r.to)
		}
	})
}
