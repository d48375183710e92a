package blockcrypt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
)

const headerSize = 1536

// memory is a Backing that counts, and fails when told to.
type memory struct {
	b           []byte
	read, wrote int
	calls, fail int // the fail-th changing call fails; 0: none
	short       bool
}

var errInjected = errors.New("injected")

func (m *memory) failing() bool {
	m.calls++
	return m.calls == m.fail
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(m.b)) {
		return 0, io.EOF
	}
	n := copy(p, m.b[off:])
	m.read += n
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if m.failing() {
		if !m.short {
			return 0, errInjected
		}
		p = p[:len(p)/2]
		m.put(p, off)
		return len(p), errInjected
	}
	m.put(p, off)
	m.wrote += len(p)
	return len(p), nil
}

func (m *memory) put(p []byte, off int64) {
	if end := off + int64(len(p)); end > int64(len(m.b)) {
		m.b = append(m.b, make([]byte, end-int64(len(m.b)))...)
	}
	copy(m.b[off:], p)
}

func (m *memory) Truncate(n int64) error {
	if m.failing() {
		return errInjected
	}
	if n > int64(len(m.b)) {
		m.b = append(m.b, make([]byte, n-int64(len(m.b)))...)
	}
	m.b = m.b[:n:n]
	return nil
}

func (m *memory) Size() (int64, error) { return int64(len(m.b)), nil }

// A volume makes files over memory; all of them have one key.
type volume struct {
	l   Layout
	alg Algorithm
}

func newVolume(t testing.TB, alg Algorithm, segment int) volume {
	t.Helper()
	l, err := NewLayout(segment, headerSize)
	if err != nil {
		t.Fatal(err)
	}
	return volume{l, alg}
}

