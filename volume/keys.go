package volume

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"golang.org/x/sync/singleflight"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/names"
)

// ErrForeign says that a file's header is sound but not one of this volume: another encryption context,
// algorithm, segment size or header length.
var ErrForeign = errors.New("volume: file is not from a volume like this one")

// keys is what an unlocked volume knows.
type keys struct {
	names  *names.Keys
	volume header.ID // data key ID of the volume header
	known  *known    // by data key ID

	flight singleflight.Group // one unwrap for each data key at a time

	mu      sync.RWMutex
	keyring keyring.Keyring // guarded by mu
}

// ring is the keyring that unwraps, and that wraps data keys that are new.
func (k *keys) ring() keyring.Keyring {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.keyring
}

// Unlock unwraps the volume's data key through k and authenticates the volume header, and does likewise with the data key of new files if that is another one: what is wrong with that, [Volume.Current] tells.
// Errors of k are wrapped; a header that does not authenticate gives [ErrDamaged].
func (v *Volume) Unlock(ctx context.Context, k keyring.Keyring) error {
	var failures []error
	for i, c := range v.candidates {
		dk, err := openKey(ctx, k, c.header)
		if errors.Is(err, header.ErrAuth) {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", filepath.Join(v.dir, MetaDir, c.name), err))
			continue
		}
		nk, err := names.New(dk, c.header.FileID)
		if err != nil {
			return err
		}
		if i > 0 {
			v.warning = fmt.Sprintf("using %s: %v", c.name, failures[0])
		}
		for _, other := range v.candidates {
			if other.header.KeyID == c.header.KeyID && other.header.Verify(dk) == nil {
				v.expected = max(v.expected, other.header.Generation)
			}
		}
		v.candidates = []candidate{c}
		v.keys = &keys{keyring: k, names: nk, volume: c.header.KeyID, known: newKnown()}
		v.keys.known.keep(c.header.KeyID, dk)
		v.current.Store(v.unlockCurrent(ctx, k, dk))
		v.Expect(v.expected)
		return nil
	}
	if len(failures) == 2 && failures[0].Error() == failures[1].Error() {
		failures = failures[:1]
	}
	return failures[0]
}

// Names returns the keys for names, symbolic links and extended attributes of an unlocked volume.
func (v *Volume) Names() *names.Keys { return v.keys.names }

// Layout returns the geometry of the volume's files.
func (v *Volume) Layout() (blockcrypt.Layout, error) {
	h := v.Header()
	return blockcrypt.NewLayout(h.SegmentSize, h.Size)
}

// NewFile returns the header bytes and the cipher of a new file: a fresh file ID under the data key of new files or, where each has its own, one that CMKs make and wrap; see [Volume.Supply] for that.
func (v *Volume) NewFile() ([]byte, *blockcrypt.Cipher, error) { return v.Supply().NewFile() }

// newFile is NewFile where files share a data key.
func (v *Volume) newFile(id header.ID) ([]byte, *blockcrypt.Cipher, error) {
	h, err := v.Current()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	return v.seal(id, h.KeyID, v.keys.known.get(h.KeyID), h.EDKs)
}

// SealFile returns the header bytes and the cipher of the file with the given ID under the data key of that ID, which is one of the volume's own. It is for files whose header is damaged
// but for the ID: a cipher that opens their segments shows that the ID and the key are theirs.
func (v *Volume) SealFile(id, key header.ID) ([]byte, *blockcrypt.Cipher, error) {
	h, err := v.Current()
	if err != nil || h.KeyID != key {
		h = v.Header()
	}
	if h.KeyID != key {
		return nil, nil, fmt.Errorf("%w: %s", ErrForgotten, key)
	}
	return v.seal(id, key, v.keys.known.get(key), h.EDKs)
}

// OwnKeys returns the IDs of the data keys that the volume itself has: that of the volume header and that of new files, if it is another one.
func (v *Volume) OwnKeys() []header.ID {
	own := []header.ID{v.keys.volume}
	if h, err := v.Current(); err == nil && h.KeyID != v.keys.volume {
		own = append(own, h.KeyID)
	}
	return own
}

// seal makes the header and the cipher of the file with the given ID under dk, whose ID is key.
func (v *Volume) seal(id, key header.ID, dk keyring.DataKey, edks []keyring.EncryptedDataKey) ([]byte, *blockcrypt.Cipher, error) {
	vh := v.Header()
	h := &header.Header{
		Kind: header.File, Algorithm: vh.Algorithm, SegmentSize: vh.SegmentSize, Size: vh.Size,
		FileID: id, KeyID: key, Context: vh.Context, EDKs: edks,
	}
	raw, secret, err := h.SealKnown(dk)
	if err != nil {
		return nil, nil, err
	}
	c, err := blockcrypt.NewCipher(blockcrypt.Algorithm(h.Algorithm), secret)
	return raw, c, err
}

