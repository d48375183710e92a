package emulator

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
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

// publicPEM returns the public key of an RSA CMK as both clouds do.
func (k *key) publicPEM() string {
	der, err := x509.MarshalPKIXPublicKey(&k.private().PublicKey)
	if err != nil {
		panic("emulator: internal error: " + err.Error())
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// encryptOAEP and decryptOAEP are RSAES_OAEP_SHA_256: SHA-256 for the label and for the mask.
func (k *key) encryptOAEP(plain []byte) ([]byte, error) {
	return rsa.EncryptOAEP(sha256.New(), rand.Reader, &k.private().PublicKey, plain, nil)
}

func (k *key) decryptOAEP(sealed []byte) ([]byte, error) {
	return rsa.DecryptOAEP(sha256.New(), nil, k.private(), sealed, nil)
}

// A scheme is a signature algorithm of an RSA CMK.
type scheme struct {
	hash crypto.Hash
	pss  bool
}

func (k *key) sign(s scheme, digest []byte) ([]byte, error) {
	if s.pss {
		return rsa.SignPSS(rand.Reader, k.private(), s.hash, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	}
	return rsa.SignPKCS1v15(nil, k.private(), s.hash, digest)
}

func (k *key) verify(s scheme, digest, signature []byte) bool {
	public := &k.private().PublicKey
	if s.pss {
		return rsa.VerifyPSS(public, s.hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto}) == nil
	}
	return rsa.VerifyPKCS1v15(public, s.hash, digest, signature) == nil
}
