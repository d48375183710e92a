package cloud

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/kmsfs/kmsfs/keyring"
)

// errPublicKey says that a public key is not one of RSA with 2,048 to 4,096 bits.
var errPublicKey = errors.New("cloud: not a usable RSA public key")

// ParsePublicKey returns the PKIX bytes of the PEM public key in an answer.
func ParsePublicKey(text string) ([]byte, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, Distrust("it has no public key")
	}
	if _, err := publicKey(block.Bytes); err != nil {
		return nil, Distrust("its public key is not of RSA with 2,048 to 4,096 bits")
	}
	return block.Bytes, nil
}

func publicKey(pkix []byte) (*rsa.PublicKey, error) {
	k, err := x509.ParsePKIXPublicKey(pkix)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errPublicKey, err)
	}
	pub, ok := k.(*rsa.PublicKey)
	if !ok || pub.N.BitLen() < 2048 || pub.N.BitLen() > 4096 {
		return nil, errPublicKey
	}
	return pub, nil
}

// sealRSA wraps a data key and the digest of its encryption context with a public key, without a call: RSAES-OAEP with SHA-256, over hex
// digits, because Huawei's KMS returns text. The KMS compares no context for an RSA CMK; openRSA does.
func sealRSA(pkix []byte, dk keyring.DataKey, digest string) ([]byte, error) {
	pub, err := publicKey(pkix)
	if err != nil {
		return nil, err
	}
	text := hex.AppendEncode(make([]byte, 0, 2*len(dk)+digestSize), dk)
	text = append(text, digest...)
	defer clear(text)
	return rsa.EncryptOAEP(sha256.New(), rand.Reader, pub, text, nil)
}

// openRSA returns the data key in what a KMS decrypted, if it was wrapped with that digest.
func openRSA(text, digest string) (keyring.DataKey, error) {
	n := len(text) - digestSize
	if n < 0 || subtle.ConstantTimeCompare([]byte(text[n:]), []byte(digest)) == 0 {
		return nil, &Error{Kind: NotWrapped}
	}
	dk, err := hex.DecodeString(text[:n])
	if err != nil || len(dk) != 16 && len(dk) != 32 {
		clear(dk)
		return nil, &Error{Kind: NotWrapped}
	}
	return dk, nil
}

// DataKey checks the plaintext of a data key of size bytes in an answer.
func DataKey(b []byte, size int) (keyring.DataKey, error) {
	if len(b) != size {
		clear(b)
		return nil, Distrust(fmt.Sprintf("it has no data key of %d bytes", size))
	}
	return b, nil
}