func (v volume) cipher(t testing.TB, id byte) *Cipher {
	t.Helper()
	c, err := NewCipher(v.alg, []byte{31: id})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// open opens m; the first byte of its header is its file ID.
func (v volume) open(t testing.TB, m *memory, id byte) *File {
	t.Helper()
	var c *Cipher
	if len(m.b) > 0 {
		c = v.cipher(t, m.b[0])
	}
	f, err := Open(m, v.l, c, func() ([]byte, *Cipher, error) {
		header := make([]byte, headerSize)
		header[0] = id
		return header, v.cipher(t, id), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func content(n int) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range p {
		p[i] = byte(r.Uint32()) | 1
	}
	return p
}

func (v volume) written(t testing.TB, p []byte, id byte) *memory {
	t.Helper()
	m := new(memory)
	if _, err := v.open(t, m, id).WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return m
}

func readAll(f *File) ([]byte, error) {
	p := make([]byte, f.Size())
	n, err := f.ReadAt(p, 0)
	if err == io.EOF {
		err = nil
	}
	return p[:n], err
}

// TestLayout is the table of docs/format.md section 5.4.
func TestLayout(t *testing.T) {
	l := newVolume(t, AES256GCM, 4096).l
	for plain, sealed := range map[int64]int64{
		0: 0, 1: 2089, 4096: 6184, 4097: 6225, 1000000: 1011848, 14942208: 15090176, 14942209: 15094353, 1 << 30: 1084262720,
	} {
		if got := l.SealedSize(plain); got != sealed {
			t.Errorf("SealedSize(%d) = %d, want %d", plain, got, sealed)
		}
	}
	for _, s := range []int{4096, 8192, 65536} {
		l := newVolume(t, AES256GCM, s).l
		check := func(p int64) {
			if got, ok := l.PlainSize(l.SealedSize(p)); got != p || !ok {
				t.Fatalf("s = %d: PlainSize(SealedSize(%d)) = %d, %v", s, p, got, ok)
			}
		}
		for p := range int64(50000) {
			check(p)
			check(rootBits*int64(s) - 25000 + p)
			check((rootBits+l.perMap)*int64(s) - 25000 + p)
			check(MaxSize - p)
		}
		valid := make(map[int64]bool)
		for p := range int64(3 * s) {
			valid[l.SealedSize(p)] = true
		}
		for z := range l.SealedSize(int64(3*s) - 1) {
			if _, ok := l.PlainSize(z); ok != valid[z] {
				t.Fatalf("s = %d: PlainSize(%d) says %v", s, z, ok)
			}
		}
	}
}

// TestModel compares random operations with a byte slice.
func TestModel(t *testing.T) {
	for _, alg := range []Algorithm{AES256GCM, AES128GCM, SM4128GCM} {
		for seed := range uint64(4) {
			t.Run(fmt.Sprintf("%d/%d", alg, seed), func(t *testing.T) { model(t, newVolume(t, alg, 4096), seed, 1500) })
		}
	}
}

func model(t *testing.T, v volume, seed uint64, steps int) {
	r := rand.New(rand.NewPCG(seed, 7))
	m, id := new(memory), byte(1)
	f := v.open(t, m, id)
	var want []byte
	bases := []int64{0, 4096, 8192, 40960}
	if seed%2 == 1 {
		bases = append(bases, rootBits*4096-8192, rootBits*4096, (rootBits+3)*4096)
	}
	for step := range steps {
		off := bases[r.IntN(len(bases))] + int64(r.IntN(5))*1024 + int64(r.IntN(3)) - 1
		off = max(off, 0)
		n := 1 + r.IntN([]int{10, 4096, 20000}[r.IntN(3)])
		switch op := r.IntN(10); op {
		case 0, 1, 2, 3:
			p := content(n)
			if _, err := f.WriteAt(p, off); err != nil {
				t.Fatalf("step %d: write %d at %d: %v", step, n, off, err)
			}
			if end := off + int64(n); end > int64(len(want)) {
				want = append(want, make([]byte, end-int64(len(want)))...)
			}
			copy(want[off:], p)
		case 4:
			if err := f.Truncate(off); err != nil {
				t.Fatalf("step %d: truncate to %d: %v", step, off, err)
			}
			if off > int64(len(want)) {
				want = append(want, make([]byte, off-int64(len(want)))...)
			}
			want = want[:off:off]
		case 5, 6:
			if err := f.PunchHole(off, int64(n)); err != nil {
				t.Fatalf("step %d: punch %d at %d: %v", step, n, off, err)
			}
			if off < int64(len(want)) {
				clear(want[off:min(off+int64(n), int64(len(want)))])
			}
		case 7:
			if err := f.Flush(); err != nil {
				t.Fatal(err)
			}
			if r.IntN(2) == 0 {
				id++
				f = v.open(t, m, id)
			}
		case 8:
			id++
			f = v.open(t, m, id) // without Flush, as after a crash of ours
		case 9:
			if hole, err := f.SeekHole(off); err == nil {
				if data, err := f.SeekData(off); err == nil && data > off && !isZero(want[off:min(data, int64(len(want)))]) {
					t.Fatalf("step %d: SeekData(%d) = %d skips data", step, off, data)
				}
				if hole < int64(len(want)) && want[hole] != 0 {
					t.Fatalf("step %d: SeekHole(%d) = %d is data", step, off, hole)
				}
			}
		}
		if f.Size() != int64(len(want)) {
			t.Fatalf("step %d: size %d, want %d", step, f.Size(), len(want))
		}
		if len(want) < 1<<20 || step%100 == 0 {
			got, err := readAll(f)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("step %d: content differs, %v", step, err)
			}
		}
		if len(m.b) > 0 != (len(want) > 0) || int64(len(m.b)) != v.l.SealedSize(int64(len(want))) {
			t.Fatalf("step %d: ciphertext of %d bytes for %d", step, len(m.b), len(want))
		}
	}
}

// damaged checks that the edited ciphertext does not read as anything.
func (v volume) damaged(t *testing.T, what string, good *memory, edit func(b []byte) []byte) {
	t.Helper()
	m := &memory{b: edit(bytes.Clone(good.b))}
	f := v.open(t, m, 1)
	if got, err := readAll(f); !errors.Is(err, ErrAuth) && !errors.Is(err, ErrSize) {
		t.Errorf("%s: read %d bytes, %v", what, len(got), err)
	}
}

func TestTamper(t *testing.T) {
	for _, alg := range []Algorithm{AES256GCM, AES128GCM, SM4128GCM} {
		v := newVolume(t, alg, 4096)
		good := v.written(t, content(3*4096+100), 1)
		other := v.written(t, content(3*4096+100), 2)
		at := func(i int64) int64 { return v.l.offset(i) }
		for i := v.l.prologue; i < int64(len(good.b)); i += 7 {
			v.damaged(t, fmt.Sprintf("bit of byte %d", i), good, func(b []byte) []byte { b[i] ^= 4; return b })
		}
		for n := v.l.prologue + 1; n < int64(len(good.b)); n += 5 {
			v.damaged(t, fmt.Sprintf("cut to %d", n), good, func(b []byte) []byte { return b[:n] })
		}
		for i := int64(1); i <= 3; i++ {
			v.damaged(t, "cut at a boundary", good, func(b []byte) []byte { return b[:at(i)] })
			v.damaged(t, "zeroed", good, func(b []byte) []byte { clear(b[at(i-1):at(i)]); return b })
			v.damaged(t, "from another file", good, func(b []byte) []byte { copy(b[at(i-1):], other.b[at(i-1):at(i)]); return b })
			v.damaged(t, "dropped", good, func(b []byte) []byte { return append(b[:at(i-1)], b[at(i):]...) })
			v.damaged(t, "duplicated", good, func(b []byte) []byte { return append(b[:at(i):at(i)], good.b[at(i-1):]...) })
		}
		v.damaged(t, "swapped", good, func(b []byte) []byte {
			copy(b[at(0):], good.b[at(1):at(2)])
			copy(b[at(1):], good.b[at(0):at(1)])
			return b
		})
		for _, n := range []int{1, 39, 40, 41, 4136, 8272} {
			v.damaged(t, "appended zeros", good, func(b []byte) []byte { return append(b, make([]byte, n)...) })
			v.damaged(t, "appended old bytes", good, func(b []byte) []byte { return append(b, b[at(0):at(0)+int64(min(n, 4136))]...) })
		}
		// A file that was cut must not be made good by what is done to it.
		for name, change := range map[string]func(f *File) error{
			"append":   func(f *File) error { _, err := f.WriteAt([]byte("x"), f.Size()); return err },
			"truncate": func(f *File) error { return f.Truncate(f.Size() + 1) },
			"shrink":   func(f *File) error { return f.Truncate(f.Size() - 1) },
		} {
			m := &memory{b: bytes.Clone(good.b[:at(2)])}
			if err := change(v.open(t, m, 1)); !errors.Is(err, ErrAuth) {
				t.Errorf("%s to a cut file: %v", name, err)
			}
			if !bytes.Equal(m.b, good.b[:at(2)]) {
				t.Errorf("%s changed a cut file", name)
			}
		}
	}
}

// TestHolesAuthenticated zeroes data in a file that has holes elsewhere.
func TestHolesAuthenticated(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	m := v.written(t, content(8*4096), 1)
	f := v.open(t, m, 1)
	if err := f.PunchHole(2*4096, 2*4096); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(content(4096), 3*4096); err != nil { // filled again
		t.Fatal(err)
	}
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	for i := range int64(8) {
		edited := &memory{b: bytes.Clone(m.b)}
		clear(edited.b[v.l.offset(i):min(v.l.offset(i+1), int64(len(edited.b)))])
		_, err := readAll(v.open(t, edited, 1))
		if hole := i == 2; hole != (err == nil) {
			t.Errorf("segment %d zeroed: %v", i, err)
		}
	}
	v.damaged(t, "hole root flipped", m, func(b []byte) []byte { b[headerSize+50] ^= 1; return b })
	v.damaged(t, "hole root zeroed", m, func(b []byte) []byte { clear(b[headerSize : headerSize+rootSize]); return b })
}

// TestHugeHole shows that the cost of a hole does not grow with it.
func TestHugeHole(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	c := v.cipher(t, 1)
	b := &sparse{}
	f, err := Open(b, v.l, nil, func() ([]byte, *Cipher, error) { return make([]byte, headerSize), c, nil })
	if err != nil {
		t.Fatal(err)
	}
	const size = 100 << 40
	if _, err := f.WriteAt([]byte("start"), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if b.wrote > 40000 {
		t.Errorf("a hole of 100 TiB cost %d bytes", b.wrote)
	}
	const middle = 20 << 30 // 160 maps lie before it
	if _, err := f.WriteAt([]byte("middle"), middle); err != nil {
		t.Fatal(err)
	}
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	if b.wrote > 161*4136+50000 {
		t.Errorf("data in the hole cost %d bytes", b.wrote)
	}
	p := make([]byte, 12)
	if _, err := f.ReadAt(p, middle-3); err != nil || string(p[:9]) != "\x00\x00\x00middle" {
		t.Errorf("read %q, %v", p, err)
	}
	if data, err := f.SeekData(4096); err != nil || data != middle {
		t.Errorf("SeekData = %d, %v", data, err)
	}
}

// sparse is a Backing for huge files.
type sparse struct {
	pages map[int64]*[512]byte
	size  int64
	wrote int
}

func (s *sparse) each(p []byte, off int64, fn func(page *[512]byte, at int, part []byte), create bool) {
	for len(p) > 0 {
		k, at := off/512, int(off%512)
		n := min(512-at, len(p))
		if s.pages[k] == nil && create {
			if s.pages == nil {
				s.pages = make(map[int64]*[512]byte)
			}
			s.pages[k] = new([512]byte)
		}
		fn(s.pages[k], at, p[:n])
		p, off = p[n:], off+int64(n)
	}
}

func (s *sparse) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), max(s.size-off, 0)))
	s.each(p[:n], off, func(page *[512]byte, at int, part []byte) {
		clear(part)
		if page != nil {
			copy(part, page[at:])
		}
	}, false)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s *sparse) WriteAt(p []byte, off int64) (int, error) {
	s.each(p, off, func(page *[512]byte, at int, part []byte) { copy(page[at:], part) }, true)
	s.size, s.wrote = max(s.size, off+int64(len(p))), s.wrote+len(p)
	return len(p), nil
}

