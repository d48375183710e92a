package keyring

import "crypto/sha256"

// MaxData is the most that a CMK encrypts by itself, in bytes.
const MaxData = 4096

// DataDigest returns what is bound into small data that a CMK encrypts by itself. It is never a [EncryptionContext.Digest], so that a wrapped
// data key cannot be passed off as data. The error wraps [ErrContext].
func (ec EncryptionContext) DataDigest() ([sha256.Size]byte, error) {
	b, err := ec.AppendTo([]byte("kmsfs data v1"))
	return sha256.Sum256(b), err
}
