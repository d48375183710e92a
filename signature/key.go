// Package signature verifies the signatures that CMKs make, and reads and writes the text that holds one.
//
// A signature is over the digest of a message: SHA-256 for RSA and ECDSA, and for SM2 the SM3 of the signer's ZA (of the standard user ID) and
// the message. docs/signing.md is normative for the text.
package signature

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"math/big"

	"github.com/emmansun/gmsm/sm2"
)

// An Algorithm signs digests. There is one for each kind of key.
type Algorithm string

// The algorithms.
const (
	RSAPSS Algorithm = "RSASSA_PSS_SHA_256" // salt as long as the digest; 2,048 to 4,096 bits
	ECDSA  Algorithm = "ECDSA_SHA_256"      // on P-256
	SM2    Algorithm = "SM2DSA_SM3"         // with the user ID 1234567812345678
)

// DigestSize is the length of the digest that every algorithm signs, in bytes.
const DigestSize = 32

// Errors that callers branch on.
var (
	// ErrKey says that a public key is none that signatures are verified with.
	ErrKey = errors.New("signature: not the public key of RSA with 2,048 to 4,096 bits, of ECDSA on P-256, or of SM2")
	// ErrOtherKey says that a signature was made with another key than the one it is verified with.
	ErrOtherKey = errors.New("signature: made with another key")
	// ErrForged says that the key made no such signature.
	ErrForged = errors.New("signature: does not verify")
	// ErrChanged says that a signature is sound and over something else.
	ErrChanged = errors.New("signature: what was signed has changed")
)

// A PublicKey verifies what a signing CMK has signed.
type PublicKey struct {
	algorithm Algorithm
	key       crypto.PublicKey // *rsa.PublicKey or *ecdsa.PublicKey
	pkix      []byte
}

// ParsePEM reads a public key as KMSs give it: one PEM block with a SubjectPublicKeyInfo. The error wraps [ErrKey].
func ParsePEM(text []byte) (*PublicKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%w: want one PEM block PUBLIC KEY", ErrKey)
	}
	k := &PublicKey{pkix: block.Bytes}
	if key, ok, err := parseSM2(block.Bytes); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	} else if ok {
		k.algorithm, k.key = SM2, key
		return k, nil
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	switch key := key.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < 2048 || n > 4096 {
			return nil, fmt.Errorf("%w: RSA with %d bits", ErrKey, n)
		}
		k.algorithm, k.key = RSAPSS, key
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return nil, fmt.Errorf("%w: ECDSA on %s", ErrKey, key.Params().Name)
		}
		k.algorithm, k.key = ECDSA, key
	default:
		return nil, fmt.Errorf("%w: a key of another kind", ErrKey)
	}
	return k, nil
}

// parseSM2 reads a SubjectPublicKeyInfo of the SM2 curve, which the standard library does not know; ok is false for those of others.
func parseSM2(pkixBytes []byte) (key *ecdsa.PublicKey, ok bool, err error) {
	var (
		info struct {
			Algorithm pkix.AlgorithmIdentifier
			Key       asn1.BitString
		}
		curve asn1.ObjectIdentifier
	)
	if rest, err := asn1.Unmarshal(pkixBytes, &info); err != nil || len(rest) > 0 || !info.Algorithm.Algorithm.Equal(asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}) {
		return nil, false, nil
	}
	rest, err := asn1.Unmarshal(info.Algorithm.Parameters.FullBytes, &curve)
	if err != nil || len(rest) > 0 || !curve.Equal(asn1.ObjectIdentifier{1, 2, 156, 10197, 1, 301}) {
		return nil, false, nil
	}
	key, err = sm2.NewPublicKey(info.Key.RightAlign())
	return key, true, err
}

// Algorithm returns the algorithm that the key is for.
func (k *PublicKey) Algorithm() Algorithm { return k.algorithm }

// PEM is the inverse of ParsePEM.
func (k *PublicKey) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.pkix})
}

// Fingerprint returns the SHA-256 of the key's SubjectPublicKeyInfo.
func (k *PublicKey) Fingerprint() [sha256.Size]byte { return sha256.Sum256(k.pkix) }

// NewHash returns a hash whose sum over a message is the digest that the key signs.
func (k *PublicKey) NewHash() hash.Hash {
	if k.algorithm != SM2 {
		return sha256.New()
	}
	h, err := sm2.NewHash(k.key.(*ecdsa.PublicKey))
	if err != nil {
		panic("signature: internal error: " + err.Error()) // the key is a point on the curve
	}
	return h
}

// Check returns the one spelling of a signature over a digest, or [ErrForged] if the key did not make it. Signatures on curves are in
// ASN.1; the two numbers one after the other are accepted for it.
func (k *PublicKey) Check(digest, value []byte) ([]byte, error) {
	if len(digest) != DigestSize {
		return nil, ErrForged
	}
	if k.verify(digest, value) {
		return value, nil
	}
	if k.algorithm != RSAPSS && len(value) == 64 {
		der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(value[:32]), new(big.Int).SetBytes(value[32:])})
		if err == nil && k.verify(digest, der) {
			return der, nil
		}
	}
	return nil, ErrForged
}

func (k *PublicKey) verify(digest, value []byte) bool {
	switch k.algorithm {
	case RSAPSS:
		return rsa.VerifyPSS(k.key.(*rsa.PublicKey), crypto.SHA256, digest, value, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto}) == nil
	case ECDSA:
		return ecdsa.VerifyASN1(k.key.(*ecdsa.PublicKey), digest, value)
	case SM2:
		return sm2.VerifyASN1(k.key.(*ecdsa.PublicKey), digest, value)
	}
	return false
}
