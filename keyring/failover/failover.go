// Package failover is a keyring of several CMKs that works as long as one of them answers.
//
// CMKs are tried in order. When one has not answered within [Options.Hedge], the next is asked as well, and the first answer counts. A call is
// repeated on faults that pass; a CMK that gave no answer then is left for last for a while. Wrapping needs every CMK.
package failover

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kmsfs/kmsfs/keyring"
)

// A CMK is a keyring on one CMK.
type CMK interface {
	keyring.Keyring
	CMK() string // the URI, as EDKs name it
}

// Options tune a [Keyring]. The zero value has the documented defaults.
type Options struct {
	Hedge    time.Duration // until the next CMK is asked as well; default 1 s
	Tries    int           // of a call at one CMK; default 4
	Backoff  time.Duration // the longest pause before the second try, doubled for each further one; default 200 ms
	Deadline time.Duration // for all tries of a call at one CMK; default 15 s
	Rest     time.Duration // for which a CMK that gave no answer is left for last; default 10 s
	OnEvent  func(Event)   // is told of everything that goes wrong; must not block; may be nil
}

// longestBackoff bounds the pause between two tries.
const longestBackoff = 3 * time.Second

// A Keyring is several CMKs. Its methods may be called by several goroutines at once.
type Keyring struct {
	options Options
	members []*member

	mu      sync.Mutex
	flights map[string]*flight // unwraps that go on, by what they unwrap; guarded by mu
}

var (
	_ keyring.Generator = (*Keyring)(nil)
	_ keyring.Selector  = (*Keyring)(nil)
)

// New returns a keyring of CMKs, in the order in which they are to be tried.
func New(cmks []CMK, o Options) *Keyring {
	if o.Hedge <= 0 {
		o.Hedge = time.Second
	}
	if o.Tries <= 0 {
		o.Tries = 4
	}
	if o.Backoff <= 0 {
		o.Backoff = 200 * time.Millisecond
	}
	if o.Deadline <= 0 {
		o.Deadline = 15 * time.Second
	}
	if o.Rest <= 0 {
		o.Rest = 10 * time.Second
	}
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	k := &Keyring{options: o, flights: make(map[string]*flight)}
	for _, c := range cmks {
		k.members = append(k.members, &member{CMK: c})
	}
	return k
}

// Select implements [keyring.Selector]. What is known of the CMKs stays known in both.
func (k *Keyring) Select(cmks []string) (keyring.Keyring, error) {
	some := &Keyring{options: k.options, flights: make(map[string]*flight)}
	var missing []string
	for _, cmk := range cmks {
		i := slices.IndexFunc(k.members, func(m *member) bool { return m.URI() == cmk })
		if i < 0 {
			missing = append(missing, strconv.Quote(cmk))
			continue
		}
		some.members = append(some.members, k.members[i])
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%w: %s", keyring.ErrUntrusted, strings.Join(missing, ", "))
	}
	return some, nil
}

// EncryptDataKey implements [keyring.Keyring]. The CMKs are asked all at once.
func (k *Keyring) EncryptDataKey(ctx context.Context, dk keyring.DataKey, ec keyring.EncryptionContext) ([]keyring.EncryptedDataKey, error) {
	if err := check(ctx, ec); err != nil {
		return nil, err
	}
	return k.encrypt(ctx, k.members, dk, ec)
}