func (s *sparse) Truncate(n int64) error { s.size = n; return nil }

func (s *sparse) Size() (int64, error) { return s.size, nil }

func (s *sparse) SeekData(off int64) (int64, error) {
	next := int64(-1)
	for k := range s.pages {
		if k >= off/512 && (next < 0 || k < next) {
			next = k
		}
	}
	if next < 0 {
		return 0, io.EOF
	}
	return max(off, next*512), nil
}

// TestBackingBytes is the table of backing bytes per operation.
func TestBackingBytes(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	m := v.written(t, content(1<<20), 1)
	f := v.open(t, m, 1)
	if _, err := f.WriteAt([]byte{1}, 4096); err != nil { // loads the hole root
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		do          func() error
		read, wrote int
	}{
		"read 4 KiB":         {func() error { _, err := f.ReadAt(make([]byte, 4096), 40960); return err }, 4136, 0},
		"read 1 byte":        {func() error { _, err := f.ReadAt(make([]byte, 1), 50000); return err }, 4136, 0},
		"overwrite 1 byte":   {func() error { _, err := f.WriteAt([]byte{1}, 50000); return err }, 4136, 4136},
		"overwrite segment":  {func() error { _, err := f.WriteAt(make([]byte, 4096), 8192); return err }, 0, 4136},
		"overwrite 16 whole": {func() error { _, err := f.WriteAt(make([]byte, 65536), 65536); return err }, 0, 16 * 4136},
	} {
		m.read, m.wrote = 0, 0
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		if m.read != c.read || m.wrote != c.wrote {
			t.Errorf("%s: read %d and wrote %d bytes, want %d and %d", name, m.read, m.wrote, c.read, c.wrote)
		}
	}
}

