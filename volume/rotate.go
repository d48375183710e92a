package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
)

// ErrPerFile says that a volume has no data key of new files: each gets one of its own.
var ErrPerFile = errors.New("volume: every file has a data key of its own")

// A NextKey is a data key that is ready to become that of new files.
type NextKey struct {
	header *header.Header
	dk     hidden
	raw    []byte
}

// CMKs returns the URIs of the CMKs that have wrapped the data key. The first has made it.
func (n *NextKey) CMKs() []string { return keyring.CMKs(n.header.EDKs) }

// KeyID returns the ID of the data key.
func (n *NextKey) KeyID() header.ID { return n.header.KeyID }

// Generation returns the generation that the volume will be of.
func (n *NextKey) Generation() uint64 { return n.header.Generation }

// NextKey has a data key made and wrapped by all CMKs that the volume header lists, of which k must have each. Nothing is changed.
func (v *Volume) NextKey(ctx context.Context, k keyring.Keyring) (*NextKey, error) {
	vh := v.Header()
	if vh.PerFile {
		return nil, ErrPerFile
	}
	dk, edks, err := v.newDataKey(ctx, k)
	if err != nil {
		return nil, err
	}
	h := &header.Header{
		Kind: header.Current, Algorithm: vh.Algorithm, SegmentSize: vh.SegmentSize, Size: vh.Size, FileID: vh.FileID, Context: vh.Context, EDKs: edks,
		Generation: max(v.Generation(), vh.Generation, v.expected) + 1,
	}
	if found, _ := v.endorsed(v.keys.known.get(v.keys.volume)); len(found) > 0 {
		h.Generation = max(h.Generation, found[0].header.Generation+1) // one that a rotation has left behind that was cut off
	}
	h.Endorse(v.keys.known.get(v.keys.volume), dk)
	raw, err := h.Seal(dk)
	if err == nil {
		probe := *vh
		probe.Generation = h.Generation
		_, err = probe.Seal(v.keys.known.get(v.keys.volume))
	}
	if err != nil {
		dk.Wipe()
		return nil, err
	}
	return &NextKey{h, hide(dk), raw}, nil
}

// Rotate makes n the data key of new files. The copy is durable before the file is touched, and both before the volume header says that they must be there: cut off anywhere, the volume has the one
// key or the other, and another Rotate starts from there.
func (v *Volume) Rotate(n *NextKey) error {
	if err := v.writeBoth(currentCopy, currentFile, n.raw); err != nil {
		return err
	}
	v.keys.known.keep(n.header.KeyID, n.dk())
	v.current.Store(&current{header: n.header})
	return v.notice(n.header.Generation)
}

// newDataKey makes a data key and has it wrapped by all CMKs that the volume header lists: the first makes it.
func (v *Volume) newDataKey(ctx context.Context, k keyring.Keyring) (keyring.DataKey, []keyring.EncryptedDataKey, error) {
	vh := v.Header()
	cmks := keyring.CMKs(vh.EDKs)
	k, err := keyring.Select(k, cmks)
	if err != nil {
		return nil, nil, fmt.Errorf("make a data key: %w; every CMK that the volume header lists has to wrap it", err)
	}
	dk, edks, err := keyring.GenerateDataKey(ctx, k, vh.Algorithm.KeySize(), vh.Context)
	if err != nil {
		return nil, nil, fmt.Errorf("make a data key: %w", err)
	}
	if got := keyring.CMKs(edks); !slices.Equal(got, cmks) {
		dk.Wipe()
		return nil, nil, fmt.Errorf("make a data key: %w: wrapped by %q, not by %q", keyring.ErrUntrusted, got, cmks)
	}
	return dk, edks, nil
}
