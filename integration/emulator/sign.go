package emulator

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"slices"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
)

// Kinds of keys on curves. Alibaba Cloud calls the last one EC_SM2.
const (
	specP256 = "EC_P256"
	specP384 = "EC_P384"
	specSM2  = "SM2"
)

// defaultUsage is what a key is for if nobody says so.
func defaultUsage(spec string) string {
	if slices.Contains([]string{specP256, specP384, specSM2}, spec) {
		return SignVerify
	}
	return EncryptDecrypt
}

// curveKey returns the key on a curve that follows from 32 bytes, nil if there is no such curve.
func curveKey(spec string, secret []byte) crypto.Signer {
	secret[0] &= 0x7f // below the order of every curve here
	var err error
	var key crypto.Signer
	switch spec {
	case specP256:
		key, err = ecdsa.ParseRawPrivateKey(elliptic.P256(), secret)
	case specP384:
		key, err = ecdsa.ParseRawPrivateKey(elliptic.P384(), append(make([]byte, 16), secret...))
	case specSM2:
		key, err = sm2.NewPrivateKey(secret)
	default:
		return nil
	}
	if err != nil {
		panic("emulator: internal error: " + err.Error()) // of 2^255 secrets only zero is none
	}
	return key
}

// forCurves reports whether an operation is one for a CMK on a curve.
func forCurves(operation string) bool {
	return slices.Contains([]string{
		"DescribeKey", "GetPublicKey", "AsymmetricSign", "AsymmetricVerify", "describe-key", "get-publickey", "sign", "verify",
	}, operation)
}

// public returns the public key of an asymmetric CMK.
func (k *key) public() crypto.PublicKey {
	if k.curve != nil {
		return k.curve.Public()
	}
	return &k.private().PublicKey
}

// publicPEM returns the public key of an asymmetric CMK as both clouds do.
func (k *key) publicPEM() string {
	der, err := smx509.MarshalPKIXPublicKey(k.public())
	if err != nil {
		panic("emulator: internal error: " + err.Error())
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// A scheme is a signature algorithm.
type scheme struct {
	hash crypto.Hash // 0: SM3, of which the callers make the digest
	spec string      // of the keys on a curve that it is for; empty for RSA
	pss  bool
}

// size is the length of the digest that is signed.
func (s scheme) size() int {
	if s.hash == 0 {
		return 32
	}
	return s.hash.Size()
}

// suits reports whether a key signs by a scheme.
func (k *key) suits(s scheme) bool {
	if s.spec == "" {
		return k.private != nil
	}
	return k.Spec == s.spec
}

func (k *key) sign(s scheme, digest []byte) ([]byte, error) {
	switch {
	case k.curve != nil:
		return k.curve.Sign(rand.Reader, digest, s.hash)
	case s.pss:
		return rsa.SignPSS(rand.Reader, k.private(), s.hash, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	}
	return rsa.SignPKCS1v15(nil, k.private(), s.hash, digest)
}

func (k *key) verify(s scheme, digest, signature []byte) bool {
	switch public := k.public().(type) {
	case *ecdsa.PublicKey:
		if s.spec == specSM2 {
			return sm2.VerifyASN1(public, digest, signature)
		}
		return ecdsa.VerifyASN1(public, digest, signature)
	case *rsa.PublicKey:
		if s.pss {
			return rsa.VerifyPSS(public, s.hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto}) == nil
		}
		return rsa.VerifyPKCS1v15(public, s.hash, digest, signature) == nil
	}
	return false
}