// GenerateDataKey implements [keyring.Generator]: the first CMK makes the key, and every further one wraps it.
func (k *Keyring) GenerateDataKey(ctx context.Context, size int, ec keyring.EncryptionContext) (keyring.DataKey, []keyring.EncryptedDataKey, error) {
	if err := check(ctx, ec); err != nil {
		return nil, nil, err
	}
	if len(k.members) == 0 {
		return keyring.NewDataKey(size), nil, nil
	}
	var dk keyring.DataKey
	var edks []keyring.EncryptedDataKey
	err := k.call(ctx, k.members[0], "generate", func(ctx context.Context) (err error) {
		dk, edks, err = keyring.GenerateDataKey(ctx, k.members[0].CMK, size, ec)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	rest, err := k.encrypt(ctx, k.members[1:], dk, ec)
	if err != nil {
		dk.Wipe()
		return nil, nil, err
	}
	return dk, append(edks, rest...), nil
}

func (k *Keyring) encrypt(ctx context.Context, members []*member, dk keyring.DataKey, ec keyring.EncryptionContext) ([]keyring.EncryptedDataKey, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	edks := make([][]keyring.EncryptedDataKey, len(members))
	failures := make([]error, len(members))
	var group sync.WaitGroup
	for i, m := range members {
		group.Go(func() {
			failures[i] = k.call(ctx, m, "encrypt", func(ctx context.Context) (err error) {
				edks[i], err = m.EncryptDataKey(ctx, dk, ec)
				return err
			})
			if failures[i] != nil {
				cancel() // the others are of no use any more
			}
		})
	}
	group.Wait()
	var all []keyring.EncryptedDataKey
	var first error
	for i := range members {
		// One that was stopped because of another says nothing.
		if err := failures[i]; err != nil && (first == nil || errors.Is(first, context.Canceled)) {
			first = err
		}
		all = append(all, edks[i]...)
	}
	if first != nil {
		return nil, first
	}
	return all, nil
}

// DecryptDataKey implements [keyring.Keyring]. Callers that unwrap the same EDKs at the same time share one call. If no CMK can, the
// error joins what each one with an EDK among edks said.
func (k *Keyring) DecryptDataKey(ctx context.Context, edks []keyring.EncryptedDataKey, ec keyring.EncryptionContext) (keyring.DataKey, error) {
	if err := check(ctx, ec); err != nil {
		return nil, err
	}
	id, err := flightID(edks, ec)
	if err != nil {
		return nil, err
	}
	return k.share(ctx, id, func(ctx context.Context) (keyring.DataKey, error) { return k.race(ctx, edks, ec) })
}

// race asks the CMKs one after the other, without waiting for one that is slow.
func (k *Keyring) race(ctx context.Context, edks []keyring.EncryptedDataKey, ec keyring.EncryptionContext) (keyring.DataKey, error) {
	order := k.order(edks)
	if len(order) == 0 {
		return nil, fmt.Errorf("%w: they are from %s", keyring.ErrNoMatch, names(edks))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		index int
		dk    keyring.DataKey
		err   error
	}
	results := make(chan result, len(order))
	started, running := 0, make(map[int]time.Time)
	start := func() {
		i := started
		m := order[i]
		started++
		running[i] = time.Now()
		go func() {
			r := result{index: i}
			r.err = k.call(ctx, m, "decrypt", func(ctx context.Context) (err error) {
				r.dk, err = m.DecryptDataKey(ctx, edks, ec)
				return err
			})
			results <- r
		}()
	}
	start()
	timer := time.NewTimer(k.options.Hedge)
	defer timer.Stop()
	failures := make([]error, len(order))
	for len(running) > 0 {
		select {
		case r := <-results:
			delete(running, r.index)
			if r.err == nil {
				cancel()
				for i, since := range running {
					if time.Since(since) >= k.options.Hedge {
						k.rest(order[i], "another CMK was faster")
					}
				}
				go func(n int) {
					for range n {
						late := <-results
						late.dk.Wipe()
					}
				}(len(running))
				return r.dk, nil
			}
			failures[r.index] = r.err
			if started < len(order) && ctx.Err() == nil {
				start()
				timer.Reset(k.options.Hedge)
			}
		case <-timer.C:
			if started < len(order) {
				k.tell(Event{CMK: order[started-1].URI(), What: "slow", Call: "decrypt", Latency: k.options.Hedge})
				start()
				timer.Reset(k.options.Hedge)
			}
		}
	}
	return nil, errors.Join(failures...)
}

// order returns the members that one of edks is from: those that rest come last.
func (k *Keyring) order(edks []keyring.EncryptedDataKey) []*member {
	now := time.Now()
	var first, last []*member
	for _, m := range k.members {
		for _, e := range edks {
			if e.CMK != m.URI() {
				continue
			}
			if m.resting(now, k.options.Rest) {
				last = append(last, m)
			} else {
				first = append(first, m)
			}
			break
		}
	}
	return append(first, last...)
}

// Call makes a call of another kind at the first CMK, by the rules for its own: f is called again on faults that pass.
func (k *Keyring) Call(ctx context.Context, what string, f func(context.Context) error) error {
	return k.call(ctx, k.members[0], what, f)
}

// call makes a call at one CMK, several times if it must. A call that the caller gives up says nothing about the CMK.
func (k *Keyring) call(ctx context.Context, m *member, what string, f func(context.Context) error) error {
	all, cancel := context.WithTimeout(ctx, k.options.Deadline)
	defer cancel()
	for try := 1; ; try++ {
		start := time.Now()
		err := f(all)
		if err == nil {
			if m.succeeded(what, start) {
				k.tell(Event{CMK: m.URI(), What: "answers again", Call: what, Latency: time.Since(start)})
			}
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		m.failed(what, start, err)
		k.tell(failure(m.URI(), what, try, start, err))
		if try < k.options.Tries && temporary(err) && k.pause(all, try) {
			continue
		}
		if errors.Is(err, keyring.ErrUnavailable) {
			k.rest(m, "no answer")
		}
		return err
	}
}

// pause waits before another try, for a time that is anything up to its limit so that many callers do not come back together.
func (k *Keyring) pause(ctx context.Context, try int) bool {
	longest := min(k.options.Backoff, longestBackoff)
	for range try - 1 {
		longest = min(2*longest, longestBackoff)
	}
	timer := time.NewTimer(rand.N(longest))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// rest leaves a member for last for a while.
func (k *Keyring) rest(m *member, why string) {
	m.rest(time.Now().Add(k.options.Rest))
	k.tell(Event{CMK: m.URI(), What: "skipped for " + k.options.Rest.String(), Call: why})
}

// temporary reports whether an error, or one of several that were joined, says of itself that another try may help.
func temporary(err error) bool {
	switch err := err.(type) {
	case interface{ Temporary() bool }:
		return err.Temporary()
	case interface{ Unwrap() error }:
		return temporary(err.Unwrap())
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(err.Unwrap(), temporary)
	}
	return false
}

// check refuses what no CMK needs to be asked for.
func check(ctx context.Context, ec keyring.EncryptionContext) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := ec.Digest()
	return err
}

// names lists the CMKs of EDKs that nobody has authenticated.
func names(edks []keyring.EncryptedDataKey) string {
	if len(edks) == 0 {
		return "nobody"
	}
	var list []string
	for _, e := range edks {
		list = append(list, strconv.Quote(e.CMK))
	}
	return strings.Join(list, ", ")
}
