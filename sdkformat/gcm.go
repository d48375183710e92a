package sdkformat

import (
	"crypto/cipher"
	"encoding/binary"
)

const (
	gcmIVSize  = 12
	gcmTagSize = 16
	// maxGCM is the longest text of one GCM run, in bytes: 2^32 - 2 blocks.
	maxGCM = 1<<36 - 32
)

// A gcm is one run of GCM over a text that is never in memory as a whole, which [cipher.AEAD] cannot do. Its GHASH is computed piece by piece with an
// AEAD all the same, whose assembly is a hundred times faster than a loop over bits: the tag of an empty text with a piece as its AAD is, but for a mask
// and a length block, the piece's GHASH.
type gcm struct {
	stream cipher.Stream // encrypts and decrypts the text
	hasher cipher.AEAD
	masks  [2]element // what is added to the tags: of this run, and of those of hasher
	h, inv element    // the hash key and its inverse

	y         element // GHASH so far
	aad, text uint64  // bytes hashed
}

// newGCM begins a run with an IV of 12 bytes.
func newGCM(block cipher.Block, iv, aad []byte) *gcm {
	hasher, err := cipher.NewGCM(block)
	if err != nil {
		panic("sdkformat: internal error: " + err.Error())
	}
	var counter, zero [16]byte
	copy(counter[:], iv[:gcmIVSize])
	counter[15] = 1
	g := &gcm{hasher: hasher, aad: uint64(len(aad))}
	block.Encrypt(zero[:], zero[:])
	g.h = elementOf(zero[:])
	g.inv = g.h.inverse()
	block.Encrypt(zero[:], counter[:])
	g.masks[0] = elementOf(zero[:])
	g.masks[1] = elementOf(hasher.Seal(nil, make([]byte, gcmIVSize), nil, nil))
	counter[15] = 2 // and no carry leaves the last four bytes within maxGCM
	g.stream = cipher.NewCTR(block, counter[:])
	g.add(aad)
	return g
}

// hash adds ciphertext. Every piece but the last is a multiple of 16 bytes long.
func (g *gcm) hash(ciphertext []byte) {
	g.text += uint64(len(ciphertext))
	g.add(ciphertext)
}

func (g *gcm) add(piece []byte) {
	if len(piece) == 0 {
		return
	}
	tag := elementOf(g.hasher.Seal(nil, make([]byte, gcmIVSize), nil, piece))
	length := element{hi: 8 * uint64(len(piece))}
	hash := tag.add(g.masks[1]).mul(g.inv).add(length)
	g.y = g.y.mul(g.h.power(uint64(len(piece)+15) / 16)).add(hash)
}

// tag ends the run.
func (g *gcm) tag() []byte {
	length := element{8 * g.aad, 8 * g.text}
	return g.y.add(length).mul(g.h).add(g.masks[0]).bytes()
}

// An element is one of GF(2^128) as GCM has it: the most significant bit of hi is the coefficient of x^0.
type element struct{ hi, lo uint64 }

func elementOf(b []byte) element {
	return element{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

func (e element) bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, e.hi), e.lo)
}

func (e element) add(o element) element { return element{e.hi ^ o.hi, e.lo ^ o.lo} }

// mul takes a time that does not depend on the values.
func (e element) mul(o element) (z element) {
	for _, word := range [2]uint64{e.hi, e.lo} {
		for i := 63; i >= 0; i-- {
			take := -(word >> i & 1)
			z.hi ^= o.hi & take
			z.lo ^= o.lo & take
			carry := -(o.lo & 1)
			o.lo = o.lo>>1 | o.hi<<63
			o.hi = o.hi>>1 ^ carry&(0xe1<<56)
		}
	}
	return z
}

// power returns e to the n-th.
func (e element) power(n uint64) element {
	z := element{hi: 1 << 63} // one
	for ; n > 0; n >>= 1 {
		if n&1 == 1 {
			z = z.mul(e)
		}
		e = e.mul(e)
	}
	return z
}

// inverse returns e to the power of 2^128 - 2.
func (e element) inverse() element {
	z := element{hi: 1 << 63}
	for range 127 {
		e = e.mul(e)
		z = z.mul(e)
	}
	return z
}
