// Package keyring encrypts and decrypts data keys under CMKs, the master keys that a KMS (or a local file) holds.
//
// A [Keyring] stands for one CMK, or for several of which any one can decrypt (package failover). The
// encryption context is bound into every wrapped key: a key wrapped under one context does not unwrap under another.
package keyring

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
)

// Errors that callers branch on. Providers wrap them.
var (
	// ErrNoMatch says that none of the EDKs was made by a CMK of this keyring.
	ErrNoMatch = errors.New("keyring: no EDK is from a trusted CMK")
	// ErrUntrusted says that a CMK that has to be asked is none of this keyring.
	ErrUntrusted = errors.New("keyring: a CMK is not trusted, or cannot be used")
	// ErrDenied says that a CMK was reached and refused: disabled, deleted, no permission, or the
	// wrapped key or its encryption context is not what the CMK wrapped.
	ErrDenied = errors.New("keyring: the CMK refused")
	// ErrUnavailable says that a CMK could not be asked.
	ErrUnavailable = errors.New("keyring: the CMK is unavailable")
)

// A Keyring encrypts and decrypts data keys under its CMKs. Its methods may be called by several goroutines
// at once and return early when ctx is done.
type Keyring interface {
	// EncryptDataKey wraps dk under every CMK of the keyring, in order; if one of them fails, so does the call.
	EncryptDataKey(ctx context.Context, dk DataKey, ec EncryptionContext) ([]EncryptedDataKey, error)

	// DecryptDataKey unwraps the first of edks that it can. The error wraps [ErrNoMatch] if none of them is
	// from a CMK of this keyring; any other error means that one was, and that it failed.
	DecryptDataKey(ctx context.Context, edks []EncryptedDataKey, ec EncryptionContext) (DataKey, error)
}

// An EncryptedDataKey is a data key wrapped by one CMK.
type EncryptedDataKey struct {
	CMK     string // the URI as a header stores it, such as "local:<id>"
	Wrapped []byte // opaque to everyone but the CMK's provider
}

// CMKs returns the URIs of the CMKs that made edks, in order.
func CMKs(edks []EncryptedDataKey) []string {
	list := []string{}
	for _, e := range edks {
		list = append(list, e.CMK)
	}
	return list
}

// A DataKey is a plaintext data key, 16 or 32 bytes long. It prints as a placeholder.
type DataKey []byte

// NewDataKey returns size random bytes as a data key.
func NewDataKey(size int) DataKey {
	dk := make(DataKey, size)
	rand.Read(dk) // never fails, see its documentation
	return dk
}

// Wipe overwrites the key with zeros.
func (dk DataKey) Wipe() { clear(dk) }

// String hides the key.
func (dk DataKey) String() string { return "data key (hidden)" }

// Format hides the key from every verb.
func (dk DataKey) Format(f fmt.State, _ rune) { fmt.Fprint(f, dk.String()) }

// LogValue hides the key from structured logs.
func (dk DataKey) LogValue() slog.Value { return slog.StringValue(dk.String()) }
