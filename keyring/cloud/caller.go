package cloud

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/kmsfs/kmsfs/keyring/creds"
)

// Credentials are where a [Caller] gets what it signs calls with; a [creds.Keeper] is one.
type Credentials interface {
	// Get returns a valid credential.
	Get(ctx context.Context) (creds.Credential, error)
	// Renew returns a credential after a KMS has refused bad: another one, or an error if there is none.
	Renew(ctx context.Context, bad creds.Credential) (creds.Credential, error)
}

// Config is what the calls to one provider need. Only Credentials is required.
type Config struct {
	Credentials Credentials
	Endpoints   map[string]string // URL by region; the provider's public one if a region has none
	Transport   http.RoundTripper // NewTransport(nil) if nil
	Timeout     time.Duration     // of one call; 6 s if 0
	Rate        float64           // calls in a second, over all CMKs; the provider's own cap if 0
}

// A Vendor is what differs between providers in making a call.
type Vendor struct {
	Host string  // of the public endpoint; %s is the region
	Rate float64 // the default cap, in calls a second

	// Explain takes an SDK's error apart if it is an answer of the KMS. The status may be 0 if the SDK does not tell.
	Explain func(error) (status int, code, requestID string, ok bool)
	// Kind classifies a code that a call ended with; ok is false for codes that it does not know.
	Kind func(call, code string) (kind Kind, ok bool)
}

// A Caller makes the calls of one provider: it caps their rate, bounds their time, signs them with fresh credentials and explains
// their failures. Its methods may be called by several goroutines at once.
type Caller struct {
	vendor  Vendor
	config  Config
	limiter *rate.Limiter

	mu    sync.Mutex
	calls map[string]map[string]int // by URI of the CMK and name of the call; guarded by mu
}

// NewCaller returns a caller. The error wraps [ErrEndpoint].
func NewCaller(v Vendor, c Config) (*Caller, error) {
	c.Endpoints = maps.Clone(c.Endpoints)
	for region, s := range c.Endpoints {
		if _, err := ParseEndpoint(s); err != nil {
			return nil, fmt.Errorf("region %.64q: %w", region, err)
		}
	}
	if c.Transport == nil {
		c.Transport = NewTransport(nil)
	}
	if c.Timeout <= 0 {
		c.Timeout = 6 * time.Second
	}
	if c.Rate <= 0 {
		c.Rate = v.Rate
	}
	return &Caller{
		vendor:  v,
		config:  c,
		limiter: rate.NewLimiter(rate.Limit(c.Rate), max(1, int(c.Rate))),
		calls:   make(map[string]map[string]int),
	}, nil
}

// Close closes the connections that no call uses. Calls may be made after it.
func (c *Caller) Close() {
	if t, ok := c.config.Transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// A Session is what an SDK's client is built from. It serves one call.
type Session struct {
	Transport  http.RoundTripper
	Credential creds.Credential
	Endpoint   *url.URL
}

// A Target is what a call is about: a [CMK] or a [Secret].
type Target interface {
	String() string                  // the URI, which errors name
	Place() (region, account string) // account is a project at Huawei
}

// Calls returns how many calls have been sent for a CMK, by the vendor's names.
func (c *Caller) Calls(cmk CMK) map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.calls[cmk.String()])
}

// An Answer tells of a call that was answered.
type Answer struct {
	Skew time.Duration // how far this machine's clock is ahead of the server's
}

// Do makes one call. send builds a client from the session, calls, and checks the answer, for which it may return an [*Error] that has
// no more than a Kind and an Err. A refused credential is renewed once. The error is an [*Error], or wraps ctx's when the caller gave up.
func (c *Caller) Do(ctx context.Context, on Target, call string, send func(Session) error) (Answer, error) {
	fail := func(e *Error) (Answer, error) {
		e.CMK, e.Call = on.String(), call
		e.Region, _ = on.Place()
		if err := ctx.Err(); errors.Is(err, context.Canceled) {
			return Answer{}, fmt.Errorf("%s: %s: %w", on, call, err) // says nothing about the CMK
		}
		return Answer{}, e
	}
	if err := ctx.Err(); err != nil {
		return Answer{}, fmt.Errorf("%s: %s: %w", on, call, err)
	}
	endpoint, err := c.endpoint(on)
	if err != nil {
		return fail(&Error{Kind: Unavailable, Err: err})
	}
	cred, err := c.config.Credentials.Get(ctx)
	if err != nil {
		return fail(&Error{Kind: NoCredential, Err: err})
	}
	for renewed := false; ; renewed = true {
		if err := c.limiter.Wait(ctx); err != nil {
			if ctx.Err() == nil {
				err = fmt.Errorf("%w: the rate cap leaves no time before it", context.DeadlineExceeded)
			}
			return fail(&Error{Kind: Throttled, Err: err})
		}
		answer, e := c.once(ctx, on, call, Session{Credential: cred, Endpoint: endpoint}, send)
		if e == nil {
			return answer, nil
		}
		if e.Kind != BadCredential || renewed {
			return fail(e)
		}
		if cred, err = c.config.Credentials.Renew(ctx, cred); err != nil {
			return fail(e)
		}
	}
}

func (c *Caller) endpoint(on Target) (*url.URL, error) {
	region, _ := on.Place()
	if s := c.config.Endpoints[region]; s != "" {
		return ParseEndpoint(s)
	}
	return &url.URL{Scheme: "https", Host: fmt.Sprintf(c.vendor.Host, region)}, nil
}

func (c *Caller) once(ctx context.Context, on Target, call string, s Session, send func(Session) error) (_ Answer, e *Error) {
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	c.count(on.String(), call)
	x := &exchange{ctx: ctx, next: c.config.Transport, endpoint: s.Endpoint}
	s.Transport = x
	err := guard(send, s)
	if err == nil {
		return Answer{Skew: x.skew}, nil
	}
	e = c.explain(call, err, x)
	if _, secret := on.(Secret); secret && e.Kind == KeyNotFound && e.Code == "" {
		e.Kind = SecretNotFound
	}
	if e.Status == 0 {
		e.Status = x.status
	}
	e.Skew = x.skew
	return Answer{}, e
}

func (c *Caller) count(cmk, call string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[cmk] == nil {
		c.calls[cmk] = make(map[string]int)
	}
	c.calls[cmk][call]++
}

// guard turns a panic of an SDK over an odd answer into an error.
func guard(send func(Session) error, s Session) (err error) {
	defer func() {
		if recover() != nil {
			err = Distrust("the SDK failed to read it")
		}
	}()
	return send(s)
}

// explain says what an error of send means. The text of an SDK's own errors is dropped: it may quote the answer.
func (c *Caller) explain(call string, err error, x *exchange) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(x.fault, errRedirect), errors.Is(x.fault, errTooLong), errors.Is(x.fault, errStray):
		return &Error{Kind: BadAnswer, Err: x.fault}
	case x.fault != nil: // a cut answer has a status, but is no answer
		x.status = 0
		return &Error{Kind: Unavailable, Err: scrub(x.fault)}
	}
	if status, code, id, ok := c.vendor.Explain(err); ok {
		if status == 0 {
			status = x.status
		}
		e := &Error{Status: status, Code: token(code), RequestID: token(id)}
		if e.Kind, ok = c.vendor.Kind(call, code); !ok {
			e.Kind = KindOf(status)
		}
		return e
	}
	if x.status >= 400 {
		return &Error{Kind: KindOf(x.status)}
	}
	return Distrust("it cannot be read")
}

// Distrust returns the error for an answer that fails a check.
func Distrust(why string) *Error { return &Error{Kind: BadAnswer, Err: errors.New(why)} }
