package failover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/keyringtest"
)

// fake is a CMK whose calls take their time and fail by a script.
type fake struct {
	*keyringtest.Fake

	mu     sync.Mutex
	delay  time.Duration // of every call; negative for ever; guarded by mu
	script []error       // of the next calls; nil entries succeed; guarded by mu
	always error         // of the calls after the script; guarded by mu
	calls  int           // guarded by mu
}

func newFake(name string) *fake { return &fake{Fake: keyringtest.NewFake("fake:" + name)} }

func (f *fake) set(delay time.Duration, always error, script ...error) *fake {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay, f.always, f.script = delay, always, script
	return f
}

// asked returns how many calls there have been since it was last asked.
func (f *fake) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.calls
	f.calls = 0
	return n
}

func (f *fake) call(ctx context.Context) error {
	f.mu.Lock()
	f.calls++
	delay, err := f.delay, f.always
	if len(f.script) > 0 {
		err, f.script = f.script[0], f.script[1:]
	}
	f.mu.Unlock()
	var after <-chan time.Time
	if delay >= 0 {
		after = time.After(delay)
	}
	tries, cancel := context.WithTimeout(ctx, 6*time.Second) // as the callers of the clouds do
	defer cancel()
	select {
	case <-after:
	case <-tries.Done():
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &cloud.Error{CMK: f.CMK(), Call: "Try", Kind: cloud.Unavailable, Err: tries.Err()}
	}
	return err
}

func (f *fake) EncryptDataKey(ctx context.Context, dk keyring.DataKey, ec keyring.EncryptionContext) ([]keyring.EncryptedDataKey, error) {
	if err := f.call(ctx); err != nil {
		return nil, err
	}
	return f.Fake.EncryptDataKey(ctx, dk, ec)
}

func (f *fake) DecryptDataKey(ctx context.Context, edks []keyring.EncryptedDataKey, ec keyring.EncryptionContext) (keyring.DataKey, error) {
	if err := f.call(ctx); err != nil {
		return nil, err
	}
	return f.Fake.DecryptDataKey(ctx, edks, ec)
}

// status returns the error of an answer.
func status(code int) *cloud.Error {
	return &cloud.Error{CMK: "fake:x", Call: "Try", Kind: cloud.KindOf(code), Status: code, Code: "Some.Code"}
}

func wrap(t *testing.T, k *Keyring) (keyring.DataKey, []keyring.EncryptedDataKey) {
	t.Helper()
	dk := keyring.NewDataKey(32)
	edks, err := k.EncryptDataKey(t.Context(), dk, nil)
	if err != nil {
		t.Fatal(err)
	}
	return dk, edks
}

// unwrap unwraps and returns how long it took.
func unwrap(t *testing.T, k *Keyring, edks []keyring.EncryptedDataKey, want keyring.DataKey) time.Duration {
	t.Helper()
	start := time.Now()
	if got, err := k.DecryptDataKey(t.Context(), edks, nil); err != nil || !bytes.Equal(got, want) {
		t.Errorf("same key: %t, error %v", bytes.Equal(got, want), err)
	}
	return time.Since(start)
}

func TestConformance(t *testing.T) {
	keyringtest.Run(t, func(*testing.T) keyring.Keyring {
		return New([]CMK{newFake("a"), newFake("b"), newFake("c")}, Options{})
	})
}

