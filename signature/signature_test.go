package signature

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/sm2"
)

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func unhexed(t testing.TB, s string) []byte {
	return must[[]byte](t)(hex.DecodeString(strings.ReplaceAll(s, " ", "")))
}

// public writes a public key in PEM.
func public(t testing.TB, key any) []byte {
	t.Helper()
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must[[]byte](t)(x509.MarshalPKIXPublicKey(key))})
}

// sm2Public writes an SM2 public key, a point, in PEM.
func sm2Public(t testing.TB, point []byte) []byte {
	const prefix = "3059 3013 06072a8648ce3d0201 06082a811ccf5501822d 034200"
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: append(unhexed(t, prefix), point...)})
}

// TestSM2Standard verifies the example of GB/T 32918.5-2017, annex A.2: digest and signature.
func TestSM2Standard(t *testing.T) {
	point := unhexed(t, "04"+
		"09F9DF31 1E5421A1 50DD7D16 1E4BC5C6 72179FAD 1833FC07 6BB08FF3 56F35020"+
		"CCEA490C E26775A5 2DC6EA71 8CC1AA60 0AED05FB F35E084A 6632F607 2DA9AD13")
	e := unhexed(t, "F0B43E94 BA45ACCA ACE692ED 534382EB 17E6AB5A 19CE7B31 F4486FDF C0D28640")
	rs := unhexed(t, "F5A03B06 48D2C463 0EEAC513 E1BB81A1 5944DA38 27D5B741 43AC7EAC EEE720B3"+
		"B1B6AA29 DF212FD8 763182BC 0D421CA1 BB9038FD 1F7F42D4 840B69C4 85BBC1AA")
	k := must[*PublicKey](t)(ParsePEM(sm2Public(t, point)))
	if k.Algorithm() != SM2 {
		t.Fatalf("algorithm %s", k.Algorithm())
	}
	h := k.NewHash()
	h.Write([]byte("message digest"))
	if got := h.Sum(nil); !bytes.Equal(got, e) {
		t.Fatalf("digest %x, want %x", got, e)
	}
	der := must[[]byte](t)(k.Check(e, rs)) // the two numbers
	if again := must[[]byte](t)(k.Check(e, der)); !bytes.Equal(again, der) {
		t.Errorf("%x became %x", der, again)
	}
	for i := range rs {
		rs[i] ^= 1
		if _, err := k.Check(e, rs); !errors.Is(err, ErrForged) {
			t.Errorf("byte %d of the signature: %v", i, err)
		}
		rs[i] ^= 1
	}
	for i := range e {
		e[i] ^= 1
		if _, err := k.Check(e, der); !errors.Is(err, ErrForged) {
			t.Errorf("byte %d of the digest: %v", i, err)
		}
		e[i] ^= 1
	}
}

// A signer is a key pair.
type signer struct {
	public *PublicKey
	sign   func(digest []byte) []byte
}

func signers(t testing.TB) map[Algorithm]signer {
	rsaKey := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	ecKey := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	sm2Key := must[*sm2.PrivateKey](t)(sm2.GenerateKey(rand.Reader))
	parse := func(text []byte) *PublicKey { return must[*PublicKey](t)(ParsePEM(text)) }
	return map[Algorithm]signer{
		RSAPSS: {parse(public(t, &rsaKey.PublicKey)), func(d []byte) []byte {
			return must[[]byte](t)(rsa.SignPSS(rand.Reader, rsaKey, crypto.SHA256, d, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}))
		}},
		ECDSA: {parse(public(t, &ecKey.PublicKey)), func(d []byte) []byte { return must[[]byte](t)(ecdsa.SignASN1(rand.Reader, ecKey, d)) }},
		SM2: {parse(sm2Public(t, elliptic.Marshal(sm2Key.Curve, sm2Key.X, sm2Key.Y))), func(d []byte) []byte {
			return must[[]byte](t)(sm2Key.Sign(rand.Reader, d, nil))
		}},
	}
}

func signed(s signer, message string) *Signature {
	h := s.public.NewHash()
	h.Write([]byte(message))
	digest := h.Sum(nil)
	return &Signature{Algorithm: s.public.Algorithm(), CMK: "acs:kms:r:1:key/k", Version: "v-1", Key: s.public.Fingerprint(), Digest: [32]byte(digest), Value: s.sign(digest)}
}