// TestFailEveryCall fails each changing call of an append in turn: the old content stays readable.
func TestFailEveryCall(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	old := content(2*4096 + 500)
	for name, do := range map[string]func(f *File) error{
		"append":   func(f *File) error { _, err := f.WriteAt(content(9000), int64(len(old))); return err },
		"gap":      func(f *File) error { _, err := f.WriteAt(content(10), 100000); return err },
		"truncate": func(f *File) error { return f.Truncate(200000) },
		"shrink":   func(f *File) error { return f.Truncate(5000) },
	} {
		for _, short := range []bool{false, true} {
			for n := 1; ; n++ {
				m := v.written(t, old, 1)
				m.calls, m.fail, m.short = 0, n, short
				err := do(v.open(t, m, 1))
				if err == nil {
					break
				}
				if !errors.Is(err, errInjected) {
					t.Fatalf("%s, call %d: %v", name, n, err)
				}
				m.fail = 0
				got, err := readAll(v.open(t, m, 1))
				if err != nil || !bytes.Equal(got, old) {
					t.Errorf("%s, call %d fails (short: %v): old content: %d bytes, %v", name, n, short, len(got), err)
				}
			}
		}
	}
}

// TestNonceBudget shows that no key seals more often than it may, whoever seals.
func TestNonceBudget(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	c := v.cipher(t, 1)
	c.limit = 100
	var mu sync.Mutex
	seals := make(map[[prefixSize]byte]int)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				k := c.sealer(7)
				mu.Lock()
				seals[k.prefix] += 7
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for prefix, n := range seals {
		if n > c.limit {
			t.Errorf("prefix %x sealed %d times, at most %d", prefix, n, c.limit)
		}
	}
	if len(seals) < 8*200*7/c.limit {
		t.Errorf("only %d prefixes", len(seals))
	}
	if sealsPerPrefix > 1<<16 {
		t.Error("the limit is not what docs/format.md section 5.2 says")
	}
}

