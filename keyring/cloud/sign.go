package cloud

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kmsfs/kmsfs/signature"
)

// A SigningKMS is a [KMS] that has signing CMKs, too. Its errors are those of [Caller.Do].
type SigningKMS interface {
	KMS
	// SigningKey describes a CMK, as [CheckSigning] passes it, and returns the ID of the version of its key, where the provider has such.
	SigningKey(ctx context.Context, cmk CMK) (version string, err error)
	// PublicKey returns the public key of a version of a CMK's key.
	PublicKey(ctx context.Context, cmk CMK, version string) (*signature.PublicKey, error)
	// Sign signs a digest.
	Sign(ctx context.Context, cmk CMK, version string, a signature.Algorithm, digest []byte) ([]byte, error)
}

// CheckSigning refuses, before anything is signed, a CMK that cannot sign: with an [*Error] that has no more than a Kind and an Err. specs are the
// provider's names of the kinds of keys that signatures are made with.
func CheckSigning(signs bool, spec, state string, specs ...string) error {
	switch {
	case !signs:
		return &Error{Kind: Refused, Err: errors.New("it is a CMK for encryption; signatures need one whose usage is to sign and verify")}
	case !slices.Contains(specs, spec):
		return &Error{Kind: Refused, Err: fmt.Errorf("it is a key of the kind %s; signatures are made with %s", printable(spec, 40), strings.Join(specs, ", "))}
	case state == StatePendingDeletion:
		return &Error{Kind: PendingDeletion}
	case state != StateEnabled:
		return &Error{Kind: KeyDisabled}
	}
	return nil
}

// ReadPublicKey reads the public key in an answer.
func ReadPublicKey(text string) (*signature.PublicKey, error) {
	k, err := signature.ParsePEM([]byte(text))
	if err != nil {
		return nil, Distrust("its public key is none that signatures are verified with")
	}
	return k, nil
}

// A Signer is a CMK that signs.
type Signer struct {
	kms     SigningKMS
	cmk     CMK
	version string
	key     *signature.PublicKey
}

// Signer asks the KMS whether the CMK can sign, and for its public key: two calls.
func (k *Keyring) Signer(ctx context.Context) (*Signer, error) {
	kms, err := k.signing()
	if err != nil {
		return nil, err
	}
	version, err := kms.SigningKey(ctx, k.cmk)
	if err != nil {
		return nil, err
	}
	key, err := kms.PublicKey(ctx, k.cmk, version)
	if err != nil {
		return nil, err
	}
	return &Signer{kms, k.cmk, version, key}, nil
}

// PublicKey asks the KMS for the public key that a signature of the CMK is verified with: one call. The version is the one that the signature names.
func (k *Keyring) PublicKey(ctx context.Context, version string) (*signature.PublicKey, error) {
	kms, err := k.signing()
	if err != nil {
		return nil, err
	}
	if version != "" && !plain(version, maxVersion) {
		return nil, &Error{CMK: k.CMK(), Call: "get the public key", Kind: Refused, Err: errors.New("no key has such a version")}
	}
	return kms.PublicKey(ctx, k.cmk, version)
}

func (k *Keyring) signing() (SigningKMS, error) {
	kms, ok := k.kms.(SigningKMS)
	if !ok {
		return nil, &Error{CMK: k.CMK(), Call: "sign", Kind: Refused, Err: errors.New("this provider has no signing CMKs")}
	}
	return kms, nil
}

// PublicKey returns the CMK's public key.
func (s *Signer) PublicKey() *signature.PublicKey { return s.key }

// Sign signs a digest that a hash of the public key has made. A signature that the public key does not verify is an answer that cannot be trusted.
func (s *Signer) Sign(ctx context.Context, digest []byte) (*signature.Signature, error) {
	value, err := s.kms.Sign(ctx, s.cmk, s.version, s.key.Algorithm(), digest)
	if err != nil {
		return nil, err
	}
	if value, err = s.key.Check(digest, value); err != nil {
		e := Distrust("its public key does not verify the signature")
		e.CMK, e.Call = s.cmk.String(), "check the signature"
		return nil, e
	}
	return &signature.Signature{
		Algorithm: s.key.Algorithm(), CMK: s.cmk.String(), Version: s.version, Key: s.key.Fingerprint(),
		Digest: [signature.DigestSize]byte(digest), Value: value,
	}, nil
}