// OpenFile authenticates the header of a file of the volume, given at least its first [header.Header.Size] bytes, and
// returns the file's cipher. No CMK is asked if the header's data key is known.
func (v *Volume) OpenFile(ctx context.Context, raw []byte) (*blockcrypt.Cipher, error) {
	h, secret, err := v.openHeader(ctx, raw)
	if err != nil {
		return nil, err
	}
	return blockcrypt.NewCipher(blockcrypt.Algorithm(h.Algorithm), secret)
}

// OpenKnown is OpenFile without asking: the error wraps [ErrForgotten] if the header's data key is not known.
func (v *Volume) OpenKnown(raw []byte) (*blockcrypt.Cipher, error) {
	h, err := v.parseFile(raw)
	if err != nil {
		return nil, err
	}
	dk := v.keys.known.get(h.KeyID)
	if dk == nil {
		return nil, fmt.Errorf("%w: %s", ErrForgotten, h.KeyID)
	}
	secret, err := h.Open(dk)
	if err != nil {
		return nil, err
	}
	return blockcrypt.NewCipher(blockcrypt.Algorithm(h.Algorithm), secret)
}

// Forgets reports whether the volume has more data keys than it keeps: one that is known may then be forgotten, unless it was known before.
func (v *Volume) Forgets() bool { return v.keys.known.forgets.Load() }

// FileHeader is OpenFile for those who want the header itself. Its data key is known from then on, if only for a while where the volume [Volume.Forgets].
func (v *Volume) FileHeader(ctx context.Context, raw []byte) (*header.Header, error) {
	h, _, err := v.openHeader(ctx, raw)
	return h, err
}

// parseFile reads the header of a file, which is not authenticated yet, and refuses one that is not of a volume like this one.
func (v *Volume) parseFile(raw []byte) (*header.Header, error) {
	h, err := header.Parse(raw)
	if err != nil {
		return nil, err
	}
	vh := v.Header()
	switch {
	case h.Kind != header.File:
		return nil, fmt.Errorf("%w: not the header of a file", ErrForeign)
	case h.Algorithm != vh.Algorithm, h.SegmentSize != vh.SegmentSize, h.Size != vh.Size:
		return nil, fmt.Errorf("%w: algorithm, segment size or header length differs", ErrForeign)
	case !h.Context.Equal(vh.Context):
		return nil, fmt.Errorf("%w: encryption context differs", ErrForeign)
	}
	return h, nil
}

// openHeader authenticates the header of a file, and returns it with the secret from which the file's keys are derived.
func (v *Volume) openHeader(ctx context.Context, raw []byte) (h *header.Header, secret []byte, err error) {
	if h, err = v.parseFile(raw); err != nil {
		return nil, nil, err
	}
	dk := v.keys.known.get(h.KeyID)
	if dk == nil {
		if dk, err = v.unwrap(ctx, h); err != nil {
			return nil, nil, err
		}
	}
	if secret, err = h.Open(dk); err != nil {
		return nil, nil, err
	}
	return h, secret, nil
}

// openKey unwraps the data key of a header, and authenticates the header with it.
func openKey(ctx context.Context, k keyring.Keyring, h *header.Header) (keyring.DataKey, error) {
	return keyring.DecryptVerified(ctx, k, h.EDKs, h.Context, h.Verify)
}

// unwrap asks the keyring for a data key that is not known. Only a key that the header
// authenticates under is remembered; failures never are. Callers that want the same key at the same time share one unwrap, which goes on
// when one of them leaves.
func (v *Volume) unwrap(ctx context.Context, h *header.Header) (keyring.DataKey, error) {
	k := v.keys
	// Headers with one data key ID but other EDKs must not share the answer: the ID is not authenticated yet.
	flight := string(h.KeyID[:])
	for _, e := range h.EDKs {
		flight += e.CMK + "\x00" + string(e.Wrapped)
	}
	result := k.flight.DoChan(flight, func() (any, error) {
		if dk := k.known.get(h.KeyID); dk != nil {
			return dk, nil // another flight has landed meanwhile
		}
		dk, err := openKey(context.WithoutCancel(ctx), k.ring(), h)
		if err != nil {
			return nil, err
		}
		k.known.add(h.KeyID, dk)
		return dk, nil
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return nil, fmt.Errorf("unwrap the data key: %w", r.Err)
		}
		return r.Val.(keyring.DataKey), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("unwrap the data key: %w", ctx.Err())
	}
}
