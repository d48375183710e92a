package creds

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// issuer issues credentials with a life, each with another ID, and fails when told to.
type issuer struct {
	life time.Duration

	mu     sync.Mutex
	issued int   // guarded by mu
	asked  int   // guarded by mu
	fail   error // guarded by mu
}

func (i *issuer) Fetch(ctx context.Context) (Credential, error) {
	select { // a service takes its time
	case <-time.After(50 * time.Millisecond):
	case <-ctx.Done():
		return Credential{}, ctx.Err()
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked++
	if i.fail != nil {
		return Credential{}, i.fail
	}
	i.issued++
	return Credential{ID: fmt.Sprint("id", i.issued), Secret: "s", Token: "t", Expiry: time.Now().Add(i.life)}, nil
}

func (i *issuer) set(fail error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fail = fail
}

func (i *issuer) count() (issued, asked int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.issued, i.asked
}

var errDown = errors.New("down")

func TestRenewsAheadOfExpiry(t *testing.T) {
	for _, c := range []struct{ life, at time.Duration }{
		{6 * time.Hour, 6*time.Hour - 10*time.Minute},
		{15 * time.Minute, 7*time.Minute + 30*time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			source := &issuer{life: c.life}
			k := NewKeeper(nil, source, nil)
			defer k.Close()
			first, err := k.Get(t.Context())
			if err != nil || first.ID != "id1" {
				t.Fatalf("%s, error %v", first.ID, err)
			}
			time.Sleep(c.at - time.Second)
			if again, err := k.Get(t.Context()); err != nil || again.ID != "id1" {
				t.Errorf("life %v: before its time: %s, error %v", c.life, again.ID, err)
			}
			time.Sleep(2 * time.Second) // nobody asks meanwhile
			if issued, _ := source.count(); issued != 2 {
				t.Errorf("life %v: %d issued after %v, want 2", c.life, issued, c.at)
			}
			start := time.Now()
			if next, err := k.Get(t.Context()); err != nil || next.ID != "id2" || time.Since(start) != 0 {
				t.Errorf("life %v: %s after %v, error %v, want id2 at once", c.life, next.ID, time.Since(start), err)
			}
		})
	}
}

func TestFailedRenewalFailsNoCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{life: time.Hour}
		var mu sync.Mutex
		var failures int
		k := NewKeeper(nil, source, func(err error) {
			mu.Lock()
			defer mu.Unlock()
			failures++
			if !errors.Is(err, errDown) {
				t.Errorf("failed with %v", err)
			}
		})
		defer k.Close()
		if _, err := k.Get(t.Context()); err != nil {
			t.Fatal(err)
		}
		source.set(errDown)
		for range 59 {
			time.Sleep(time.Minute)
			if c, err := k.Get(t.Context()); err != nil || c.ID != "id1" {
				t.Fatalf("%s, error %v", c.ID, err)
			}
		}
		mu.Lock()
		if failures < 3 || failures > 12 {
			t.Errorf("%d failed renewals in 9 minutes", failures)
		}
		mu.Unlock()
		time.Sleep(time.Minute) // it has expired
		if _, err := k.Get(t.Context()); !errors.Is(err, errDown) {
			t.Errorf("after the expiry: %v, want %v", err, errDown)
		}
		source.set(nil)
		if c, err := k.Get(t.Context()); err != nil || c.ID != "id2" {
			t.Errorf("after the fault: %s, error %v", c.ID, err)
		}
	})
}

func TestOneFetchForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{life: time.Hour}
		k := NewKeeper(nil, source, nil)
		defer k.Close()
		impatient, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() {
			if _, err := k.Get(impatient); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			}
		})
		synctest.Wait()
		for range 100 {
			group.Go(func() {
				if c, err := k.Get(t.Context()); err != nil || c.ID != "id1" {
					t.Errorf("%s, error %v", c.ID, err)
				}
			})
		}
		synctest.Wait()
		cancel() // the first caller leaves; the others must not notice
		group.Wait()
	})
}

func TestRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{life: time.Hour}
		k := NewKeeper(nil, source, nil)
		defer k.Close()
		bad, err := k.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second is told at once of what the first found
			if c, err := k.Renew(t.Context(), bad); err != nil || c.ID != "id2" {
				t.Errorf("%s, error %v, want id2", c.ID, err)
			}
		}
		static := NewKeeper([]Source{fixed{bad}}, source, nil)
		defer static.Close()
		if _, err := static.Renew(t.Context(), bad); !errors.Is(err, ErrNone) {
			t.Errorf("of a fixed one: %v, want ErrNone", err)
		}
	})
}

type fixed struct{ Credential }

func (f fixed) Fetch(context.Context) (Credential, error) { return f.Credential, nil }

// TestTriesAgain starts before the service answers.
func TestTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{life: time.Hour, fail: errDown}
		k := NewKeeper(nil, source, nil)
		defer k.Close()
		time.AfterFunc(300*time.Millisecond, func() { source.set(nil) })
		if c, err := k.Get(t.Context()); err != nil || c.ID != "id1" {
			t.Errorf("%s, error %v", c.ID, err)
		}
		source.set(fmt.Errorf("%w: no role", ErrNone))
		bare := NewKeeper(nil, source, nil)
		defer bare.Close()
		_, before := source.count()
		if _, err := bare.Get(t.Context()); !errors.Is(err, ErrNone) {
			t.Errorf("error %v, want ErrNone", err)
		}
		if _, after := source.count(); after != before+1 {
			t.Errorf("asked %d times for what is not there", after-before)
		}
	})
}

func TestNothing(t *testing.T) {
	k := NewKeeper(nil, nil, nil)
	defer k.Close()
	if _, err := k.Get(t.Context()); !errors.Is(err, ErrNone) {
		t.Errorf("error %v, want ErrNone", err)
	}
}