// TestVerify has the signature of each kind of key, what was signed changed, the signature changed, and a key exchanged.
func TestVerify(t *testing.T) {
	all := signers(t)
	for a, s := range all {
		sig := signed(s, "message")
		digest := bytes.Clone(sig.Digest[:])
		if again := must[*PublicKey](t)(ParsePEM(s.public.PEM())); again.Fingerprint() != s.public.Fingerprint() {
			t.Errorf("%s: the key is another one after PEM", a)
		}
		if err := sig.Verify(s.public, digest); err != nil {
			t.Errorf("%s: %v", a, err)
		}
		if a != SM2 && sig.Digest != sha256.Sum256([]byte("message")) {
			t.Errorf("%s: the digest is not SHA-256", a)
		}
		if err := sig.Verify(s.public, make([]byte, 32)); !errors.Is(err, ErrChanged) {
			t.Errorf("%s: another message: %v", a, err)
		}
		for i := range sig.Value {
			sig.Value[i] ^= 1
			if err := sig.Verify(s.public, digest); !errors.Is(err, ErrForged) {
				t.Errorf("%s: byte %d of the signature: %v", a, i, err)
			}
			sig.Value[i] ^= 1
		}
		sig.Value = append(sig.Value, 0)
		if err := sig.Verify(s.public, digest); !errors.Is(err, ErrForged) {
			t.Errorf("%s: a longer signature: %v", a, err)
		}
		for b, other := range all {
			if b != a {
				if err := sig.Verify(other.public, digest); !errors.Is(err, ErrOtherKey) {
					t.Errorf("%s by %s: %v", a, b, err)
				}
				forged := *sig
				forged.Key, forged.Algorithm = other.public.Fingerprint(), b
				if err := forged.Verify(other.public, digest); !errors.Is(err, ErrForged) {
					t.Errorf("%s as %s: %v", a, b, err)
				}
			}
		}
	}
}

// TestRawSignature accepts the two numbers for ASN.1, also if they have leading zeros.
func TestRawSignature(t *testing.T) {
	s := signers(t)[ECDSA]
	digest := sha256.Sum256([]byte("message"))
	for range 50 {
		der := s.sign(digest[:])
		var n struct{ R, S *big.Int }
		if _, err := asn1.Unmarshal(der, &n); err != nil {
			t.Fatal(err)
		}
		raw := append(n.R.FillBytes(make([]byte, 32)), n.S.FillBytes(make([]byte, 32))...)
		if got, err := s.public.Check(digest[:], raw); err != nil || !bytes.Equal(got, der) {
			t.Errorf("%x: %x, %v", raw, got, err)
		}
	}
}

// TestKeysRefused has public keys that nothing is verified with.
func TestKeysRefused(t *testing.T) {
	small := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 1024))
	p384 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	good := public(t, &must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).PublicKey)
	off := make([]byte, 65)
	off[0], off[1], off[33] = 4, 1, 1
	for name, text := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "two keys": append(bytes.Clone(good), good...), "more": append(bytes.Clone(good), "x"...),
		"RSA with 1,024 bits": public(t, &small.PublicKey), "P-384": public(t, &p384.PublicKey),
		"SM2, no point of the curve": sm2Public(t, off), "SM2, short": sm2Public(t, off[:33]),
		"a certificate": bytes.ReplaceAll(good, []byte("PUBLIC KEY"), []byte("CERTIFICATE")), "cut": good[:60],
	} {
		if _, err := ParsePEM(text); !errors.Is(err, ErrKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParsePEM(append([]byte("\n"), append(good, '\n')...)); err != nil {
		t.Errorf("with empty lines: %v", err)
	}
}

func TestText(t *testing.T) {
	sig := signed(signers(t)[ECDSA], "message")
	for _, version := range []string{"v-1", ""} {
		sig.Version = version
		text := sig.Append(nil)
		got := must[*Signature](t)(Parse(text))
		if !bytes.Equal(got.Append(nil), text) || got.CMK != sig.CMK || got.Version != version {
			t.Errorf("%+v", got)
		}
		for i := range text {
			for _, change := range []byte{'\n', ' ', 0, text[i] ^ 0x20} {
				b := bytes.Clone(text)
				b[i] = change
				if got, err := Parse(b); err == nil && !bytes.Equal(got.Append(nil), b) {
					t.Errorf("byte %d to %q: parsed to another text", i, change)
				} else if err != nil && !errors.Is(err, ErrFormat) {
					t.Errorf("byte %d to %q: %v", i, change, err)
				}
			}
			if _, err := Parse(text[:i]); !errors.Is(err, ErrFormat) {
				t.Errorf("cut at %d: %v", i, err)
			}
		}
		for _, body := range []string{"", "a\n", strings.Repeat("line\n", 5000), "kmsfs-signature-1\n"} {
			all := append([]byte(body), text...)
			got, n, err := Split(bytes.NewReader(all), int64(len(all)))
			if err != nil || n != int64(len(body)) || !bytes.Equal(got.Append(nil), text) {
				t.Errorf("%.20q: %d, %v", body, n, err)
			}
		}
		for _, all := range []string{"", "\n", "x" + string(text), strings.Repeat("x", 10000), string(text) + "\n"} {
			if _, _, err := Split(strings.NewReader(all), int64(len(all))); !errors.Is(err, ErrFormat) {
				t.Errorf("%.20q: %v", all, err)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(signed(signers(f)[ECDSA], "message").Append(nil))
	f.Add([]byte(Magic + "algorithm SM2DSA_SM3\ncmk x\nversion -\nkey 00\ndigest 00\nvalue AA==\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := Parse(text); err == nil && !bytes.Equal(s.Append(nil), text) {
			t.Errorf("%q became %q", text, s.Append(nil))
		} else if err != nil && !errors.Is(err, ErrFormat) {
			t.Error(err)
		}
	})
}
