package blockcrypt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// A found is what a scan found.
type found struct {
	data   []byte // lost bytes and holes are zeros
	good   []bool // by byte: data or hole
	faults []Fault
}

// scanned scans ciphertext and checks that every byte of plaintext is accounted for once, in order.
func (v volume) scanned(t testing.TB, r io.ReaderAt, size int64) found {
	t.Helper()
	plain, _ := v.l.PlainSize(size)
	f := found{data: make([]byte, plain), good: make([]bool, plain)}
	pos := int64(0)
	next := func(off, n int64) {
		if off != pos || n <= 0 || off+n > plain {
			t.Fatalf("range %d+%d, expected one from %d, of %d", off, n, pos, plain)
		}
		pos += n
	}
	err := Scan(r, size, v.l, v.cipher(t, 1), Visitor{
		Data: func(off int64, p []byte) error {
			next(off, int64(len(p)))
			for i := range copy(f.data[off:], p) {
				f.good[off+int64(i)] = true
			}
			return nil
		},
		Hole: func(off, n int64) error {
			next(off, n)
			for i := range n {
				f.good[off+i] = true
			}
			return nil
		},
		Fault: func(fault Fault) error {
			if fault.Len > 0 {
				next(fault.Off, fault.Len)
			}
			if fault.SealedOff < 0 || fault.SealedOff+fault.SealedLen > size || fault.Kind.String() == "" {
				t.Errorf("fault %+v in a file of %d bytes", fault, size)
			}
			f.faults = append(f.faults, fault)
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if pos != plain {
		t.Fatalf("scanned %d of %d bytes", pos, plain)
	}
	return f
}

// TestScanDamage damages a file in every way of the attack table.
func TestScanDamage(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	want := content(5*4096 + 100)
	good := v.written(t, want, 1)
	f := v.open(t, good, 1)
	if err := f.PunchHole(4096, 4096); err != nil {
		t.Fatal(err)
	}
	clear(want[4096:8192])
	at := func(i int64) int64 { return v.l.offset(i) }
	end := int64(len(good.b))
	if got := v.scanned(t, good, end); len(got.faults) > 0 || !bytes.Equal(got.data, want) {
		t.Fatalf("a sound file: %+v", got.faults)
	}
	for name, c := range map[string]struct {
		edit   func(b []byte) []byte
		kind   FaultKind
		lost   int64 // first segment lost, -1 if none is
		number int64 // of segments lost
	}{
		"flip":      {func(b []byte) []byte { b[at(2)+50] ^= 1; return b }, FaultAuth, 2, 1},
		"flip last": {func(b []byte) []byte { b[end-1] ^= 1; return b }, FaultAuth, 5, 1},
		"zero":      {func(b []byte) []byte { clear(b[at(2):at(3)]); return b }, FaultZero, 2, 1},
		"zero two":  {func(b []byte) []byte { clear(b[at(2):at(4)]); return b }, FaultZero, 2, 2},
		"zero last": {func(b []byte) []byte { clear(b[at(5):]); return b }, FaultZero, 5, 1},
		"swap": {func(b []byte) []byte {
			copy(b[at(2):], good.b[at(3):at(4)])
			copy(b[at(3):], good.b[at(2):at(3)])
			return b
		}, FaultAuth, 2, 2},
		"cut at slot":    {func(b []byte) []byte { return b[:at(4)] }, FaultCut, -1, 0},
		"cut in slot":    {func(b []byte) []byte { return b[:at(4)+100] }, FaultAuth, 4, 1},
		"cut in nonce":   {func(b []byte) []byte { return b[:at(4)+10] }, FaultSize, 4, 1},
		"cut in header":  {func(b []byte) []byte { return b[:1000] }, FaultSize, 0, 1},
		"append":         {func(b []byte) []byte { return append(b, 1) }, FaultAuth, 5, 1},
		"append slot":    {func(b []byte) []byte { return append(b[:at(5)], bytes.Repeat(good.b[at(5):], 60)...) }, FaultAuth, 5, 2},
		"root":           {func(b []byte) []byte { b[headerSize+9] ^= 1; return b }, FaultMap, 1, 1},
		"root zeroed":    {func(b []byte) []byte { clear(b[headerSize : headerSize+rootSize]); return b }, FaultZero, 1, 1},
		"hole filled":    {func(b []byte) []byte { b[at(1)] = 1; return b }, FaultAuth, 1, 1},
		"from elsewhere": {func(b []byte) []byte { copy(b[at(3):], v.written(t, content(20000), 2).b[at(3):at(4)]); return b }, FaultAuth, 3, 1},
	} {
		b := c.edit(bytes.Clone(good.b))
		got := v.scanned(t, &memory{b: b}, int64(len(b)))
		if len(got.faults) == 0 || got.faults[0].Kind != c.kind {
			t.Errorf("%s: %+v, want kind %d", name, got.faults, c.kind)
			continue
		}
		for i := range min(len(got.data), len(want)) {
			seg := int64(i) / 4096
			lost := c.lost >= 0 && seg >= c.lost && seg < c.lost+c.number
			if lost == got.good[i] || !lost && got.data[i] != want[i] {
				t.Errorf("%s: byte %d of segment %d: found %v", name, i, seg, got.good[i])
				break
			}
		}
	}
}

// TestScanOldEnd has a file whose end was put back to what it was when it was shorter.
func TestScanOldEnd(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	m := v.written(t, content(8192), 1)
	old := bytes.Clone(m.b)
	if _, err := v.open(t, m, 1).WriteAt(content(8192), 8192); err != nil {
		t.Fatal(err)
	}
	copy(m.b[v.l.offset(1):], old[v.l.offset(1):])
	got := v.scanned(t, m, int64(len(m.b)))
	if len(got.faults) != 1 || got.faults[0].Kind != FaultExtended || got.faults[0].Off != 8192 {
		t.Errorf("%+v", got.faults)
	}
}

// unreadable fails reads that touch one byte.
type unreadable struct {
	*memory
	at int64
}

var errSector = errors.New("bad sector")

func (u unreadable) ReadAt(p []byte, off int64) (int, error) {
	if off <= u.at && u.at < off+int64(len(p)) {
		return 0, errSector
	}
	return u.memory.ReadAt(p, off)
}

func TestScanBadSector(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	m := v.written(t, content(5*4096), 1)
	got := v.scanned(t, unreadable{m, v.l.offset(3) + 9}, int64(len(m.b)))
	if len(got.faults) != 1 || got.faults[0].Kind != FaultRead || got.faults[0].Off != 3*4096 || got.faults[0].Len != 4096 || !errors.Is(got.faults[0].Err, errSector) {
		t.Errorf("%+v", got.faults)
	}
}

// TestScanHugeHole scans many maps, and what damages them costs.
func TestScanHugeHole(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	const size = 10 << 40
	s := new(sparse)
	f := v.openSparse(t, s)
	for _, off := range []int64{0, 5 << 30, size - 1} {
		if _, err := f.WriteAt([]byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	scan := func() (data int, holes int64, faults []Fault) {
		t.Helper()
		err := Scan(s, s.size, v.l, v.cipher(t, 1), Visitor{
			Data:  func(_ int64, p []byte) error { data += len(p); return nil },
			Hole:  func(_, n int64) error { holes += n; return nil },
			Fault: func(f Fault) error { faults = append(faults, f); return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		return data, holes, faults
	}
	data, holes, faults := scan()
	if len(faults) != 0 || int64(data)+holes != size+3 || data > 4*4096 {
		t.Fatalf("%d bytes of data, %d of holes, faults %+v", data, holes, faults)
	}
	// A byte of the map before the data at 5 GiB.
	k := v.l.mapsBefore(5 << 30 / 4096)
	s.pages[v.l.mapOffset(k)/512+1][7] ^= 1
	if _, _, faults = scan(); len(faults) != 3 || faults[0].Kind != FaultMap || faults[1].Kind != FaultHole || faults[1].Len+faults[2].Len != v.l.perMap*4096-4096 {
		t.Errorf("with a damaged map: %+v", faults)
	}
	delete(s.pages, v.l.header/512)
	if _, _, faults = scan(); len(faults) < 3 || faults[0].Kind != FaultZero || faults[0].Off != 4096 {
		t.Errorf("with a zeroed hole root: %+v", faults)
	}
}

// TestScanModel scans what random operations leave.
func TestScanModel(t *testing.T) {
	for _, alg := range []Algorithm{AES256GCM, SM4128GCM} {
		v := newVolume(t, alg, 4096)
		r := rand.New(rand.NewPCG(1, uint64(alg)))
		m := new(memory)
		f := v.open(t, m, 1)
		var want []byte
		for range 200 {
			off, n := int64(r.IntN(300000)), 1+r.IntN(20000)
			if r.IntN(4) == 0 && len(want) > 0 {
				if err := f.PunchHole(off, int64(n)); err != nil {
					t.Fatal(err)
				}
				if off < int64(len(want)) {
					clear(want[off:min(off+int64(n), int64(len(want)))])
				}
			} else {
				if _, err := f.WriteAt(content(n), off); err != nil {
					t.Fatal(err)
				}
				if more := off + int64(n) - int64(len(want)); more > 0 {
					want = append(want, make([]byte, more)...)
				}
				copy(want[off:], content(n))
			}
			got := v.scanned(t, m, int64(len(m.b)))
			if len(got.faults) > 0 || !bytes.Equal(got.data, want) {
				t.Fatalf("%d bytes: %+v", len(want), got.faults)
			}
		}
	}
}

// FuzzScan edits sound files as the input says, 6 bytes an edit, and compares what a scan of them finds with what reading gives.
func FuzzScan(f *testing.F) {
	v := newVolume(f, AES256GCM, 4096)
	m := v.written(f, content(3*4096+7), 1)
	holed := v.written(f, content(6*4096), 1)
	if err := v.open(f, holed, 1).PunchHole(4096, 8192); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(nil), true)
	f.Add([]byte("\x00\x00\x00\x09\x00\x01"), false)                        // a byte of the first slot
	f.Add([]byte("\x01\x03\x00\x00\x00\x00\x02\x01\x02\x00\x00\x00"), true) // a slot zeroed, two swapped
	f.Add([]byte("\x03\x00\x00\x20\x00\x00\x04\x00\x00\x20\x00\x00"), true) // cut, and zeros appended
	f.Add([]byte("\x05\x00\x00\x00\x00\x00"), true)                         // no hole root
	f.Fuzz(func(t *testing.T, edits []byte, holes bool) {
		b := bytes.Clone(m.b)
		if holes {
			b = bytes.Clone(holed.b)
		}
		for ; len(edits) >= 6; edits = edits[6:] {
			at := int(edits[3])<<8 | int(edits[4])
			slot := func(i byte) []byte {
				start := min(int(v.l.offset(int64(i%8))), len(b))
				return b[start:min(start+int(v.l.slot), len(b))]
			}
			switch edits[0] % 6 {
			case 0:
				if len(b) > 0 {
					b[(headerSize+at)%len(b)] ^= edits[5]
				}
			case 1:
				clear(slot(edits[1]))
			case 2:
				other := bytes.Clone(slot(edits[2]))
				copy(slot(edits[2]), slot(edits[1]))
				copy(slot(edits[1]), other)
			case 3:
				b = b[:min(at, len(b))]
			case 4:
				if len(b) < 1<<16 {
					b = append(b, make([]byte, at)...)
				}
			case 5:
				if len(b) > headerSize+rootSize {
					clear(b[headerSize : headerSize+rootSize])
				}
			}
		}
		if len(b) == 0 {
			return
		}
		got := v.scanned(t, &memory{b: b}, int64(len(b)))
		file, err := Open(&memory{b: b}, v.l, v.cipher(t, 1), nil)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := readAll(file)
		if (err == nil) != (len(got.faults) == 0) && !onlyMaps(got.faults) {
			t.Fatalf("reading says %v, scanning %+v", err, got.faults)
		}
		if err == nil && !bytes.Equal(whole, got.data) {
			t.Fatal("a scan gives other bytes than reading")
		}
		front, _, err := streamed(b, v.l, v.cipher(t, 1))
		if (err == nil) != (len(got.faults) == 0) || err == nil && !bytes.Equal(whole, front) {
			t.Fatalf("front to back says %v, scanning %+v", err, got.faults)
		}
	})
}

// onlyMaps reports whether no byte is lost: a map that nothing depends on is damaged.
func onlyMaps(faults []Fault) bool {
	for _, f := range faults {
		if f.Kind != FaultMap {
			return false
		}
	}
	return true
}

func ExampleFaultKind() {
	fmt.Println(FaultZero)
	// Output: zeroed where no hole was made
}
