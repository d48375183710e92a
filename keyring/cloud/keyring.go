package cloud

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/kmsfs/kmsfs/keyring"
)

// Formats of a wrapped key, docs/format.md section 4.5: its first byte.
const (
	formatSymmetric = 1 // then u8 length of the data key, and what the KMS made
	formatRSA       = 2 // then u8 length and ID of the key version, and RSAES-OAEP
)

// maxWrapped is the longest wrapped key that a header holds, docs/format.md section 4.1.
const maxWrapped = 4096

// A KMS makes the calls of one provider. Its errors are those of [Caller.Do]. Its methods may be called by several goroutines at once.
type KMS interface {
	// Wrap wraps a data key under a symmetric CMK.
	Wrap(ctx context.Context, cmk CMK, info *KeyInfo, dk keyring.DataKey, b Binding) (blob []byte, err error)
	// Generate makes a data key of size bytes and wraps it under a symmetric CMK.
	Generate(ctx context.Context, cmk CMK, size int, b Binding) (dk keyring.DataKey, blob []byte, err error)
	// Unwrap opens what Wrap or Generate made of a data key of size bytes.
	Unwrap(ctx context.Context, cmk CMK, blob []byte, size int, b Binding) (keyring.DataKey, error)
	// DecryptRSA returns the text in a ciphertext of RSAES-OAEP with SHA-256. The version may be empty.
	DecryptRSA(ctx context.Context, cmk CMK, version string, ciphertext []byte) (text string, err error)
	// EncryptData encrypts 1 to [keyring.MaxData] bytes under a symmetric CMK.
	EncryptData(ctx context.Context, cmk CMK, plain []byte, digest string) (sealed []byte, err error)
	// DecryptData opens what EncryptData made.
	DecryptData(ctx context.Context, cmk CMK, sealed []byte, digest string) (plain []byte, err error)
	// Describe returns the state of a CMK, with the public key of an RSA CMK.
	Describe(ctx context.Context, cmk CMK) (*KeyInfo, Answer, error)
	// Calls returns how many calls have been sent for a CMK, by the provider's names.
	Calls(cmk CMK) map[string]int
}

// A Binding is what a KMS binds into a wrapped key.
type Binding struct {
	Digest string                    // the hex digits of the context's digest, for EDKs of kmsfs
	SDK    keyring.EncryptionContext // the context as the vendor's encryption SDK binds it, if it does; counts where Digest is empty
}

// A Keyring is one CMK of a KMS. It prints as the CMK's URI.
type Keyring struct {
	kms KMS
	cmk CMK

	mu   sync.Mutex
	info *KeyInfo // what wrapping needs to know; nil until asked; guarded by mu
}

var _ keyring.Generator = (*Keyring)(nil)

// NewKeyring returns a keyring on a CMK. Wrapping needs to know what kind of CMK it is: known says so if it is not nil, else the first call
// that wraps asks the KMS.
func NewKeyring(kms KMS, cmk CMK, known *KeyInfo) *Keyring {
	return &Keyring{kms: kms, cmk: cmk, info: known}
}

// CMK returns the URI of the CMK.
func (k *Keyring) CMK() string { return k.cmk.String() }

// String returns the URI of the CMK.
func (k *Keyring) String() string { return k.CMK() }

// Calls returns how many calls have been sent for the CMK, by the provider's names.
func (k *Keyring) Calls() map[string]int { return k.kms.Calls(k.cmk) }

// Describe asks the KMS for the state of the CMK.
func (k *Keyring) Describe(ctx context.Context) (*KeyInfo, Answer, error) {
	return k.kms.Describe(ctx, k.cmk)
}

// EncryptDataKey implements [keyring.Keyring].
func (k *Keyring) EncryptDataKey(ctx context.Context, dk keyring.DataKey, ec keyring.EncryptionContext) ([]keyring.EncryptedDataKey, error) {
	digest, info, err := k.prepare(ctx, ec)
	if err != nil {
		return nil, err
	}
	if info.rsa() {
		return k.sealRSA(info, dk, digest)
	}
	blob, err := k.kms.Wrap(ctx, k.cmk, info, dk, Binding{Digest: digest})
	if err != nil {
		return nil, err
	}
	return k.edk([]byte{formatSymmetric, byte(len(dk))}, blob)
}

// GenerateDataKey implements [keyring.Generator]. For an RSA CMK the key is made here.
func (k *Keyring) GenerateDataKey(ctx context.Context, size int, ec keyring.EncryptionContext) (keyring.DataKey, []keyring.EncryptedDataKey, error) {
	digest, info, err := k.prepare(ctx, ec)
	if err != nil {
		return nil, nil, err
	}
	if info.rsa() {
		dk := keyring.NewDataKey(size)
		edks, err := k.sealRSA(info, dk, digest)
		return dk, edks, err
	}
	dk, blob, err := k.kms.Generate(ctx, k.cmk, size, Binding{Digest: digest})
	if err != nil {
		return nil, nil, err
	}
	edks, err := k.edk([]byte{formatSymmetric, byte(size)}, blob)
	return dk, edks, err
}