func TestConcurrent(t *testing.T) {
	v := newVolume(t, AES256GCM, 4096)
	m := &locked{m: v.written(t, content(1<<18), 1)}
	f, err := Open(m, v.l, v.cipher(t, 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			p := make([]byte, 5000)
			for range 200 {
				off := int64(r.IntN(1 << 18))
				if g%2 == 0 {
					if _, err := f.ReadAt(p, off); err != nil && err != io.EOF {
						t.Error(err)
					}
				} else if _, err := f.WriteAt(p, off); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// locked makes a memory safe for readers and a writer, as a file is.
type locked struct {
	mu sync.Mutex
	m  *memory
}

func (l *locked) ReadAt(p []byte, off int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m.ReadAt(p, off)
}

func (l *locked) WriteAt(p []byte, off int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m.WriteAt(p, off)
}

func (l *locked) Truncate(n int64) error { return l.m.Truncate(n) }
func (l *locked) Size() (int64, error)   { return l.m.Size() }

func FuzzFile(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { model(t, newVolume(t, AES256GCM, 4096), seed, 50) })
}

func BenchmarkFile(b *testing.B) {
	v := newVolume(b, AES256GCM, 4096)
	m := v.written(b, content(8<<20), 1)
	f := v.open(b, m, 1)
	for _, size := range []int{4096, 1 << 20} {
		p := make([]byte, size)
		b.Run(fmt.Sprintf("Read%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := f.ReadAt(p, 1<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("Write%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := f.WriteAt(p, 1<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
