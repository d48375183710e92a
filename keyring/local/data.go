package local

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/kmsfs/kmsfs/keyring"
)

// EncryptData encrypts small data under the CMK, bound to an encryption context.
func (k *Keyring) EncryptData(ctx context.Context, plain []byte, ec keyring.EncryptionContext) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	aad, err := k.dataAAD(ec)
	if err != nil {
		return nil, err
	}
	sealed := make([]byte, saltSize, saltSize+len(plain)+tagSize)
	rand.Read(sealed)
	return k.aead(dataLabel, sealed).Seal(sealed, make([]byte, nonceSize), plain, aad), nil
}

// DecryptData decrypts what EncryptData made. The error wraps [keyring.ErrDenied] if it was made by another CMK or under another context.
func (k *Keyring) DecryptData(ctx context.Context, sealed []byte, ec keyring.EncryptionContext) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	aad, err := k.dataAAD(ec)
	if err != nil {
		return nil, err
	}
	if len(sealed) >= saltSize {
		if plain, err := k.aead(dataLabel, sealed[:saltSize]).Open(nil, make([]byte, nonceSize), sealed[saltSize:], aad); err == nil {
			return plain, nil
		}
	}
	return nil, fmt.Errorf("%w: %s did not encrypt this data under this encryption context", keyring.ErrDenied, k.CMK())
}

func (k *Keyring) dataAAD(ec keyring.EncryptionContext) ([]byte, error) {
	digest, err := ec.DataDigest()
	if err != nil {
		return nil, err
	}
	return append(k.id[:len(k.id):len(k.id)], digest[:]...), nil
}
