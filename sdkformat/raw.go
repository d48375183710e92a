package sdkformat

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rsa"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm4"
	"github.com/emmansun/gmsm/smx509"

	"github.com/kmsfs/kmsfs/keyring"
)

// ErrRawKey says that a text is no master key of a raw keyring.
var ErrRawKey = errors.New("sdkformat: not 32 or 64 hex digits, nor a PEM block PRIVATE KEY with an RSA or SM2 key")

// A RawKey is a master key that is kept outside a KMS, for a raw keyring of Huawei Cloud's SDK: of AES-256, SM4, RSA or SM2. It prints as a placeholder.
type RawKey struct {
	open func(wrapped, ctx []byte) [][]byte // what may be in a wrapped key
}

// ParseRawKey reads a master key: in hex digits, or PKCS #8 in PEM. The error is [ErrRawKey].
func ParseRawKey(text []byte) (*RawKey, error) {
	if block, _ := pem.Decode(text); block != nil {
		key, err := smx509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, ErrRawKey
		}
		switch key := key.(type) {
		case *rsa.PrivateKey:
			// The SDK leaves MGF1 at the default of Java, whatever the hash.
			return &RawKey{decrypter(key, &rsa.OAEPOptions{Hash: crypto.SHA256, MGFHash: crypto.SHA1})}, nil
		case *sm2.PrivateKey:
			return &RawKey{decrypter(key, sm2.NewPlainDecrypterOpts(sm2.C1C2C3))}, nil
		}
		return nil, ErrRawKey
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, ErrRawKey
	}
	switch len(key) {
	case 32:
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, ErrRawKey
		}
		return &RawKey{func(wrapped, ctx []byte) [][]byte { return openRawGCM(block, wrapped, ctx) }}, nil
	case 16:
		block, err := sm4.NewCipher(key)
		if err != nil {
			return nil, ErrRawKey
		}
		return &RawKey{func(wrapped, ctx []byte) [][]byte {
			return append(openRawGCM(block, wrapped, ctx), openRawCBC(block, wrapped)...)
		}}, nil
	}
	return nil, ErrRawKey
}

func decrypter(key crypto.Decrypter, o crypto.DecrypterOpts) func(wrapped, ctx []byte) [][]byte {
	return func(wrapped, _ []byte) [][]byte {
		if dk, err := key.Decrypt(nil, wrapped, o); err == nil {
			return [][]byte{dk}
		}
		return nil
	}
}

func openRawGCM(block cipher.Block, wrapped, ctx []byte) [][]byte {
	aead, err := cipher.NewGCM(block)
	if err != nil || len(wrapped) < gcmIVSize {
		return nil
	}
	dk, err := aead.Open(nil, wrapped[:gcmIVSize], wrapped[gcmIVSize:], ctx)
	if err != nil {
		return nil
	}
	return [][]byte{dk}
}

func openRawCBC(block cipher.Block, wrapped []byte) [][]byte {
	n := block.BlockSize()
	if len(wrapped) < 2*n || len(wrapped)%n != 0 {
		return nil
	}
	dk := make([]byte, len(wrapped)-n)
	cipher.NewCBCDecrypter(block, wrapped[:n]).CryptBlocks(dk, wrapped[n:])
	dk, err := unpad(dk)
	if err != nil {
		return nil
	}
	return [][]byte{dk}
}

// String hides the key.
func (r *RawKey) String() string { return "raw key (hidden)" }

// Raw reports whether a raw keyring has wrapped one of the message's data keys.
func (m *Message) Raw() bool {
	return slices.ContainsFunc(m.Keys, func(k Key) bool { return k.provider == providerRaw })
}

// Unwrap returns the data key of a message that a raw keyring has wrapped with the master key, and that verifies the message's header. The error
// wraps [keyring.ErrNoMatch].
func (r *RawKey) Unwrap(m *Message) (keyring.DataKey, error) {
	for _, k := range m.Keys {
		if k.provider != providerRaw {
			continue
		}
		for _, b := range r.open(k.Wrapped, m.ctx) {
			dk := keyring.DataKey(b)
			if m.Verify(dk) == nil {
				return dk, nil
			}
			dk.Wipe()
		}
	}
	return nil, fmt.Errorf("%w: the raw key opens none of them", keyring.ErrNoMatch)
}
