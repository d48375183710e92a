package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
)

// ErrNoKey says that a file got no data key, and why.
var ErrNoKey = errors.New("volume: no data key for a new file")

// A Supply makes headers for one file of an unlocked volume, each time that the file gets its first bytes.
type Supply struct {
	v *Volume

	mu    sync.Mutex // held over calls at CMKs
	ready *fileKey   // guarded by mu
}

// A fileKey is a data key of a file's own.
type fileKey struct {
	dk   hidden
	edks []keyring.EncryptedDataKey
}

// Supply returns a source of headers for one file.
func (v *Volume) Supply() *Supply { return &Supply{v: v} }

// Asks reports whether Ready may ask CMKs.
func (s *Supply) Asks() bool { return s.v.Header().PerFile }

// Ready makes sure that NewFile need not ask any CMK. It is for callers that will hold locks over NewFile, and does nothing where files share a data key.
func (s *Supply) Ready(ctx context.Context) error {
	if !s.Asks() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fill(ctx)
}

// fill asks CMKs unless there is a key that those wrap which wrap the volume's by now. s.mu is held.
func (s *Supply) fill(ctx context.Context) error {
	for s.ready == nil || !slices.Equal(keyring.CMKs(s.ready.edks), keyring.CMKs(s.v.Header().EDKs)) {
		dk, edks, err := s.v.newDataKey(ctx, s.v.keys.ring())
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNoKey, err)
		}
		s.ready = &fileKey{hide(dk), edks}
	}
	return nil
}

// NewFile is [Volume.NewFile] for this file.
func (s *Supply) NewFile() ([]byte, *blockcrypt.Cipher, error) {
	id := header.NewID()
	if !s.Asks() {
		return s.v.newFile(id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fill(context.Background()); err != nil {
		return nil, nil, err
	}
	k := s.ready
	s.ready = nil
	key := header.KeyID(k.dk())
	raw, c, err := s.v.seal(id, key, k.dk(), k.edks)
	if err == nil {
		s.v.keys.known.add(key, k.dk())
	}
	return raw, c, err
}
