package emulator

import (
	"cmp"
	"net/http"
	"slices"
	"time"
)

// A Count says how often an operation was called on a CMK. A call counts when it arrives, whatever becomes of it.
type Count struct {
	Provider  string `json:"provider"`
	Region    string `json:"region"`
	CMK       string `json:"cmk,omitempty"` // its URI, or what the call named if there is no such CMK
	Operation string `json:"operation"`     // as the cloud names it, or MetadataToken or MetadataCredentials
	Calls     int    `json:"calls"`
	Failed    int    `json:"failed"` // of them, those not answered with 200
}

type tally struct{ calls, failed int }

// followed is the operation of a request that follows a [Redirect].
const followed = "redirected"

// A Request is what arrived, as it arrived.
type Request struct {
	Time      time.Time   `json:"time"`
	Provider  string      `json:"provider"`
	Region    string      `json:"region"`
	Operation string      `json:"operation"`
	CMK       string      `json:"cmk,omitempty"`
	Method    string      `json:"method"`
	URL       string      `json:"url"` // with the query
	Header    http.Header `json:"header"`
	Body      string      `json:"-"`
	Status    int         `json:"status"` // 0 while it is not answered, and if it never is
}

// begin counts and keeps a request. The function it returns takes the status of the answer.
func (e *Emulator) begin(c *call, r *http.Request) func(status int) {
	count := Count{Provider: c.provider, Region: c.region, CMK: c.cmk(), Operation: c.operation}
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.counts[count]
	if t == nil {
		t = new(tally)
		e.counts[count] = t
	}
	t.calls++
	request := &Request{
		Time: e.now(), Provider: c.provider, Region: c.region, Operation: c.operation, CMK: count.CMK,
		Method: r.Method, URL: r.URL.String(), Header: r.Header.Clone(), Body: string(c.body),
	}
	e.requests = append(e.requests, request)
	return func(status int) {
		e.mu.Lock()
		defer e.mu.Unlock()
		request.Status = status
		if status != http.StatusOK {
			t.failed++
		}
	}
}

// Calls returns the counts since the start or the last [Emulator.ResetCalls], in order.
func (e *Emulator) Calls() []Count {
	e.mu.Lock()
	defer e.mu.Unlock()
	counts := make([]Count, 0, len(e.counts))
	for c, t := range e.counts {
		c.Calls, c.Failed = t.calls, t.failed
		counts = append(counts, c)
	}
	slices.SortFunc(counts, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.Region, b.Region), cmp.Compare(a.CMK, b.CMK), cmp.Compare(a.Operation, b.Operation))
	})
	return counts
}

// Count returns how many calls came to a cloud for one of the operations. An empty provider is both clouds; no operation is all those of a KMS, without the metadata services.
func (e *Emulator) Count(provider string, operations ...string) int {
	n := 0
	for _, c := range e.Calls() {
		if provider != "" && c.Provider != provider {
			continue
		}
		if len(operations) == 0 && c.Operation != metadataToken && c.Operation != metadataCredentials && c.Operation != followed ||
			slices.Contains(operations, c.Operation) {
			n += c.Calls
		}
	}
	return n
}

// Requests returns everything that arrived since the start or the last [Emulator.ResetCalls], in order.
func (e *Emulator) Requests() []Request {
	e.mu.Lock()
	defer e.mu.Unlock()
	requests := make([]Request, len(e.requests))
	for i, r := range e.requests {
		requests[i] = *r
	}
	return requests
}

// ResetCalls forgets the counts and the requests.
func (e *Emulator) ResetCalls() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.counts)
	e.requests = nil
}
