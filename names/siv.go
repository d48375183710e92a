package names

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"sync"
	"sync/atomic"
)

const (
	block      = aes.BlockSize
	sivKeySize = 64 // bytes
)

// A siv is AES-SIV-CMAC, RFC 5297, with one string of associated data. It may be used by several goroutines at once.
type siv struct {
	mac, ctr cipher.Block
	k1, k2   [block]byte // for the last block of a CMAC, RFC 4493 section 2.3
	first    [block]byte // dbl(CMAC(zero)): with it S2V begins

	last    atomic.Pointer[begun] // the associated data used last, of 16 bytes: the names of one directory follow each other
	scratch sync.Pool             // of *scratch
}

// A begun is how S2V begins with associated data.
type begun struct{ ad, d [block]byte }

// A scratch is where the ciphers work: what they are given escapes to the heap.
type scratch struct{ x, y [block]byte }

func newSIV(key []byte) (*siv, error) {
	s := &siv{scratch: sync.Pool{New: func() any { return new(scratch) }}}
	var err error
	if s.mac, err = aes.NewCipher(key[:len(key)/2]); err != nil {
		return nil, err
	}
	if s.ctr, err = aes.NewCipher(key[len(key)/2:]); err != nil {
		return nil, err
	}
	s.mac.Encrypt(s.k1[:], s.k1[:])
	double(&s.k1)
	s.k2 = s.k1
	double(&s.k2)
	s.cmac(&s.first, make([]byte, block))
	double(&s.first)
	return s, nil
}

// seal appends the sealed form of plain to dst: 16 bytes more.
func (s *siv) seal(dst, plain, ad []byte) []byte {
	t := s.scratch.Get().(*scratch)
	defer s.scratch.Put(t)
	v, p := len(dst), len(dst)+block
	dst = append(append(dst, t.x[:]...), plain...)
	s.s2v(&t.x, dst[p:], ad)
	copy(dst[v:], t.x[:])
	s.crypt(t, dst[p:])
	return dst
}

// open appends the plaintext of sealed to dst.
func (s *siv) open(dst, sealed, ad []byte) ([]byte, error) {
	if len(sealed) < block {
		return nil, ErrAuth
	}
	t := s.scratch.Get().(*scratch)
	defer s.scratch.Put(t)
	p := len(dst)
	dst = append(dst, sealed[block:]...)
	copy(t.x[:], sealed)
	s.crypt(t, dst[p:])
	s.s2v(&t.x, dst[p:], ad)
	if subtle.ConstantTimeCompare(t.x[:], sealed[:block]) != 1 {
		clear(dst[p:])
		return nil, ErrAuth
	}
	return dst, nil
}

// s2v sets v to the synthetic initialization vector of plain and ad, RFC 5297 section 2.4. It changes plain meanwhile.
func (s *siv) s2v(v *[block]byte, plain, ad []byte) {
	d := s.begin(v, ad)
	if len(plain) >= block {
		end := plain[len(plain)-block:]
		subtle.XORBytes(end, end, d[:])
		s.cmac(v, plain)
		subtle.XORBytes(end, end, d[:])
		return
	}
	double(&d)
	subtle.XORBytes(d[:], d[:], plain)
	d[len(plain)] ^= 0x80
	s.cmac(v, d[:])
}

// begin returns what S2V makes of ad, before plain; v is room to work in.
func (s *siv) begin(v *[block]byte, ad []byte) [block]byte {
	if b := s.last.Load(); b != nil && string(ad) == string(b.ad[:]) {
		return b.d
	}
	s.cmac(v, ad)
	subtle.XORBytes(v[:], v[:], s.first[:])
	if len(ad) == block {
		s.last.Store(&begun{[block]byte(ad), *v})
	}
	return *v
}

// cmac sets x to the AES-CMAC of data, RFC 4493 section 2.4.
func (s *siv) cmac(x *[block]byte, data []byte) {
	*x = [block]byte{}
	for ; len(data) > block; data = data[block:] {
		subtle.XORBytes(x[:], x[:], data)
		s.mac.Encrypt(x[:], x[:])
	}
	last := &s.k1
	if len(data) < block {
		x[len(data)] ^= 0x80
		last = &s.k2
	}
	subtle.XORBytes(x[:], x[:], data)
	subtle.XORBytes(x[:], x[:], last[:])
	s.mac.Encrypt(x[:], x[:])
}

// crypt encrypts or decrypts data in place with AES-CTR from the vector t.x on, RFC 5297 sections 2.5 and 2.6. A [cipher.Stream] for each name would cost more than
// the encryption.
func (s *siv) crypt(t *scratch, data []byte) {
	t.x[8] &= 0x7f
	t.x[12] &= 0x7f // so that no carry leaves the last 8 bytes
	for counter := binary.BigEndian.Uint64(t.x[8:]); len(data) > 0; counter++ {
		binary.BigEndian.PutUint64(t.x[8:], counter)
		s.ctr.Encrypt(t.y[:], t.x[:])
		data = data[subtle.XORBytes(data, data, t.y[:]):]
	}
}

// double multiplies by x in GF(2^128), RFC 5297 section 2.3, in constant time.
func double(b *[block]byte) {
	hi, lo := binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])
	binary.BigEndian.PutUint64(b[:], hi<<1|lo>>63)
	binary.BigEndian.PutUint64(b[8:], lo<<1^hi>>63*0x87)
}
