package names

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/tink-crypto/tink-go/v2/daead/subtle"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSIVOfRFC has the vector of RFC 5297, appendix A.1, whose keys are of 128 bits.
func TestSIVOfRFC(t *testing.T) {
	s, err := newSIV(unhex(t, "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))
	if err != nil {
		t.Fatal(err)
	}
	ad, plain := unhex(t, "101112131415161718191a1b1c1d1e1f2021222324252627"), unhex(t, "112233445566778899aabbccddee")
	want := unhex(t, "85632d07c6e8f37f950acd320a2ecc9340c02b9690c4dc04daef7f6afe5c")
	if got := s.seal(nil, plain, ad); !bytes.Equal(got, want) {
		t.Errorf("sealed: %x", got)
	}
	if got, err := s.open(nil, want, ad); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("opened: %x, %v", got, err)
	}
}

// TestSIVLikeTink compares with another implementation.
func TestSIVLikeTink(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	bytesOf := func(n int) []byte {
		b := make([]byte, n)
		random.Read(b)
		return b
	}
	for range 2 {
		key := bytesOf(sivKeySize)
		s, err := newSIV(key)
		if err != nil {
			t.Fatal(err)
		}
		other, err := subtle.NewAESSIV(key)
		if err != nil {
			t.Fatal(err)
		}
		sizes := []int{4095, 4096, 65535} // a long target, a value
		for n := range 5*block + 2 {
			sizes = append(sizes, n)
		}
		for _, n := range sizes {
			for _, m := range []int{0, 1, block - 1, block, block + 1, 2 * block, 2*block + 1, 300} {
				plain, ad := bytesOf(n), bytesOf(m)
				kept := bytes.Clone(plain)
				want, err := other.EncryptDeterministically(plain, ad)
				if err != nil {
					t.Fatal(err)
				}
				got := s.seal([]byte("before"), plain, ad)
				if !bytes.Equal(got, append([]byte("before"), want...)) || !bytes.Equal(plain, kept) {
					t.Fatalf("%d bytes with %d: sealed as %x, not %x", n, m, got, want)
				}
				back, err := s.open([]byte("before"), want, ad)
				if err != nil || !bytes.Equal(back, append([]byte("before"), plain...)) {
					t.Fatalf("%d bytes with %d: opened as %x, %v", n, m, back, err)
				}
			}
		}
	}
}

// TestSIVCarry runs the counter over the carry that only one vector in 2^29 meets.
func TestSIVCarry(t *testing.T) {
	s, err := newSIV(make([]byte, sivKeySize))
	if err != nil {
		t.Fatal(err)
	}
	v := unhex(t, "000102030405060700ffffff7fffffff")
	all, one := make([]byte, 2*block), make([]byte, block)
	s.crypt(&scratch{x: [block]byte(v)}, all)
	s.ctr.Encrypt(one, unhex(t, "000102030405060700ffffff80000000"))
	if !bytes.Equal(all[block:], one) {
		t.Errorf("%x is not %x", all[block:], one)
	}
}

func TestSIVRefuses(t *testing.T) {
	s, err := newSIV(make([]byte, sivKeySize))
	if err != nil {
		t.Fatal(err)
	}
	ad := []byte("associated data")
	for _, n := range []int{0, 1, block - 1, block, block + 1, 3 * block} {
		sealed := s.seal(nil, make([]byte, n), ad)
		for i := range 8 * len(sealed) {
			bad := bytes.Clone(sealed)
			bad[i/8] ^= 1 << (i % 8)
			if got, err := s.open(nil, bad, ad); !errors.Is(err, ErrAuth) || got != nil {
				t.Fatalf("%d bytes with bit %d changed: %x, %v", n, i, got, err)
			}
		}
		for i := range sealed {
			if _, err := s.open(nil, sealed[:i], ad); !errors.Is(err, ErrAuth) {
				t.Fatalf("%d bytes, %d of the sealed form: %v", n, i, err)
			}
		}
		if _, err := s.open(nil, sealed, ad[1:]); !errors.Is(err, ErrAuth) {
			t.Fatalf("%d bytes with other associated data: %v", n, err)
		}
	}
}

// TestSIVRemembers has several goroutines use few strings of associated data by turns, one of which was used last.
func TestSIVRemembers(t *testing.T) {
	key := make([]byte, sivKeySize)
	shared, err := newSIV(key)
	if err != nil {
		t.Fatal(err)
	}
	ads := [][]byte{nil, []byte("a"), []byte("sixteen bytes: 1"), []byte("sixteen bytes: 2"), []byte("sixteen bytes: 2 and more")}
	plain := []byte("a-usual-name.go")
	var want [][]byte
	for _, ad := range ads {
		fresh, err := newSIV(key)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, fresh.seal(nil, plain, ad))
	}
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			for i := range 2000 {
				which := (i/(g+1) + g) % len(ads)
				if got := shared.seal(nil, plain, ads[which]); !bytes.Equal(got, want[which]) {
					t.Errorf("sealed with %q: %x, want %x", ads[which], got, want[which])
				}
				if got, err := shared.open(nil, want[which], ads[which]); err != nil || !bytes.Equal(got, plain) {
					t.Errorf("opened with %q: %q, %v", ads[which], got, err)
				}
			}
		})
	}
	all.Wait()
}
