package journal

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"
)

// TestRecordRoundTrip checks parse∘append on records of many shapes, and that no flipped bit goes unnoticed.
func TestRecordRoundTrip(t *testing.T) {
	records := []*record{
		{kind: kindGrow, ino: 7, version: 9, keep: 100, size: 100, path: "a/b", extents: []extent{}},
		{kind: kindChange, grown: true, ino: 1, keep: 5, size: 5, extents: []extent{}},
		{kind: kindChange, ino: 1 << 60, fileID: [16]byte{1, 2, 3}, keep: 1 << 62, size: 5000, mtime: 1<<63 + 7, path: "x",
			extents: []extent{{off: 0, n: 3, data: []byte("abc")}, {off: 3, n: 10}, {off: 100, n: 1, data: []byte("z")}}},
	}
	for _, r := range records {
		b := r.append(nil, 3, 4)
		if int64(len(b)) != r.encoded() || recordLen(b, 3, 4) != r.encoded() || recordLen(b, 3, 5) != 0 || recordLen(b, 2, 4) != 0 {
			t.Fatalf("%+v: wrong length", r)
		}
		got, err := parseRecord(b)
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("got %+v, %v; want %+v", got, err, r)
		}
		for i := range 8 * len(b) {
			b[i/8] ^= 1 << (i % 8)
			if _, err := parseRecord(b); err == nil {
				t.Fatalf("bit %d of %+v flipped: accepted", i, r)
			}
			b[i/8] ^= 1 << (i % 8)
		}
	}
}

// FuzzRecord looks for records that parse and have a second spelling, or make the parser misbehave.
func FuzzRecord(f *testing.F) {
	r := &record{kind: kindChange, ino: 5, size: 9, path: "p", extents: []extent{{off: 1, n: 2, data: []byte("ab")}, {off: 4, n: 5}}}
	f.Add(r.append(nil, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= recordFixed { // let the fuzzer past the digest
			sum := recordSum(b)
			copy(b[recordHeader-digestSize:recordHeader], sum[:])
		}
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		again, err := parseRecord(r.append(nil, 0, 0))
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%+v becomes %+v, %v", r, again, err)
		}
	})
}

// TestOverlay compares an overlay with a plain array through random changes.
func TestOverlay(t *testing.T) {
	const size = 300
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var o overlay
		model, have := make([]byte, size), make([]bool, size)
		for range 60 {
			off := rnd.Int64N(size)
			n := 1 + rnd.Int64N(min(40, size-off))
			switch rnd.IntN(8) {
			case 0:
				o.cut(off)
				clear(model[off:])
				clear(have[off:])
				continue
			case 1:
				o.put(extent{off: off, n: n})
				clear(model[off : off+n])
			default:
				data := make([]byte, n)
				for i := range data {
					data[i] = byte(1 + rnd.IntN(255))
				}
				o.put(extent{off: off, n: n, data: data})
				copy(model[off:], data)
			}
			for i := off; i < off+n; i++ {
				have[i] = true
			}
			end := int64(0)
			for _, e := range o {
				if e.off < end || e.n <= 0 || e.data != nil && int64(len(e.data)) != e.n {
					t.Fatalf("seed %d: bad extents %v", seed, o)
				}
				end = e.end()
			}
			got := make([]byte, size)
			if err := o.read(got, 0, func(p []byte, off int64) error {
				for i := range p {
					if have[off+int64(i)] {
						t.Fatalf("seed %d: byte %d is missing", seed, off+int64(i))
					}
					p[i] = 0
				}
				return nil
			}); err != nil || !bytes.Equal(got, model) {
				t.Fatalf("seed %d: content differs", seed)
			}
		}
	}
}
