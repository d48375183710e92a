package failover

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/kmsfs/kmsfs/keyring"
)

// A flight is an unwrap that several callers wait for. It ends when the last of them leaves, not when the first does.
type flight struct {
	cancel  context.CancelFunc
	waiters int           // guarded by Keyring.mu
	done    chan struct{} // closed when the rest is set
	dk      keyring.DataKey
	err     error
}

// flightID tells unwraps apart: it depends on every byte of the EDKs and of the encryption context.
func flightID(edks []keyring.EncryptedDataKey, ec keyring.EncryptionContext) (string, error) {
	digest, err := ec.Digest()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	h.Write(digest[:])
	for _, e := range edks {
		for _, b := range [][]byte{[]byte(e.CMK), e.Wrapped} {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
			h.Write(b)
		}
	}
	return string(h.Sum(nil)), nil
}

// share runs unwrap, or waits for one of the same ID that is running. Results are not kept, and every caller gets a key of its own.
func (k *Keyring) share(ctx context.Context, id string, unwrap func(context.Context) (keyring.DataKey, error)) (keyring.DataKey, error) {
	k.mu.Lock()
	f := k.flights[id]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		var shared context.Context
		shared, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
		k.flights[id] = f
		go func() {
			defer f.cancel()
			f.dk, f.err = unwrap(shared)
			k.land(id, f)
		}()
	}
	f.waiters++
	k.mu.Unlock()

	select {
	case <-f.done:
	case <-ctx.Done():
	}

	k.mu.Lock()
	defer k.mu.Unlock()
	f.waiters--
	var dk keyring.DataKey
	err := ctx.Err()
	select {
	case <-f.done: // a result counts even for one who was about to leave
		dk, err = slices.Clone(f.dk), f.err
		if f.waiters == 0 {
			f.dk.Wipe()
		}
	default:
		if f.waiters == 0 { // nobody wants it any more; who comes now starts another
			f.cancel()
			if k.flights[id] == f {
				delete(k.flights, id)
			}
		}
	}
	return dk, err
}

// land hands the result of a flight to those who wait.
func (k *Keyring) land(id string, f *flight) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.flights[id] == f {
		delete(k.flights, id)
	}
	if f.waiters == 0 {
		f.dk.Wipe()
	}
	close(f.done)
}