// DecryptDataKey implements [keyring.Keyring].
func (k *Keyring) DecryptDataKey(ctx context.Context, edks []keyring.EncryptedDataKey, ec keyring.EncryptionContext) (keyring.DataKey, error) {
	digest, err := contextDigest(ec)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var failures []error
	for _, e := range edks {
		if e.CMK != k.CMK() {
			continue
		}
		dk, err := k.open(ctx, e.Wrapped, digest)
		if err == nil {
			return dk, nil
		}
		failures = append(failures, err)
	}
	if len(failures) == 0 {
		return nil, fmt.Errorf("%w: %s", keyring.ErrNoMatch, k.cmk)
	}
	return nil, errors.Join(failures...)
}

// open reads a wrapped key, which nobody has authenticated, and asks the KMS for what is in it.
func (k *Keyring) open(ctx context.Context, wrapped []byte, digest string) (keyring.DataKey, error) {
	bad := &Error{CMK: k.CMK(), Call: "read the EDK", Kind: NotWrapped}
	if len(wrapped) < 2 || len(wrapped) > maxWrapped {
		return nil, bad
	}
	format, n, rest := wrapped[0], int(wrapped[1]), wrapped[2:]
	switch {
	case format == formatSymmetric && (n == 16 || n == 32) && len(rest) > 0:
		return k.kms.Unwrap(ctx, k.cmk, rest, n, Binding{Digest: digest})
	case format == formatRSA && len(rest) > n && (n == 0 || plain(string(rest[:n]), maxVersion)):
		text, err := k.kms.DecryptRSA(ctx, k.cmk, string(rest[:n]), rest[n:])
		if err != nil {
			return nil, err
		}
		dk, err := openRSA(text, digest)
		if e := new(Error); errors.As(err, &e) {
			e.CMK, e.Call = k.CMK(), "read the EDK"
		}
		return dk, err
	}
	return nil, bad
}

func (k *Keyring) sealRSA(info *KeyInfo, dk keyring.DataKey, digest string) ([]keyring.EncryptedDataKey, error) {
	sealed, err := sealRSA(info.PublicKey, dk, digest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", k.cmk, err)
	}
	return k.edk(append([]byte{formatRSA, byte(len(info.Version))}, info.Version...), sealed)
}

func (k *Keyring) edk(prefix, blob []byte) ([]keyring.EncryptedDataKey, error) {
	if len(blob) == 0 || len(prefix)+len(blob) > maxWrapped {
		e := Distrust(fmt.Sprintf("its wrapped key has %d bytes", len(blob)))
		e.CMK, e.Call = k.CMK(), "keep the EDK"
		return nil, e
	}
	return []keyring.EncryptedDataKey{{CMK: k.CMK(), Wrapped: append(prefix, blob...)}}, nil
}

// prepare returns the digest of an encryption context, and what wrapping needs to know of the CMK; it asks for that at most once, failures apart.
func (k *Keyring) prepare(ctx context.Context, ec keyring.EncryptionContext) (digest string, info *KeyInfo, err error) {
	if digest, err = contextDigest(ec); err != nil {
		return "", nil, err
	}
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	k.mu.Lock()
	info = k.info
	k.mu.Unlock()
	if info != nil {
		return digest, info, nil
	}
	if info, _, err = k.Describe(ctx); err != nil {
		return "", nil, err
	}
	if info.rsa() {
		if err := k.checkRSA(info); err != nil {
			return "", nil, err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.info = info
	return digest, info, nil
}

// checkRSA checks what is needed to wrap without a call, which would succeed even if the CMK could never unwrap again.
func (k *Keyring) checkRSA(info *KeyInfo) error {
	e := &Error{CMK: k.CMK(), Call: "look at the CMK", Kind: BadAnswer}
	switch {
	case info.State == StatePendingDeletion:
		e.Kind = PendingDeletion
	case info.State != StateEnabled:
		e.Kind = KeyDisabled
	case len(info.PublicKey) > 0 && (info.Version == "" || plain(info.Version, maxVersion)):
		return nil
	}
	return e
}

// maxVersion bounds the ID of a key version, in bytes.
const maxVersion = 128

// Wraps reports whether there is enough to wrap with: for an RSA CMK, its public key.
func (i *KeyInfo) Wraps() bool { return i.Spec != "" && (!i.rsa() || len(i.PublicKey) > 0) }

func (i *KeyInfo) rsa() bool { return strings.HasPrefix(i.Spec, "RSA_") }

// Known returns what wrapping knows of the CMK, nil if it has not wrapped yet and was not told. The caller must not change it.
func (k *Keyring) Known() *KeyInfo {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.info
}