// TestDecrypts asks in the order of the CMKs, whatever that of the EDKs is, and only those that an EDK is from.
func TestDecrypts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			downA = errors.New("a is down")
			downB = errors.New("b is down")
		)
		for name, c := range map[string]struct {
			failA, failB error
			edks         []int // of a (0), b (1) and a stranger (2)
			want         []error
			not          error
			callsA       int
			callsB       int
		}{
			"first":           {edks: []int{0, 1}, callsA: 1},
			"own order":       {edks: []int{1, 0}, callsA: 1},
			"only second":     {edks: []int{1}, callsB: 1},
			"fails over":      {failA: downA, edks: []int{0, 1}, callsA: 1, callsB: 1},
			"past strangers":  {failA: downA, edks: []int{2, 0, 1}, callsA: 1, callsB: 1},
			"all fail":        {failA: downA, failB: downB, edks: []int{0, 1}, want: []error{downA, downB}, not: keyring.ErrNoMatch, callsA: 1, callsB: 1},
			"one fails":       {failA: downA, edks: []int{0, 2}, want: []error{downA}, not: keyring.ErrNoMatch, callsA: 1},
			"second fails":    {failB: downB, edks: []int{1, 2}, want: []error{downB}, not: keyring.ErrNoMatch, callsB: 1},
			"only a stranger": {edks: []int{2}, want: []error{keyring.ErrNoMatch}},
			"nothing":         {want: []error{keyring.ErrNoMatch}},
		} {
			a, b := keyringtest.NewFake("fake:a"), keyringtest.NewFake("fake:b")
			dk := keyring.NewDataKey(16)
			all, err := New([]CMK{a, b, keyringtest.NewFake("fake:stranger")}, Options{}).EncryptDataKey(t.Context(), dk, nil)
			if err != nil {
				t.Fatal(err)
			}
			var edks []keyring.EncryptedDataKey
			for _, i := range c.edks {
				edks = append(edks, all[i])
			}
			a.Fail(c.failA)
			b.Fail(c.failB)
			got, err := New([]CMK{a, b}, Options{}).DecryptDataKey(t.Context(), edks, nil)
			if len(c.want) == 0 && (err != nil || !bytes.Equal(got, dk)) || len(c.want) > 0 && got != nil {
				t.Errorf("%s: same key: %t, error %v", name, bytes.Equal(got, dk), err)
			}
			for _, want := range c.want {
				if !errors.Is(err, want) {
					t.Errorf("%s: error %v does not wrap %v", name, err, want)
				}
			}
			if c.not != nil && errors.Is(err, c.not) {
				t.Errorf("%s: error %v wraps %v", name, err, c.not)
			}
			if a.Decrypts() != c.callsA || b.Decrypts() != c.callsB {
				t.Errorf("%s: %d and %d calls, want %d and %d", name, a.Decrypts(), b.Decrypts(), c.callsA, c.callsB)
			}
		}
	})
}

// A generator is a CMK whose KMS makes data keys.
type generator struct {
	*fake
	made int
}

func (g *generator) GenerateDataKey(ctx context.Context, size int, ec keyring.EncryptionContext) (keyring.DataKey, []keyring.EncryptedDataKey, error) {
	g.made++
	dk := keyring.NewDataKey(size)
	edks, err := g.EncryptDataKey(ctx, dk, ec)
	return dk, edks, err
}

// TestGenerateAsksOnlyTheFirst has the first CMK make a data key, and the others wrap it.
func TestGenerateAsksOnlyTheFirst(t *testing.T) {
	a, b := &generator{fake: newFake("a")}, &generator{fake: newFake("b")}
	k := New([]CMK{a, b}, Options{})
	dk, edks, err := k.GenerateDataKey(t.Context(), 16, nil)
	if err != nil || len(edks) != 2 || len(dk) != 16 {
		t.Fatalf("%d bytes, %d EDKs, error %v", len(dk), len(edks), err)
	}
	if a.made != 1 || b.made != 0 || b.Encrypts() != 1 {
		t.Errorf("a made %d keys, b made %d and wrapped %d, want 1, 0, 1", a.made, b.made, b.Encrypts())
	}
}

// TestSelect wraps under some of the CMKs, in another order; what is learnt of them is known to the whole.
func TestSelect(t *testing.T) {
	a, b, c := newFake("a"), newFake("b"), newFake("c")
	k := New([]CMK{a, b, c}, Options{})
	some, err := k.Select([]string{"fake:c", "fake:a"})
	if err != nil {
		t.Fatal(err)
	}
	dk, edks, err := keyring.GenerateDataKey(t.Context(), some, 32, nil)
	if err != nil || len(edks) != 2 || edks[0].CMK != "fake:c" || edks[1].CMK != "fake:a" || b.asked() != 0 {
		t.Fatalf("%+v, %v", edks, err)
	}
	unwrap(t, k, edks, dk)
	if st := k.Status(); st[2].OK == 0 || st[1].Last != nil {
		t.Errorf("%+v", st)
	}
	if _, err := k.Select([]string{"fake:a", "fake:x", "fake:y"}); !errors.Is(err, keyring.ErrUntrusted) || !strings.Contains(err.Error(), `"fake:x", "fake:y"`) {
		t.Errorf("%v, want ErrUntrusted", err)
	}
}

func TestHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := newFake("a"), newFake("b"), newFake("c")
		k := New([]CMK{a, b, c}, Options{})
		dk, edks := wrap(t, k)
		a.asked()

		a.set(900*time.Millisecond, nil) // slow, but in time
		if took := unwrap(t, k, edks, dk); took != 900*time.Millisecond || b.asked() != 1 {
			t.Errorf("slow first: %v, and the second was asked", took)
		}
		a.set(-1, nil) // hangs
		b.set(100*time.Millisecond, nil)
		if took := unwrap(t, k, edks, dk); took != 1100*time.Millisecond {
			t.Errorf("first hangs: %v, want 1.1 s", took)
		}
		if took := unwrap(t, k, edks, dk); took != 100*time.Millisecond {
			t.Errorf("again: %v, want 100 ms: the first is skipped", took)
		}
		b.set(-1, nil)
		time.Sleep(10 * time.Second)
		if took := unwrap(t, k, edks, dk); took != 2*time.Second {
			t.Errorf("two hang: %v, want 2 s", took)
		}
	})
}

// TestOnlyTheSlowRest has a CMK that was hardly asked when another answered.
func TestOnlyTheSlowRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := newFake("a"), newFake("b"), newFake("c")
		k := New([]CMK{a, b, c}, Options{})
		dk, edks := wrap(t, k)
		a.set(1100*time.Millisecond, status(403)) // b is asked at 1 s, c when a refuses
		b.set(500*time.Millisecond, nil)
		if took := unwrap(t, k, edks, dk); took != 1100*time.Millisecond || k.Status()[1].Skipped != nil {
			t.Errorf("took %v, status %+v", took, k.Status()[1])
		}
	})
}

func TestRetries(t *testing.T) {
	for _, c := range []struct {
		name   string
		script []error
		calls  int
		fails  error
	}{
		{"at once", nil, 1, nil},
		{"once 503", []error{status(503)}, 2, nil},
		{"three faults", []error{status(500), status(429), status(504)}, 4, nil},
		{"four faults", []error{status(500), status(502), status(503), status(504)}, 4, keyring.ErrUnavailable},
		{"501", []error{status(501)}, 1, keyring.ErrUnavailable},
		{"403", []error{status(403)}, 1, keyring.ErrDenied},
		{"302", []error{status(302)}, 1, keyring.ErrUnavailable},
	} {
		synctest.Test(t, func(t *testing.T) {
			a := newFake("a")
			k := New([]CMK{a}, Options{Hedge: time.Hour})
			_, edks := wrap(t, k)
			a.asked()
			a.set(0, nil, c.script...)
			start := time.Now()
			_, err := k.DecryptDataKey(t.Context(), edks, nil)
			if n := a.asked(); !errors.Is(err, c.fails) || n != c.calls {
				t.Errorf("%s: %d calls, error %v, want %d and %v", c.name, n, err, c.calls, c.fails)
			}
			if took := time.Since(start); took > 1400*time.Millisecond { // 200 + 400 + 800 ms at most
				t.Errorf("%s: %v in pauses", c.name, took)
			}
		})
	}
}

func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newFake("a")
		k := New([]CMK{a}, Options{})
		_, edks := wrap(t, k)
		a.asked()
		a.set(-1, nil)
		start := time.Now()
		_, err := k.DecryptDataKey(t.Context(), edks, nil)
		if n := a.asked(); !errors.Is(err, context.DeadlineExceeded) || n != 3 || time.Since(start) != 15*time.Second {
			t.Errorf("error %v after %d calls and %v, want 3 tries of 6 s in 15 s", err, n, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if _, err := k.DecryptDataKey(ctx, edks, nil); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("error %v after %v, want the caller's deadline of 1 s", err, time.Since(start))
		}
	})
}

func TestDeadRegionIsSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newFake("a"), newFake("b")
		k := New([]CMK{a, b}, Options{})
		dk, edks := wrap(t, k)
		a.asked()
		b.asked()
		a.set(0, status(501))
		unwrap(t, k, edks, dk)
		if a.asked() != 1 || b.asked() != 1 || k.Status()[0].Skipped == nil {
			t.Errorf("status %+v", k.Status()[0])
		}
		for range 10 {
			unwrap(t, k, edks, dk)
		}
		if a.asked() != 0 || b.asked() != 10 {
			t.Error("the dead CMK was asked")
		}

		// It is not given up: when the other fails too, it is asked.
		a.set(0, nil)
		b.set(0, status(501))
		unwrap(t, k, edks, dk)
		if a.asked() != 1 {
			t.Error("the last hope was not asked")
		}

		// After its rest, one caller tries it and the others do not wait for that.
		a.set(0, status(501))
		b.set(0, nil)
		time.Sleep(11 * time.Second)
		unwrap(t, k, edks, dk) // a rests again
		b.asked()
		a.set(500*time.Millisecond, nil)
		a.asked()
		time.Sleep(11 * time.Second)
		var group sync.WaitGroup
		for i := range 10 {
			group.Go(func() {
				own := []keyring.EncryptedDataKey{edks[0], edks[1], {CMK: fmt.Sprint("other:", i)}} // no shared call
				unwrap(t, k, own, dk)
			})
		}
		group.Wait()
		if n := a.asked(); n != 1 || b.asked() != 9 {
			t.Errorf("the CMK that had rested was asked %d times, want 1", n)
		}
		if took := unwrap(t, k, edks, dk); took != 500*time.Millisecond || k.Status()[0].Skipped != nil {
			t.Errorf("back in order: %v, status %+v", took, k.Status()[0])
		}
	})
}

