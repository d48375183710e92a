package emulator

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"math/big"
	mathrand "math/rand/v2"
)

// rsaKey returns the key of that many bits that follows from seed. crypto/rsa gives no such thing: it draws its own random numbers.
func rsaKey(seed []byte, bits int) *rsa.PrivateKey {
	random := mathrand.NewChaCha8([32]byte(seed))
	e, one := big.NewInt(65537), big.NewInt(1)
	for {
		p, q := prime(random, bits/2), prime(random, bits/2)
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		d := new(big.Int).ModInverse(e, phi)
		if d == nil || p.Cmp(q) == 0 {
			continue
		}
		k := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537}, D: d, Primes: []*big.Int{p, q}}
		k.Precompute()
		if k.Validate() == nil {
			return k
		}
	}
}

// prime returns a prime of that many bits, the upper two of which are set: the product of two has twice as many bits.
func prime(random *mathrand.ChaCha8, bits int) *big.Int {
	b := make([]byte, bits/8)
	random.Read(b)
	p := new(big.Int).SetBytes(b)
	p.SetBit(p, bits-1, 1).SetBit(p, bits-2, 1).SetBit(p, 0, 1)
	for two := big.NewInt(2); !p.ProbablyPrime(0); p.Add(p, two) {
	}
	return p
}

// encryptOAEP and decryptOAEP are RSAES_OAEP_SHA_256: SHA-256 for the label and for the mask.
func (k *key) encryptOAEP(plain []byte) ([]byte, error) {
	return rsa.EncryptOAEP(sha256.New(), rand.Reader, &k.private().PublicKey, plain, nil)
}

func (k *key) decryptOAEP(sealed []byte) ([]byte, error) {
	return rsa.DecryptOAEP(sha256.New(), nil, k.private(), sealed, nil)
}
