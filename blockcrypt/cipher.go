package blockcrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/emmansun/gmsm/sm4"
)

// An Algorithm seals segments; the numbers are those of docs/format.md section 4.1.
type Algorithm uint8

// The algorithms.
const (
	AES256GCM Algorithm = 1
	AES128GCM Algorithm = 2
	SM4128GCM Algorithm = 3
)

const (
	prefixSize = 12
	nonceSize  = 12
	tagSize    = 16

	// Overhead is how many bytes a sealed segment has beyond its plaintext.
	Overhead = prefixSize + nonceSize + tagSize

	// sealsPerPrefix bounds how many random nonces one key sees, docs/format.md section 5.2.
	sealsPerPrefix = 1 << 16
	// maxCached is how many keys for reading a Cipher remembers; each has about 1 KiB.
	maxCached = 64
)

// Kinds of sealed slots, docs/format.md section 5.1.
const (
	kindInner = 0
	kindFinal = 1
	kindMap   = 2
)

// ErrAuth says that a segment or hole map does not authenticate: it was changed, moved, or the file was cut or extended.
var ErrAuth = errors.New("blockcrypt: does not authenticate")

// A Cipher seals and opens the segments of one file. It may be used by several goroutines at once.
type Cipher struct {
	alg   Algorithm
	key   func() []byte // the content key of docs/format.md section 4.4; a function, so that no verb of fmt prints it
	limit int           // seals per prefix

	recent atomic.Pointer[segmentKey] // the key that opened last

	mu     sync.Mutex
	write  *segmentKey                      // guarded by mu; nil before the first seal
	left   int                              // seals that write may still do; guarded by mu
	cached map[[prefixSize]byte]*segmentKey // without write; guarded by mu
}

// A segmentKey is the AEAD for one prefix.
type segmentKey struct {
	prefix [prefixSize]byte
	aead   cipher.AEAD
}

// NewCipher returns the cipher of the file whose keys are derived from secret, the prk of docs/format.md section 4.4.
func NewCipher(alg Algorithm, secret []byte) (*Cipher, error) {
	if alg.keySize() == 0 {
		return nil, fmt.Errorf("blockcrypt: no algorithm %d", alg)
	}
	key, err := hkdf.Expand(sha256.New, secret, "kmsfs v1 content", 32)
	if err != nil {
		return nil, err
	}
	return &Cipher{alg: alg, key: func() []byte { return key }, limit: sealsPerPrefix}, nil
}

func (a Algorithm) keySize() int {
	switch a {
	case AES256GCM:
		return 32
	case AES128GCM, SM4128GCM:
		return 16
	}
	return 0
}

func (c *Cipher) derive(prefix [prefixSize]byte) *segmentKey {
	key, err := hkdf.Expand(sha256.New, c.key(), "kmsfs v1 segment"+string(prefix[:]), c.alg.keySize())
	if err != nil {
		panic("blockcrypt: internal error: " + err.Error())
	}
	var block cipher.Block
	if c.alg == SM4128GCM {
		block, err = sm4.NewCipher(key)
	} else {
		block, err = aes.NewCipher(key)
	}
	if err != nil {
		panic("blockcrypt: internal error: " + err.Error())
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("blockcrypt: internal error: " + err.Error())
	}
	return &segmentKey{prefix, aead}
}

// sealer returns a key for n more seals, n being at most the limit for a prefix.
func (c *Cipher) sealer(n int) *segmentKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.write == nil || c.left < n {
		if c.write != nil {
			c.remember(c.write)
		}
		var prefix [prefixSize]byte
		rand.Read(prefix[:])
		c.write, c.left = c.derive(prefix), c.limit
		c.recent.Store(c.write)
	}
	c.left -= n
	return c.write
}

// opener returns the key for a prefix.
func (c *Cipher) opener(prefix [prefixSize]byte) *segmentKey {
	if k := c.recent.Load(); k != nil && k.prefix == prefix {
		return k
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.write
	if k == nil || k.prefix != prefix {
		k = c.cached[prefix]
	}
	if k == nil {
		k = c.derive(prefix)
		c.remember(k)
	}
	c.recent.Store(k)
	return k
}

// remember caches k in the place of any other. c.mu is held.
func (c *Cipher) remember(k *segmentKey) {
	if c.cached == nil {
		c.cached = make(map[[prefixSize]byte]*segmentKey)
	}
	if len(c.cached) >= maxCached {
		for other := range c.cached {
			delete(c.cached, other)
			break
		}
	}
	c.cached[k.prefix] = k
}

// seal fills dst, which has room for plain and Overhead, with the sealed form of plain. aad is scratch space.
func (k *segmentKey) seal(dst, plain []byte, index int64, kind byte, aad *[9]byte) {
	copy(dst, k.prefix[:])
	nonce := dst[prefixSize : prefixSize+nonceSize]
	rand.Read(nonce)
	binary.BigEndian.PutUint64(aad[:], uint64(index))
	aad[8] = kind
	k.aead.Seal(dst[prefixSize+nonceSize:prefixSize+nonceSize], nonce, plain, aad[:])
}

// open opens a sealed slot into dst, which has room for exactly its plaintext.
func (c *Cipher) open(dst, sealed []byte, index int64, kind byte, aad *[9]byte) error {
	if len(sealed) != len(dst)+Overhead {
		panic("blockcrypt: internal error: slot of the wrong length")
	}
	k := c.opener([prefixSize]byte(sealed))
	binary.BigEndian.PutUint64(aad[:], uint64(index))
	aad[8] = kind
	nonce := sealed[prefixSize : prefixSize+nonceSize]
	if _, err := k.aead.Open(dst[:0:len(dst)], nonce, sealed[prefixSize+nonceSize:], aad[:]); err != nil {
		clear(dst)
		if kind == kindMap {
			return fmt.Errorf("%w: hole map %d", ErrAuth, index)
		}
		return fmt.Errorf("%w: segment %d", ErrAuth, index)
	}
	return nil
}
