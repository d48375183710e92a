// Package keyringtest has an in-memory keyring and the conformance suite that every keyring passes.
package keyringtest

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"sync"

	"github.com/kmsfs/kmsfs/keyring"
)

// A Fake is a keyring on one CMK in memory. It counts the calls that a KMS would have seen, and fails when told to.
type Fake struct {
	cmk  string
	aead cipher.AEAD

	mu       sync.Mutex
	encrypts int   // guarded by mu
	decrypts int   // guarded by mu
	failure  error // guarded by mu
}

var _ keyring.Keyring = (*Fake)(nil)

// NewFake returns a keyring on a new CMK with the given URI. Two of them with one URI are different CMKs.
func NewFake(cmk string) *Fake {
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("keyringtest: internal error: " + err.Error())
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("keyringtest: internal error: " + err.Error())
	}
	return &Fake{cmk: cmk, aead: aead}
}

// CMK returns the URI of the CMK.
func (f *Fake) CMK() string { return f.cmk }

// Encrypts returns how many calls to wrap there have been, failed ones included.
func (f *Fake) Encrypts() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.encrypts
}

// Decrypts returns how many calls to unwrap there have been, failed ones included. An EDK of another CMK makes no call.
func (f *Fake) Decrypts() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.decrypts
}

// Fail makes every later call to the CMK fail with err, until Fail(nil).
func (f *Fake) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failure = err
}

// call counts a call and returns how it fails.
func (f *Fake) call(counter *int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	*counter++
	return f.failure
}

// EncryptDataKey implements [keyring.Keyring].
func (f *Fake) EncryptDataKey(ctx context.Context, dk keyring.DataKey, ec keyring.EncryptionContext) ([]keyring.EncryptedDataKey, error) {
	aad, err := f.aad(ctx, ec)
	if err != nil {
		return nil, err
	}
	if err := f.call(&f.encrypts); err != nil {
		return nil, err
	}
	return []keyring.EncryptedDataKey{{CMK: f.cmk, Wrapped: f.aead.Seal(nil, nil, dk, aad)}}, nil
}

// DecryptDataKey implements [keyring.Keyring].
func (f *Fake) DecryptDataKey(ctx context.Context, edks []keyring.EncryptedDataKey, ec keyring.EncryptionContext) (keyring.DataKey, error) {
	aad, err := f.aad(ctx, ec)
	if err != nil {
		return nil, err
	}
	failure := fmt.Errorf("%w: %s", keyring.ErrNoMatch, f.cmk)
	for _, e := range edks {
		if e.CMK != f.cmk {
			continue
		}
		if failure = f.call(&f.decrypts); failure != nil {
			continue
		}
		dk, err := f.aead.Open(nil, nil, e.Wrapped, aad)
		if err == nil {
			return dk, nil
		}
		failure = fmt.Errorf("%w: %s: %w", keyring.ErrDenied, f.cmk, err)
	}
	return nil, failure
}

func (f *Fake) aad(ctx context.Context, ec keyring.EncryptionContext) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return ec.AppendTo(nil)
}
