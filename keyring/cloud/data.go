package cloud

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/kmsfs/kmsfs/keyring"
)

// EncryptData lets the KMS encrypt small data under a symmetric CMK, bound to an encryption context.
func (k *Keyring) EncryptData(ctx context.Context, plain []byte, ec keyring.EncryptionContext) ([]byte, error) {
	digest, err := ec.DataDigest()
	if err != nil {
		return nil, err
	}
	return k.kms.EncryptData(ctx, k.cmk, plain, hex.EncodeToString(digest[:]))
}

// DecryptData lets the KMS decrypt what EncryptData made.
func (k *Keyring) DecryptData(ctx context.Context, sealed []byte, ec keyring.EncryptionContext) ([]byte, error) {
	digest, err := ec.DataDigest()
	if err != nil {
		return nil, err
	}
	return k.kms.DecryptData(ctx, k.cmk, sealed, hex.EncodeToString(digest[:]))
}

// Data checks the plaintext of small data in an answer.
func Data(b []byte) ([]byte, error) {
	if len(b) == 0 || len(b) > keyring.MaxData {
		clear(b)
		return nil, Distrust(fmt.Sprintf("it has no plaintext of 1 to %d bytes", keyring.MaxData))
	}
	return b, nil
}
