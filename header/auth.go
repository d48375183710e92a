package header

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"

	"github.com/kmsfs/kmsfs/keyring"
)

// KeyID returns the public name of a data key, docs/format.md section 4.1.
func KeyID(dk keyring.DataKey) ID {
	id, err := hkdf.Key(sha256.New, dk, nil, "kmsfs v1 data key id", len(ID{}))
	if err != nil {
		panic("header: internal error: " + err.Error())
	}
	return ID(id)
}

// secrets returns the secret from which the keys of a file are derived, and of these the key commitment and the MAC key, docs/format.md section 4.4.
func (h *Header) secrets(dk keyring.DataKey) (prk, commitment, macKey []byte) {
	prk, err := hkdf.Extract(sha256.New, dk, h.FileID[:])
	if err == nil {
		commitment, err = hkdf.Expand(sha256.New, prk, "kmsfs v1 commitment", commitmentSize)
	}
	if err == nil {
		macKey, err = hkdf.Expand(sha256.New, prk, "kmsfs v1 header", macSize)
	}
	if err != nil {
		panic("header: internal error: " + err.Error())
	}
	return prk, commitment, macKey
}

// Endorse has the holder of a volume's data key vouch for h, the volume's [Current] header under the data key dk, which Seal will need. Else whoever has no more than the public key of
// a CMK could give the volume a data key of his own (docs/format.md section 4.8).
func (h *Header) Endorse(volumeKey, dk keyring.DataKey) {
	h.KeyID = KeyID(dk)
	h.Endorsement = h.endorsement(volumeKey)
}

// EndorsedBy checks what Endorse has set. The error wraps [ErrAuth].
func (h *Header) EndorsedBy(volumeKey keyring.DataKey) error {
	if want := h.endorsement(volumeKey); !hmac.Equal(h.Endorsement[:], want[:]) {
		return fmt.Errorf("%w: the volume's data key does not vouch for it", ErrAuth)
	}
	return nil
}

func (h *Header) endorsement(volumeKey keyring.DataKey) [endorsementSize]byte {
	key, err := hkdf.Key(sha256.New, volumeKey, h.FileID[:], "kmsfs v1 current", sha256.Size)
	if err != nil {
		panic("header: internal error: " + err.Error())
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(h.FileID[:])
	mac.Write(h.KeyID[:])
	mac.Write(binary.BigEndian.AppendUint64(nil, h.Generation))
	return [endorsementSize]byte(mac.Sum(nil))
}

// Seal authenticates h under dk, setting its data key ID, and returns its h.Size bytes. The error wraps [ErrBounds] if a
// field, or all of them together, are not what a header can hold.
func (h *Header) Seal(dk keyring.DataKey) ([]byte, error) {
	h.KeyID = KeyID(dk)
	raw, _, err := h.SealKnown(dk)
	return raw, err
}

// SealKnown is Seal for the data key that has the ID h.KeyID already. It returns the secret from which the file's keys are derived, too.
func (h *Header) SealKnown(dk keyring.DataKey) (raw, secret []byte, err error) {
	if err := h.check(); err != nil {
		return nil, nil, err
	}
	if len(dk) != h.Algorithm.KeySize() {
		return nil, nil, fmt.Errorf("%w: data key of %d bytes for %v", ErrBounds, len(dk), h.Algorithm)
	}
	secret, commitment, macKey := h.secrets(dk)
	h.commitment = [commitmentSize]byte(commitment)
	raw, err = h.appendSigned(make([]byte, 0, h.Size))
	if err != nil {
		return nil, nil, err
	}
	mac := hmac.New(sha256.New, macKey)
	mac.Write(raw)
	raw = mac.Sum(raw)
	h.mac = [macSize]byte(raw[len(raw)-macSize:])
	h.used = len(raw)
	return raw[:h.Size], secret, nil // the buffer was made of zeros: so is the padding
}

// Verify checks a header that was parsed against its data key: data key ID, key commitment, and MAC over all of it. The error wraps
// [ErrAuth]. It must be called before anything is opened with the key.
func (h *Header) Verify(dk keyring.DataKey) error {
	if id := KeyID(dk); subtle.ConstantTimeCompare(id[:], h.KeyID[:]) != 1 {
		return fmt.Errorf("%w: it was sealed under another data key", ErrAuth)
	}
	_, err := h.Open(dk)
	return err
}

// Open is Verify for the data key that has the ID h.KeyID, as KeyID or Verify has told. It returns the secret from which the file's keys are derived.
func (h *Header) Open(dk keyring.DataKey) (secret []byte, err error) {
	if len(dk) != h.Algorithm.KeySize() {
		return nil, fmt.Errorf("%w: data key of %d bytes for %v", ErrAuth, len(dk), h.Algorithm)
	}
	secret, commitment, macKey := h.secrets(dk)
	if subtle.ConstantTimeCompare(commitment, h.commitment[:]) != 1 {
		return nil, fmt.Errorf("%w: key commitment", ErrAuth)
	}
	// A header has one spelling, so its fields say which bytes the MAC covers; a field changed since Parse is not authentic.
	signed, err := h.appendSigned(make([]byte, 0, h.used))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAuth, err)
	}
	mac := hmac.New(sha256.New, macKey)
	mac.Write(signed)
	if !hmac.Equal(mac.Sum(nil), h.mac[:]) {
		return nil, fmt.Errorf("%w: MAC", ErrAuth)
	}
	return secret, nil
}