func TestFailuresAreNotCached(t *testing.T) {
	a := newFake("a")
	k := New([]CMK{a}, Options{})
	dk, edks := wrap(t, k)
	for _, err := range []error{status(403), status(501)} {
		a.set(0, nil, err)
		if _, got := k.DecryptDataKey(t.Context(), edks, nil); !errors.Is(got, err) {
			t.Errorf("error %v, want %v", got, err)
		}
		unwrap(t, k, edks, dk)
	}
}

func TestOneCallForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newFake("a")
		k := New([]CMK{a}, Options{})
		dk, edks := wrap(t, k)
		a.asked()
		a.set(time.Second, nil)
		impatient, leave := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() {
			if _, err := k.DecryptDataKey(impatient, edks, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("who left: %v, want context.Canceled", err)
			}
		})
		synctest.Wait()
		for range 50 {
			group.Go(func() {
				got, err := k.DecryptDataKey(t.Context(), edks, nil)
				if err != nil || !bytes.Equal(got, dk) {
					t.Errorf("same key: %t, error %v", bytes.Equal(got, dk), err)
				}
				got.Wipe() // is each caller's own
			})
		}
		synctest.Wait()
		leave()
		group.Wait()
		if n := a.asked(); n != 1 {
			t.Errorf("%d calls, want 1", n)
		}

		// When all leave, the call ends, and who comes then makes a new one.
		a.set(-1, nil)
		alone, leave := context.WithCancel(t.Context())
		group.Go(func() { k.DecryptDataKey(alone, edks, nil) })
		synctest.Wait()
		leave()
		group.Wait()
		a.set(0, nil)
		if took := unwrap(t, k, edks, dk); took != 0 || a.asked() != 2 {
			t.Errorf("a new call took %v", took)
		}
	})
}

func TestOtherContextIsAnotherCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newFake("a")
		k := New([]CMK{a}, Options{})
		dk, edks := wrap(t, k)
		a.set(time.Second, nil)
		var group sync.WaitGroup
		group.Go(func() { unwrap(t, k, edks, dk) })
		synctest.Wait()
		if _, err := k.DecryptDataKey(t.Context(), edks, keyring.EncryptionContext{"a": "b"}); !errors.Is(err, keyring.ErrDenied) {
			t.Errorf("another context: %v, want ErrDenied", err)
		}
		group.Wait()
	})
}

func TestWrapsUnderAllOrNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := newFake("a"), newFake("b"), newFake("c")
		k := New([]CMK{a, b, c}, Options{})
		for i, f := range []*fake{a, b, c} {
			f.set(0, status(403))
			if edks, err := k.EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil); !errors.Is(err, keyring.ErrDenied) || edks != nil {
				t.Errorf("%d refuses: %d EDKs, error %v", i, len(edks), err)
			}
			if dk, edks, err := k.GenerateDataKey(t.Context(), 32, nil); !errors.Is(err, keyring.ErrDenied) || dk != nil || edks != nil {
				t.Errorf("%d refuses: a key: %t, %d EDKs, error %v", i, dk != nil, len(edks), err)
			}
			f.set(0, nil)
		}
		for _, f := range []*fake{a, b, c} {
			f.set(time.Second, nil)
		}
		start := time.Now()
		_, edks := wrap(t, k)
		if time.Since(start) != time.Second || len(edks) != 3 || edks[0].CMK != a.CMK() || edks[2].CMK != c.CMK() {
			t.Errorf("%d EDKs after %v, want 3 in order after 1 s", len(edks), time.Since(start))
		}
	})
}

func TestRefusalStopsTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := newFake("a").set(-1, nil), newFake("b").set(0, status(403)), newFake("c").set(-1, nil)
		k := New([]CMK{a, b, c}, Options{})
		start := time.Now()
		if _, err := k.EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil); !errors.Is(err, keyring.ErrDenied) || time.Since(start) != 0 {
			t.Errorf("error %v after %v, want the refusal at once", err, time.Since(start))
		}
	})
}
