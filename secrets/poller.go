package secrets

import (
	"context"
	"sync"
	"time"
)

// A Poller holds a value and fetches it anew at an interval, in the background; if that fails, it goes on with the one that it has. Its methods may be
// called by several goroutines at once.
type Poller[T any] struct {
	fetch    func(context.Context) (T, error)
	interval time.Duration
	failed   func(error)

	ctx  context.Context // of the polling
	turn chan struct{}   // holds one element while a fetch is under way; taken before mu

	mu    sync.Mutex
	value T           // guarded by mu
	have  bool        // guarded by mu
	timer *time.Timer // of the next fetch; nil before the first; guarded by mu
}

// NewPoller returns a poller that goes on until ctx is done; it can be asked after that. Nothing is fetched before it is asked for the value.
// failed is called when a fetch in the background fails.
func NewPoller[T any](ctx context.Context, fetch func(context.Context) (T, error), interval time.Duration, failed func(error)) *Poller[T] {
	return &Poller[T]{fetch: fetch, interval: interval, failed: failed, ctx: ctx, turn: make(chan struct{}, 1)}
}

// Get returns the value, which is fetched if there is none yet.
func (p *Poller[T]) Get(ctx context.Context) (T, error) {
	return p.Renew(ctx, func(T) bool { return false })
}

// Renew returns the value, which is fetched anew if the one that there is turns out to be stale.
func (p *Poller[T]) Renew(ctx context.Context, stale func(T) bool) (T, error) {
	if value, ok := p.held(stale); ok {
		return value, nil
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
	defer func() { <-p.turn }()
	if value, ok := p.held(stale); ok { // somebody else has fetched it meanwhile
		return value, nil
	}
	value, err := p.fetch(ctx)
	if err != nil {
		return value, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.value, p.have = value, true
	p.plan()
	return value, nil
}

func (p *Poller[T]) held(stale func(T) bool) (T, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.value, p.have && !stale(p.value)
}

// plan sets the time of the next fetch. The caller holds mu.
func (p *Poller[T]) plan() {
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.ctx.Err() == nil {
		p.timer = time.AfterFunc(p.interval, p.poll)
	}
}

func (p *Poller[T]) poll() {
	if p.ctx.Err() != nil {
		return
	}
	_, err := p.Renew(p.ctx, func(T) bool { return true })
	if err == nil || p.ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	p.plan()
	p.mu.Unlock()
	p.failed(err)
}
