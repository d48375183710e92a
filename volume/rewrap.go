package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
)

// ErrForgotten says that a data key is not known, or not any more: [Volume.FileHeader] asks for it again.
var ErrForgotten = errors.New("volume: data key is not known")

// Wrap wraps a data key that the volume knows under every CMK of k.
func (v *Volume) Wrap(ctx context.Context, id header.ID, k keyring.Keyring) ([]keyring.EncryptedDataKey, error) {
	dk := v.keys.known.get(id)
	if dk == nil {
		return nil, fmt.Errorf("%w: %s", ErrForgotten, id)
	}
	return k.EncryptDataKey(ctx, dk, v.Header().Context)
}

// Reseal returns the bytes of a copy of h, a header of the volume's own or one that FileHeader returned, with other EDKs. The error wraps [header.ErrBounds] if they do not fit.
func (v *Volume) Reseal(h *header.Header, edks []keyring.EncryptedDataKey) ([]byte, error) {
	dk := v.keys.known.get(h.KeyID)
	if dk == nil {
		return nil, fmt.Errorf("%w: %s", ErrForgotten, h.KeyID)
	}
	changed := *h
	changed.EDKs = edks
	return changed.Seal(dk)
}

// SetEDKs gives the volume header, and every header that is made from now on under its data key, other EDKs. Cut off anywhere, one of the header and its copy is whole; another call makes them alike again.
func (v *Volume) SetEDKs(edks []keyring.EncryptedDataKey) error {
	changed := *v.Header()
	changed.EDKs = slices.Clone(edks)
	return v.setHeader(&changed)
}

// SetCurrentEDKs is SetEDKs for the data key of new files, once that is another one than the volume header's.
func (v *Volume) SetCurrentEDKs(edks []keyring.EncryptedDataKey) error {
	h, err := v.Current()
	if err != nil {
		return err
	}
	changed := *h
	changed.EDKs = slices.Clone(edks)
	raw, err := v.Reseal(&changed, changed.EDKs)
	if err == nil {
		err = v.writeBoth(currentCopy, currentFile, raw)
	}
	if err != nil {
		return err
	}
	v.current.Store(&current{header: &changed})
	return v.notice(changed.Generation)
}

// SetKeyring has the data keys that are not known yet unwrapped by k.
func (v *Volume) SetKeyring(k keyring.Keyring) {
	v.keys.mu.Lock()
	defer v.keys.mu.Unlock()
	v.keys.keyring = k
}

// Ask has a CMK unwrap the volume's own data keys once more, to see whether it still would.
func (v *Volume) Ask(ctx context.Context) error {
	asked := []*header.Header{v.Header()}
	if h, err := v.Current(); err == nil && h.Kind == header.Current {
		asked = append(asked, h)
	}
	for _, h := range asked {
		dk, err := openKey(ctx, v.keys.ring(), h)
		dk.Wipe()
		if err != nil {
			return err
		}
	}
	return nil
}
