package emulator

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const maxBody = 1 << 20 // more than any call of either cloud

// A call is one request while it is answered.
type call struct {
	provider, region, operation string
	name                        string // what the request calls its CMK, or its secret
	key                         *key   // the CMK of that name in the region, whoever asks; may be nil
	id                          string // of the request
	params                      url.Values
	body                        []byte
	now                         time.Time // by the region's clock
}

// cmk returns the name to count the call under: the URI where the CMK exists.
func (c *call) cmk() string {
	if c.key != nil {
		return c.key.URI
	}
	return c.name
}

// A failure is an error as the KMS reports it.
type failure struct {
	status        int
	code, message string
}

// A protocol is one of the languages that an emulator speaks.
type protocol interface {
	// parse finds the operation and the CMK, whether or not the request is in order.
	parse(c *call, r *http.Request)
	// answer checks the request and does what it says. The answer is a map for JSON, or a string.
	answer(c *call, r *http.Request) (any, *failure)
	// report returns the body that tells of a failure.
	report(c *call, f failure) any
}

// Handler returns the handler of one region of one cloud. An empty provider serves both, an empty region serves them all.
func (e *Emulator) Handler(provider, region string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { e.serve(w, r, provider, region) })
}

func (e *Emulator) serve(w http.ResponseWriter, r *http.Request, provider, region string) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	c := &call{provider: provider, region: region, id: requestID(), body: body}
	if strings.HasPrefix(r.URL.Path, "/emulator/") {
		c.operation = followed
		if r.URL.Path == redirected {
			done := e.begin(c, r)
			defer done(http.StatusOK)
		}
		e.control(w, r, body)
		return
	}
	p := e.protocol(c, r.URL.Path)
	if p == nil {
		http.NotFound(w, r)
		return
	}
	p.parse(c, r)
	f := e.fault(c)
	c.now = e.now().Add(f.Skew)
	status, done := 0, e.begin(c, r)
	defer func() { done(status) }() // also when the connection is cut
	w.Header().Set("Date", c.now.UTC().Format(http.TimeFormat))
	w.Header().Set("X-Request-Id", c.id)
	if !e.wait(r.Context(), f) {
		panic(http.ErrAbortHandler)
	}
	if f.Kind == Reset {
		reset(w)
		return
	}
	status = e.respond(w, r, p, c, f)
}

// protocol returns the language that a path is in, and sets the provider, or returns nil if the endpoint does not speak it.
func (e *Emulator) protocol(c *call, path string) protocol {
	var p protocol
	provider := Alibaba
	switch {
	case strings.HasPrefix(path, "/latest/"):
		p = metadata{e}
	case strings.HasPrefix(path, "/meta-data/"), strings.HasPrefix(path, "/openstack/"):
		p, provider = metadata{e}, Huawei
	case strings.HasPrefix(path, "/v1.0/"):
		p, provider = huawei{e}, Huawei
	case strings.HasPrefix(path, "/v1/"):
		p, provider = csms{huawei{e}}, Huawei
	case path == "/" || path == "":
		p = alibaba{e}
	default:
		return nil
	}
	if c.provider != "" && c.provider != provider {
		return nil
	}
	c.provider = provider
	return p
}

// wait lets a fault's delay pass, or all the time there is. It reports whether the client still waits.
func (e *Emulator) wait(ctx context.Context, f Fault) bool {
	var over <-chan time.Time // never
	switch {
	case f.Kind == Hang:
	case f.Delay <= 0:
		return true
	default:
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-over:
		return true
	case <-ctx.Done():
	case <-e.closing:
	}
	return false
}

// respond answers a call, but for what its fault changes, and returns the status.
func (e *Emulator) respond(w http.ResponseWriter, r *http.Request, p protocol, c *call, f Fault) int {
	switch f.Kind {
	case Redirect:
		location := f.Location
		if location == "" {
			location = redirected
		}
		w.Header().Set("Location", location)
		w.WriteHeader(http.StatusFound)
		return http.StatusFound
	case Status, Throttle:
		fail := f.failure(c.provider)
		if f.Body != "" {
			return write(w, fail.status, f.Body, false)
		}
		return write(w, fail.status, p.report(c, fail), false)
	case Empty:
		return write(w, http.StatusOK, map[string]any{}, false)
	}
	answer, fail := p.answer(c, r)
	if fail != nil {
		return write(w, fail.status, p.report(c, *fail), f.Kind == Truncate)
	}
	if fields, ok := answer.(map[string]any); ok {
		f.falsify(c, fields)
	}
	return write(w, http.StatusOK, answer, f.Kind == Truncate)
}

// write writes a string as it is and anything else as JSON; truncated, it announces the whole and cuts the connection halfway.
func write(w http.ResponseWriter, status int, answer any, truncated bool) int {
	body := []byte(nil)
	if text, ok := answer.(string); ok {
		body = []byte(text)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	} else {
		w.Header().Set("Content-Type", "application/json;charset=utf-8")
		body, _ = json.Marshal(answer) // maps, strings, numbers and booleans
	}
	if !truncated {
		w.WriteHeader(status)
		w.Write(body)
		return status
	}
	w.Header().Set("Content-Length", itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body[:len(body)/2])
	http.NewResponseController(w).Flush() // else the client may see a reset instead
	panic(http.ErrAbortHandler)
}

// reset cuts the connection so that the client gets a reset and not an end.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	raw := conn
	if secured, ok := conn.(*tls.Conn); ok {
		raw = secured.NetConn()
	}
	if tcp, ok := raw.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	raw.Close()
}
