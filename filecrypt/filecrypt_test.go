package filecrypt

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"testing"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/keyring/keyringtest"
)

// memory is a backing in memory.
type memory struct{ b []byte }

func (m *memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m.b).ReadAt(p, off) }
func (m *memory) Size() (int64, error)                    { return int64(len(m.b)), nil }

func (m *memory) Truncate(n int64) error {
	m.b = append(m.b[:min(n, int64(len(m.b)))], make([]byte, max(0, n-int64(len(m.b))))...)
	return nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if end := off + int64(len(p)); end > int64(len(m.b)) {
		m.Truncate(end)
	}
	return copy(m.b[off:], p), nil
}

// sparse is a source whose data are the given ranges.
type sparse struct {
	*bytes.Reader
	data [][2]int64
}

func (s sparse) SeekData(off int64) (int64, error) {
	for _, d := range s.data {
		if off < d[1] {
			return max(off, d[0]), nil
		}
	}
	return 0, io.EOF
}

func (s sparse) SeekHole(off int64) (int64, error) {
	for _, d := range s.data {
		if off >= d[0] && off < d[1] {
			return d[1], nil
		}
	}
	return off, nil
}

// collect returns a visitor that puts a file together.
func collect(plain *[]byte, holes *int64) blockcrypt.Visitor {
	add := func(off int64, p []byte) error {
		if off != int64(len(*plain)) {
			return errors.New("out of order")
		}
		*plain = append(*plain, p...)
		return nil
	}
	return blockcrypt.Visitor{
		Data: add,
		Hole: func(off, n int64) error { *holes += n; return add(off, make([]byte, n)) },
	}
}

func params(a header.Algorithm) Params {
	return Params{Algorithm: a, SegmentSize: 4096, Context: keyring.EncryptionContext{"team": "web"}}
}

// unlock parses and unlocks a ciphertext file.
func unlock(t *testing.T, b []byte, k keyring.Keyring) (*header.Header, *File) {
	t.Helper()
	h, err := header.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Unlock(t.Context(), h, k)
	if err != nil {
		t.Fatal(err)
	}
	return h, f
}

func TestStream(t *testing.T) {
	k := failover.New([]failover.CMK{keyringtest.NewFake("fake:a"), keyringtest.NewFake("fake:b")}, failover.Options{})
	for _, a := range header.Algorithms() {
		for _, n := range []int{0, 1, 4096, 4097, 3 << 20} {
			plain := make([]byte, n)
			rand.Read(plain)
			f, err := New(t.Context(), params(a), k)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := f.Encrypt(&out, bytes.NewReader(plain)); err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				if out.Len() != 0 {
					t.Errorf("nothing became %d bytes", out.Len())
				}
				continue
			}
			h, g := unlock(t, out.Bytes(), k)
			if h.Kind != header.File || h.Size != 1536 || len(h.EDKs) != 2 || h.Algorithm != a {
				t.Errorf("header %+v", h)
			}
			var got []byte
			var holes int64
			if err := g.Decrypt(bytes.NewReader(out.Bytes()[h.Size:]), collect(&got, &holes)); err != nil || !bytes.Equal(got, plain) || holes != 0 {
				t.Errorf("%d bytes: decrypted to %d, %v", n, len(got), err)
			}
		}
	}
}

// TestSparse keeps holes, those under stored maps included, and reads them in both ways.
func TestSparse(t *testing.T) {
	const mapped = 3648 * 4096 // where the first map begins
	k := keyringtest.NewFake("fake:a")
	for name, c := range map[string]struct {
		size int64
		data [][2]int64
	}{
		"all data":      {10000, [][2]int64{{0, 10000}}},
		"all hole":      {1 << 20, nil},
		"hole in front": {1 << 20, [][2]int64{{1<<20 - 5000, 1 << 20}}},
		"hole behind":   {1 << 20, [][2]int64{{0, 5000}}},
		"ragged":        {3 << 20, [][2]int64{{100, 5000}, {100000, 100001}, {1 << 20, 1<<20 + 8192}}},
		"across maps":   {mapped + 1<<20, [][2]int64{{0, 4096}, {mapped - 4096, mapped + 4096}, {mapped + 1<<19, mapped + 1<<19 + 4096}}},
		"tiny":          {1, nil},
	} {
		plain := make([]byte, c.size)
		data := int64(0)
		for _, d := range c.data {
			rand.Read(plain[d[0]:d[1]])
			data += d[1] - d[0]
		}
		f, err := New(t.Context(), params(header.AES256GCM), k)
		if err != nil {
			t.Fatal(err)
		}
		out := new(memory)
		if err := f.EncryptSparse(out, sparse{bytes.NewReader(plain), c.data}, c.size); err != nil {
			t.Fatal(name, err)
		}
		h, g := unlock(t, out.b, k)
		for _, way := range []string{"stream", "file"} {
			var got []byte
			var holes int64
			v := collect(&got, &holes)
			if way == "stream" {
				err = g.Decrypt(bytes.NewReader(out.b[h.Size:]), v)
			} else {
				err = g.DecryptSparse(bytes.NewReader(out.b), int64(len(out.b)), v)
			}
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%s, %s: decrypted to %d bytes, %v", name, way, len(got), err)
			}
			// Each piece of data takes up to two segments more, and the last segment is never a hole.
			if least := c.size - data - int64(len(c.data)*2+1)*4096; holes < least {
				t.Errorf("%s, %s: %d bytes of holes, want %d", name, way, holes, least)
			}
		}
	}
}

func TestSourceBecomesShorter(t *testing.T) {
	f, err := New(t.Context(), params(header.AES256GCM), keyringtest.NewFake("fake:a"))
	if err != nil {
		t.Fatal(err)
	}
	// Where a file ends, there is no more data either.
	if err := f.EncryptSparse(new(memory), sparse{bytes.NewReader(make([]byte, 100)), [][2]int64{{0, 100}}}, 200); err == nil {
		t.Error("a file that became shorter was taken for one with a hole at its end")
	}
	if err := f.EncryptSparse(new(memory), sparse{bytes.NewReader(make([]byte, 100)), [][2]int64{{0, 200}}}, 200); err == nil {
		t.Error("no error")
	}
}

func TestRefused(t *testing.T) {
	a, b := keyringtest.NewFake("fake:a"), keyringtest.NewFake("fake:b")
	f, err := New(t.Context(), params(header.AES256GCM), a)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := f.Encrypt(&out, bytes.NewReader(make([]byte, 9000))); err != nil {
		t.Fatal(err)
	}
	h, err := header.Parse(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Unlock(t.Context(), h, b); !errors.Is(err, keyring.ErrNoMatch) {
		t.Errorf("another CMK: %v", err)
	}
	h.Kind = header.Volume
	if _, err := Unlock(t.Context(), h, a); !errors.Is(err, header.ErrFormat) {
		t.Errorf("the header of a volume: %v", err)
	}
	_, g := unlock(t, out.Bytes(), a)
	var got []byte
	var holes int64
	cut := out.Bytes()[:out.Len()-1]
	if err := g.DecryptSparse(bytes.NewReader(cut), int64(len(cut)), collect(&got, &holes)); !errors.Is(err, blockcrypt.ErrAuth) {
		t.Errorf("cut: %v", err)
	}
	p := params(header.AES256GCM)
	p.HeaderSize = 512
	p.Context = keyring.EncryptionContext{"k": string(bytes.Repeat([]byte("v"), 1000))}
	if _, err := New(t.Context(), p, a); !errors.Is(err, header.ErrBounds) {
		t.Errorf("a small header: %v", err)
	}
}
