package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
)

// Wrap wraps a data key that the volume knows under every CMK of k.
func (v *Volume) Wrap(ctx context.Context, id header.ID, k keyring.Keyring) ([]keyring.EncryptedDataKey, error) {
	dk := v.dataKey(id)
	if dk == nil {
		return nil, fmt.Errorf("volume: data key %s is not known", id)
	}
	return k.EncryptDataKey(ctx, dk, v.Header().Context)
}

// Reseal returns the bytes of a copy of h, the volume's header or one that FileHeader returned, with other EDKs. The error wraps [header.ErrBounds] if they do not fit.
func (v *Volume) Reseal(h *header.Header, edks []keyring.EncryptedDataKey) ([]byte, error) {
	raw, _, err := v.reseal(h, edks)
	return raw, err
}

func (v *Volume) reseal(h *header.Header, edks []keyring.EncryptedDataKey) ([]byte, *header.Header, error) {
	dk := v.dataKey(h.KeyID)
	if dk == nil {
		return nil, nil, fmt.Errorf("volume: data key %s is not known", h.KeyID)
	}
	changed := *h
	changed.EDKs = slices.Clone(edks)
	raw, err := changed.Seal(dk)
	return raw, &changed, err
}

// SetEDKs gives the volume header, and every header that is made from now on, other EDKs. The copy is durable before the file is touched, so that one of
// them is whole whatever happens; another call makes them alike again.
func (v *Volume) SetEDKs(edks []keyring.EncryptedDataKey) error {
	raw, h, err := v.reseal(v.Header(), edks)
	if err != nil {
		return err
	}
	for _, name := range []string{headerCopy, headerFile} {
		if err := errors.Join(v.replace(name, raw), unix.Fsync(v.meta)); err != nil {
			return fmt.Errorf("write %s/%s: %w", MetaDir, name, err)
		}
	}
	v.rewrapped.Store(h)
	return nil
}

// SetKeyring has the data keys that are not known yet unwrapped by k.
func (v *Volume) SetKeyring(k keyring.Keyring) {
	v.keys.mu.Lock()
	defer v.keys.mu.Unlock()
	v.keys.keyring = k
}

// Ask has a CMK unwrap the volume's data key once more, to see whether it still would.
func (v *Volume) Ask(ctx context.Context) error {
	dk, err := openKey(ctx, v.keys.ring(), v.Header())
	dk.Wipe()
	return err
}
