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
	names   *names.Keys
	current header.ID // data key ID of new files

	flight singleflight.Group // one unwrap for each data key at a time

	mu      sync.RWMutex
	keyring keyring.Keyring      // guarded by mu
	known   map[header.ID]hidden // by data key ID; guarded by mu
}

// ring is the keyring that unwraps.
func (k *keys) ring() keyring.Keyring {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.keyring
}

// A hidden is a data key inside other values: no verb of fmt looks into a function.
type hidden func() keyring.DataKey

func hide(dk keyring.DataKey) hidden { return func() keyring.DataKey { return dk } }

func (k *keys) wipe() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, dk := range k.known {
		dk().Wipe()
	}
	clear(k.known)
}

// Unlock unwraps the volume's data key through k and authenticates the volume header.
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
		v.candidates = []candidate{c}
		v.keys = &keys{
			keyring: k,
			names:   nk,
			current: c.header.KeyID,
			known:   map[header.ID]hidden{c.header.KeyID: hide(dk)},
		}
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

// CurrentKey returns the data key ID of new files of an unlocked volume.
func (v *Volume) CurrentKey() header.ID { return v.keys.current }

// NewFile returns the header bytes and the cipher of a new file: a fresh file ID under the volume's data key.
func (v *Volume) NewFile() ([]byte, *blockcrypt.Cipher, error) { return v.SealFile(header.NewID()) }

// SealFile returns the header bytes and the cipher of the file with the given ID under the volume's data key. It is for files whose header is damaged
// but for the ID: a cipher that opens their segments shows that the ID and the key are theirs.
func (v *Volume) SealFile(id header.ID) ([]byte, *blockcrypt.Cipher, error) {
	vh := v.Header()
	h := &header.Header{
		Kind: header.File, Algorithm: vh.Algorithm, SegmentSize: vh.SegmentSize, Size: vh.Size,
		FileID: id, Context: vh.Context, EDKs: vh.EDKs,
	}
	dk := v.dataKey(v.keys.current)
	raw, err := h.Seal(dk)
	if err != nil {
		return nil, nil, err
	}
	c, err := blockcrypt.NewCipher(blockcrypt.Algorithm(h.Algorithm), dk, h.FileID)
	return raw, c, err
}

// OpenFile authenticates the header of a file of the volume, given at least its first [header.Header.Size] bytes, and
// returns the file's cipher. No CMK is asked if the header's data key is known.
func (v *Volume) OpenFile(ctx context.Context, raw []byte) (*blockcrypt.Cipher, error) {
	h, err := v.FileHeader(ctx, raw)
	if err != nil {
		return nil, err
	}
	return blockcrypt.NewCipher(blockcrypt.Algorithm(h.Algorithm), v.dataKey(h.KeyID), h.FileID)
}

// FileHeader is OpenFile for those who want the header itself. Its data key is known from then on.
func (v *Volume) FileHeader(ctx context.Context, raw []byte) (*header.Header, error) {
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
	dk := v.dataKey(h.KeyID)
	if dk == nil {
		if dk, err = v.unwrap(ctx, h); err != nil {
			return nil, err
		}
	}
	if err := h.Verify(dk); err != nil {
		return nil, err
	}
	return h, nil
}

func (v *Volume) dataKey(id header.ID) keyring.DataKey {
	v.keys.mu.RLock()
	defer v.keys.mu.RUnlock()
	if dk := v.keys.known[id]; dk != nil {
		return dk()
	}
	return nil
}

// openKey unwraps the data key of a header, and authenticates the header with it. A CMK may give back another key than it wrapped: then each of the
// EDKs is asked for alone, since one of the others may be right.
func openKey(ctx context.Context, k keyring.Keyring, h *header.Header) (keyring.DataKey, error) {
	dk, err := k.DecryptDataKey(ctx, h.EDKs, h.Context)
	if err != nil {
		return nil, err
	}
	wrong := h.Verify(dk)
	if wrong == nil {
		return dk, nil
	}
	dk.Wipe()
	if len(h.EDKs) == 1 {
		return nil, wrong
	}
	for i := range h.EDKs {
		dk, err := k.DecryptDataKey(ctx, h.EDKs[i:i+1], h.Context)
		if err != nil {
			continue
		}
		if h.Verify(dk) == nil {
			return dk, nil
		}
		dk.Wipe()
	}
	return nil, wrong
}

// unwrap asks the keyring for a data key that is not the volume's own. Only a key that the header
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
		if dk := v.dataKey(h.KeyID); dk != nil {
			return dk, nil // another flight has landed meanwhile
		}
		dk, err := openKey(context.WithoutCancel(ctx), k.ring(), h)
		if err != nil {
			return nil, err
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		k.known[h.KeyID] = hide(dk)
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
