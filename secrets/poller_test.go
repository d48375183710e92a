package secrets

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var errFetch = errors.New("no answer")

// source is what a poller fetches from.
type source struct {
	mu      sync.Mutex
	value   int           // guarded by mu
	err     error         // guarded by mu
	fetched int           // guarded by mu
	delay   time.Duration // constant
}

func (s *source) set(value int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.value, s.err = value, err
}

func (s *source) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetched
}

func (s *source) fetch(ctx context.Context) (int, error) {
	select {
	case <-time.After(s.delay):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetched++
	return s.value, s.err
}

func TestPoller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		s := &source{err: errFetch}
		var failures atomic.Int64
		p := NewPoller(ctx, s.fetch, time.Minute, func(err error) {
			if !errors.Is(err, errFetch) {
				t.Error(err)
			}
			failures.Add(1)
		})
		want := func(value, fetched int, failed int64) {
			t.Helper()
			synctest.Wait()
			if got, err := p.Get(ctx); err != nil || got != value || s.count() != fetched || failures.Load() != failed {
				t.Errorf("%d, %v after %d fetches and %d failures, want %d, %d, %d", got, err, s.count(), failures.Load(), value, fetched, failed)
			}
		}
		if _, err := p.Get(ctx); !errors.Is(err, errFetch) {
			t.Errorf("%v, want what fetch says", err)
		}
		time.Sleep(time.Hour) // a value that was never had is not polled for
		s.set(1, nil)
		want(1, 2, 0)
		s.set(2, nil)
		want(1, 2, 0)
		time.Sleep(time.Minute)
		want(2, 3, 0)
		s.set(0, errFetch)
		time.Sleep(2 * time.Minute)
		want(2, 5, 2)
		s.set(3, nil)
		time.Sleep(time.Minute)
		want(3, 6, 2)
		s.set(4, nil)
		if got, err := p.Renew(ctx, func(have int) bool { return have == 3 }); err != nil || got != 4 {
			t.Errorf("renewed: %d, %v", got, err)
		}
		if got, err := p.Renew(ctx, func(have int) bool { return have == 3 }); err != nil || got != 4 || s.count() != 7 {
			t.Errorf("renewed by somebody else: %d, %v, %d fetches", got, err, s.count())
		}
		stop()
		time.Sleep(time.Hour)
		if s.count() != 7 {
			t.Errorf("%d fetches after the end", s.count())
		}
	})
}

// TestPollerShares lets many ask at once: one fetches, and one who gives up does not wait.
func TestPollerShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		s := &source{value: 1, delay: time.Second}
		p := NewPoller(ctx, s.fetch, time.Hour, func(error) {})
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() {
				if got, err := p.Get(ctx); got != 1 || err != nil {
					t.Errorf("%d, %v", got, err)
				}
			})
		}
		synctest.Wait()
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		if _, err := p.Get(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want that it gave up", err)
		}
		group.Wait()
		if s.count() != 1 {
			t.Errorf("%d fetches", s.count())
		}
	})
}
