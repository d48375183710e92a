package blockcrypt

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// streamed is what OpenStream makes of a ciphertext.
func streamed(sealed []byte, l Layout, c *Cipher) (plain []byte, holes int, err error) {
	err = OpenStream(iotest.HalfReader(bytes.NewReader(sealed[min(int(l.header), len(sealed)):])), l, c, Visitor{
		Data: func(off int64, p []byte) error {
			if off != int64(len(plain)) {
				return errors.New("data out of order")
			}
			plain = append(plain, p...)
			return nil
		},
		Hole: func(off, n int64) error {
			holes++
			plain = append(plain, make([]byte, n)...)
			return nil
		},
	})
	return plain, holes, err
}

func streamSetup(t *testing.T) (Layout, *Cipher, Fresh) {
	t.Helper()
	l, err := NewLayout(4096, 512)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCipher(AES256GCM, []byte{31: 1})
	if err != nil {
		t.Fatal(err)
	}
	return l, c, func() ([]byte, *Cipher, error) { return make([]byte, 512), c, nil }
}

// TestStream seals files front to back, which then are files like any other, and opens them front to back. The largest have map slots.
func TestStream(t *testing.T) {
	l, c, fresh := streamSetup(t)
	for _, n := range []int{0, 1, 4095, 4096, 4097, 8192, 1 << 20, 1<<20 + 1, rootBits * 4096, rootBits*4096 + 1, rootBits*4096 + 5000} {
		plain := make([]byte, n)
		rand.Read(plain)
		var out bytes.Buffer
		if err := SealStream(&out, iotest.HalfReader(bytes.NewReader(plain)), l, fresh); err != nil {
			t.Fatal(err)
		}
		if int64(out.Len()) != l.SealedSize(int64(n)) {
			t.Fatalf("%d bytes: sealed to %d, want %d", n, out.Len(), l.SealedSize(int64(n)))
		}
		if n == 0 {
			continue
		}
		faults := 0
		var scanned []byte
		err := Scan(bytes.NewReader(out.Bytes()), int64(out.Len()), l, c, Visitor{
			Data:  func(_ int64, p []byte) error { scanned = append(scanned, p...); return nil },
			Fault: func(Fault) error { faults++; return nil },
		})
		if err != nil || faults > 0 || !bytes.Equal(scanned, plain) {
			t.Errorf("%d bytes: scanned to %d, %d faults, %v", n, len(scanned), faults, err)
		}
		got, holes, err := streamed(out.Bytes(), l, c)
		if err != nil || holes > 0 || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: opened to %d, %d holes, %v", n, len(got), holes, err)
		}
	}
	broken := errors.New("broken")
	if err := SealStream(io.Discard, io.MultiReader(bytes.NewReader(make([]byte, 5000)), iotest.ErrReader(broken)), l, fresh); !errors.Is(err, broken) {
		t.Errorf("a source that breaks: %v", err)
	}
}

// TestOpenStreamRefuses cuts, extends and changes streams, and zeroes a segment: nothing but a beginning of the plaintext comes out.
func TestOpenStreamRefuses(t *testing.T) {
	l, c, fresh := streamSetup(t)
	plain := make([]byte, 3*4096+100)
	rand.Read(plain)
	var out bytes.Buffer
	if err := SealStream(&out, bytes.NewReader(plain), l, fresh); err != nil {
		t.Fatal(err)
	}
	sealed := out.Bytes()
	refused := func(what string, at int, b []byte) {
		t.Helper()
		got, _, err := streamed(b, l, c)
		if !errors.Is(err, ErrAuth) && !errors.Is(err, ErrSize) || !bytes.HasPrefix(plain, got) || len(got) == len(plain) && what != "extended by" {
			t.Errorf("%s %d: %d bytes, %v", what, at, len(got), err)
		}
	}
	for n := 512; n < len(sealed); n += 7 {
		refused("cut to", n, sealed[:n])
	}
	for i := range 4 {
		refused("cut after segment", i, sealed[:l.offset(int64(i))])
	}
	for _, n := range []int{1, 40, 41, 4096, 4136} {
		refused("extended by", n, append(bytes.Clone(sealed), make([]byte, n)...))
	}
	for i := 512; i < len(sealed); i += 11 {
		b := bytes.Clone(sealed)
		b[i] ^= 4
		refused("flipped byte", i, b)
	}
	zeroed := bytes.Clone(sealed)
	clear(zeroed[l.offset(1):l.offset(2)])
	refused("zeroed segment", 1, zeroed)
}
