package cloud

import (
	"context"
	"errors"
	"fmt"

	"github.com/kmsfs/kmsfs/keyring"
)

// ErrAsymmetric says that a CMK cannot make EDKs of the vendor's encryption SDK, because it is not symmetric.
var ErrAsymmetric = errors.New("cloud: messages of the encryption SDKs need a symmetric CMK")

// An SDKKeyring is one CMK with EDKs as the vendor's encryption SDK makes them: what the KMS made of the data key, and no more. It is for one
// message: it binds that message's encryption context, and not the one of a call, whose bounds are narrower than the SDKs'.
type SDKKeyring struct {
	k    *Keyring
	size int // of the data key in bytes
	bind Binding
}

var _ keyring.Generator = (*SDKKeyring)(nil)

// SDK returns the keyring on the same CMK for a message of the vendor's encryption SDK with a data key of size bytes.
func (k *Keyring) SDK(size int, ec keyring.EncryptionContext) *SDKKeyring {
	return &SDKKeyring{k, size, Binding{SDK: ec}}
}

// CMK returns the URI of the CMK.
func (s *SDKKeyring) CMK() string { return s.k.CMK() }

// EncryptDataKey implements [keyring.Keyring].
func (s *SDKKeyring) EncryptDataKey(ctx context.Context, dk keyring.DataKey, _ keyring.EncryptionContext) ([]keyring.EncryptedDataKey, error) {
	_, info, err := s.k.prepare(ctx, nil)
	if err != nil {
		return nil, err
	}
	if info.rsa() {
		return nil, fmt.Errorf("%w: %s is %s", ErrAsymmetric, s.CMK(), info.Spec)
	}
	blob, err := s.k.kms.Wrap(ctx, s.k.cmk, info, dk, s.bind)
	if err != nil {
		return nil, err
	}
	return s.k.edk(nil, blob)
}

// GenerateDataKey implements [keyring.Generator].
func (s *SDKKeyring) GenerateDataKey(ctx context.Context, size int, _ keyring.EncryptionContext) (keyring.DataKey, []keyring.EncryptedDataKey, error) {
	dk, blob, err := s.k.kms.Generate(ctx, s.k.cmk, size, s.bind)
	if err != nil {
		return nil, nil, err
	}
	edks, err := s.k.edk(nil, blob)
	return dk, edks, err
}

// DecryptDataKey implements [keyring.Keyring].
func (s *SDKKeyring) DecryptDataKey(ctx context.Context, edks []keyring.EncryptedDataKey, _ keyring.EncryptionContext) (keyring.DataKey, error) {
	var failures []error
	for _, e := range edks {
		if e.CMK != s.CMK() {
			continue
		}
		dk, err := s.k.kms.Unwrap(ctx, s.k.cmk, e.Wrapped, s.size, s.bind)
		if err == nil {
			return dk, nil
		}
		failures = append(failures, err)
		if ctx.Err() != nil {
			break
		}
	}
	if len(failures) == 0 {
		return nil, fmt.Errorf("%w: %s", keyring.ErrNoMatch, s.CMK())
	}
	return nil, errors.Join(failures...)
}
