package failover

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// An Event is something that went wrong at a CMK, or ended. It prints as one line.
type Event struct {
	CMK     string
	What    string        // "failed", "slow", "skipped for 10s" or "answers again"
	Call    string        // the vendor's name of the call, or "encrypt", "decrypt", "generate", or why a CMK is skipped
	Try     int           // which one failed; 0 if none did
	Status  int           // of HTTP; 0 if there is none
	Code    string        // the vendor's; may be empty
	Latency time.Duration // of the try
	Err     error         // may be nil
}

// String describes the event.
func (e Event) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "CMK %s: %s", e.CMK, e.What)
	if e.Call != "" {
		fmt.Fprintf(&b, " (%s)", e.Call)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %s", strings.ReplaceAll(e.Err.Error(), "\n", "; "))
	}
	return b.String()
}

// LogValue groups the fields for structured logs.
func (e Event) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("cmk", e.CMK), slog.String("call", e.Call), slog.Duration("latency", e.Latency)}
	if e.Try > 0 {
		attrs = append(attrs, slog.Int("try", e.Try))
	}
	if e.Status > 0 {
		attrs = append(attrs, slog.Int("status", e.Status), slog.String("code", e.Code))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.String("error", strings.ReplaceAll(e.Err.Error(), "\n", "; ")))
	}
	return slog.GroupValue(attrs...)
}

func failure(cmk, call string, try int, start time.Time, err error) Event {
	e := Event{CMK: cmk, What: "failed", Call: call, Try: try, Latency: time.Since(start), Err: err}
	var c *cloud.Error
	if errors.As(err, &c) {
		e.Call, e.Status, e.Code = c.Call, c.Status, c.Code
	}
	return e
}

func (k *Keyring) tell(e Event) { k.options.OnEvent(e) }

// A Status is what is known of a CMK.
type Status struct {
	CMK     string         `json:"cmk"`
	Last    *Result        `json:"last,omitempty"`    // nil if it has not been asked
	Skipped *time.Time     `json:"skipped,omitempty"` // until when it is left for last; nil if it is not
	Calls   map[string]int `json:"calls,omitempty"`   // sent so far, by the vendor's names; nil for a CMK that is not at a KMS
	OK      int            `json:"ok"`                // tries that succeeded
	Failed  int            `json:"failed"`            // tries that failed
}

// A Result is how the last try at a CMK ended.
type Result struct {
	Time    time.Time     `json:"time"`            // of the end
	Call    string        `json:"call"`            // "encrypt", "decrypt" or "generate"
	Latency time.Duration `json:"latency"`         // nanoseconds in JSON
	Error   string        `json:"error,omitempty"` // empty if it succeeded
	HTTP    int           `json:"http,omitempty"`  // status of a failure
	Code    string        `json:"code,omitempty"`  // the vendor's, of a failure
}

// Status returns what is known of each CMK, in order.
func (k *Keyring) Status() []Status {
	now := time.Now()
	var all []Status
	for _, m := range k.members {
		all = append(all, m.status(now))
	}
	return all
}

// A member is a CMK and what is known of it.
type member struct {
	CMK

	mu    sync.Mutex
	until time.Time // when it has rested; zero if it answers; guarded by mu
	last  *Result   // never changed once set; guarded by mu
	ok    int       // guarded by mu
	bad   int       // guarded by mu
}

// URI names the CMK.
func (m *member) URI() string { return m.CMK.CMK() }

// resting reports whether the member is to be left for last. Once it has rested, one caller finds that it has, and tries; for the others the
// rest goes on until that one succeeds.
func (m *member) resting(now time.Time, rest time.Duration) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.until.IsZero() {
		return false
	}
	if now.Before(m.until) {
		return true
	}
	m.until = now.Add(rest)
	return false
}

func (m *member) rest(until time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.until = until
}

// succeeded keeps a success and reports whether it ended a rest.
func (m *member) succeeded(call string, start time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	rested := !m.until.IsZero()
	m.until = time.Time{}
	m.ok++
	m.last = &Result{Time: time.Now(), Call: call, Latency: time.Since(start)}
	return rested
}

func (m *member) failed(call string, start time.Time, err error) {
	e := failure("", call, 0, start, err)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bad++
	m.last = &Result{Time: time.Now(), Call: call, Latency: e.Latency, Error: err.Error(), HTTP: e.Status, Code: e.Code}
}

func (m *member) status(now time.Time) Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Status{CMK: m.URI(), Last: m.last, OK: m.ok, Failed: m.bad}
	if now.Before(m.until) {
		until := m.until
		s.Skipped = &until
	}
	if c, ok := m.CMK.(interface{ Calls() map[string]int }); ok {
		s.Calls = c.Calls()
	}
	return s
}
