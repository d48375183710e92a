package creds

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	fetchTimeout = 15 * time.Second // of a fetch with its repetitions
	fetchTries   = 3
	fetchPause   = 200 * time.Millisecond // before the first repetition; it doubles

	renewEarly   = 10 * time.Minute // before the expiry, if more than half of the life has passed by then
	retryPause   = 10 * time.Second // after a failed renewal; it doubles
	retryLongest = 2 * time.Minute
)

// A Keeper hands out valid credentials. Local sources are asked each time, which notices changes; a remote one is asked in the
// background, ahead of the expiry. Its methods may be called by several goroutines at once.
type Keeper struct {
	local  []Source
	remote Source
	failed func(error)

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu         sync.Mutex
	lastLocal  Credential    // guarded by mu
	lastRemote Credential    // guarded by mu
	flight     *flight       // the fetch that is going on; nil if there is none; guarded by mu
	timer      *time.Timer   // of the next renewal; guarded by mu
	pause      time.Duration // before the next one after a failure; guarded by mu
}

// A flight is a fetch that several callers may wait for.
type flight struct {
	done chan struct{} // closed when the rest is set
	cred Credential
	err  error
}

// NewKeeper returns a keeper that asks local sources in order and then a remote one, which may be nil. failed is called when a renewal in
// the background fails, and may be nil. Close the keeper after use.
func NewKeeper(local []Source, remote Source, failed func(error)) *Keeper {
	if failed == nil {
		failed = func(error) {}
	}
	k := &Keeper{local: local, remote: remote, failed: failed}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	return k
}

// Format hides the credentials from every verb.
func (k *Keeper) Format(f fmt.State, _ rune) { fmt.Fprint(f, "credentials (hidden)") }

// Close ends the renewal. Fetches that go on are cancelled.
func (k *Keeper) Close() error {
	k.cancel()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.timer != nil {
		k.timer.Stop()
	}
	return nil
}

// Get returns a valid credential. The error wraps [ErrNone] if no source has one.
func (k *Keeper) Get(ctx context.Context) (Credential, error) {
	c, err := k.fromLocal(ctx)
	if err == nil || k.remote == nil || !errors.Is(err, ErrNone) {
		return c, err
	}
	k.mu.Lock()
	if k.lastRemote.Valid(time.Now()) {
		defer k.mu.Unlock()
		return k.lastRemote, nil
	}
	f := k.fetch()
	k.mu.Unlock()
	return f.wait(ctx)
}

// Renew returns another credential than bad, which a KMS has refused, or an error if there is none.
func (k *Keeper) Renew(ctx context.Context, bad Credential) (Credential, error) {
	c, err := k.Get(ctx)
	if err != nil || !c.same(bad) {
		return c, err
	}
	k.mu.Lock()
	if !c.same(k.lastRemote) {
		k.mu.Unlock()
		return Credential{}, fmt.Errorf("%w: only the one that was refused", ErrNone)
	}
	f := k.fetch()
	k.mu.Unlock()
	if c, err = f.wait(ctx); err == nil && c.same(bad) {
		return Credential{}, fmt.Errorf("%w: only the one that was refused", ErrNone)
	}
	return c, err
}

// fromLocal asks the local sources. While the last credential is valid, a source that fails, such as a file that is just being written, is
// passed over for it.
func (k *Keeper) fromLocal(ctx context.Context) (Credential, error) {
	var none []error
	for _, s := range k.local {
		c, err := s.Fetch(ctx)
		if err == nil && !c.Valid(time.Now()) {
			err = fmt.Errorf("%w: it has expired", ErrFormat)
		}
		k.mu.Lock()
		if err == nil {
			k.lastLocal = c
		}
		last := k.lastLocal
		k.mu.Unlock()
		switch {
		case err == nil:
			return c, nil
		case errors.Is(err, ErrNone):
			none = append(none, err)
		case last.Valid(time.Now()):
			return last, nil
		default:
			return Credential{}, err
		}
	}
	if len(none) == 0 {
		return Credential{}, ErrNone
	}
	return Credential{}, errors.Join(none...)
}

// fetch starts to ask the remote source, unless that is going on. The caller holds mu.
func (k *Keeper) fetch() *flight {
	if k.flight != nil {
		return k.flight
	}
	f := &flight{done: make(chan struct{})}
	k.flight = f
	go func() {
		f.cred, f.err = k.tryRemote()
		k.mu.Lock()
		k.flight = nil
		renewal := k.plan(f.cred, f.err)
		k.mu.Unlock()
		close(f.done)
		if renewal && f.err != nil {
			k.failed(f.err)
		}
	}()
	return f
}

// tryRemote asks the remote source, several times if it must.
func (k *Keeper) tryRemote() (c Credential, err error) {
	ctx, cancel := context.WithTimeout(k.ctx, fetchTimeout)
	defer cancel()
	for i := range fetchTries {
		if i > 0 {
			select {
			case <-ctx.Done():
				return Credential{}, err
			case <-time.After(fetchPause << (i - 1)):
			}
		}
		c, err = k.remote.Fetch(ctx)
		if err == nil && !c.Valid(time.Now()) {
			err = fmt.Errorf("%w: it has expired; look at this machine's clock", ErrFormat)
		}
		if err == nil || errors.Is(err, ErrNone) {
			return c, err
		}
	}
	return Credential{}, err
}

// plan keeps the result of a fetch and sets the time of the next. It reports whether there is a valid credential; if not, the next
// call fetches. The caller holds mu.
func (k *Keeper) plan(c Credential, err error) bool {
	if k.ctx.Err() != nil {
		return false
	}
	now := time.Now()
	var next time.Duration
	switch {
	case err == nil:
		k.lastRemote, k.pause = c, 0
		if c.Expiry.IsZero() {
			return true
		}
		life := c.Expiry.Sub(now)
		next = max(life/2, life-renewEarly)
	case k.lastRemote.Valid(now):
		k.pause = min(max(2*k.pause, retryPause), retryLongest)
		next = k.pause
	default:
		return false
	}
	if k.timer != nil {
		k.timer.Stop()
	}
	k.timer = time.AfterFunc(next, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.ctx.Err() == nil {
			k.fetch()
		}
	})
	return true
}

func (f *flight) wait(ctx context.Context) (Credential, error) {
	select {
	case <-f.done:
		return f.cred, f.err
	case <-ctx.Done():
		return Credential{}, ctx.Err()
	}
}
