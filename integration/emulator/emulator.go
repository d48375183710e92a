// Package emulator answers as the KMS of Alibaba Cloud and of Huawei Cloud would, over HTTP, for tests and for trying several regions on one computer.
//
// An [Emulator] holds CMKs and secrets of both clouds. [Emulator.Listen] opens one region of one cloud on an address of its own, so that a region can be slow, wrong
// or gone while the others answer. It verifies signatures, dates and nonces, compares encryption contexts, issues expiring credentials as the metadata
// services of both clouds do, counts the calls, keeps what it received, and does to a call whatever a [Fault] says. CMKs are named by the URIs that kmsfs uses.
//
// The keys are derived from a seed: two emulators of one seed open each other's ciphertext. It protects nothing and is for loopback only.
package emulator

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// The two clouds, spelled as in kmsfs's --endpoint.
const (
	Alibaba = "alibaba"
	Huawei  = "huawei"
)

// ContextMode says what a region does with the encryption context of a call.
type ContextMode string

// What a region may do with an encryption context. The zero value honours it.
const (
	ContextHonoured ContextMode = ""
	ContextIgnored  ContextMode = "ignore" // accepted, not bound
	ContextRejected ContextMode = "reject" // an unknown parameter
)

// Options say what an emulator holds. The zero value has no CMK.
type Options struct {
	Seed        string                 // all key material follows from it; default "kmsfs"
	CMKs        []CMK                  // of any region and cloud
	Credentials []Credential           // static ones; default: one for each cloud, derived from the seed
	Contexts    map[string]ContextMode // by "PROVIDER/REGION"; a region that is not listed honours contexts
	Faults      []Fault                // the first script
	Wrapped     []Wrapped              // what CMKs have wrapped elsewhere
	Life        time.Duration          // of the credentials that the metadata endpoints issue; default one hour
	TLS         *tls.Config            // of the endpoints, with a certificate; default: plain HTTP
	Role        string                 // that the metadata endpoint of Alibaba Cloud names; default "kmsfs"
	Now         func() time.Time       // default [time.Now]
}

// Wrapped is a data key that a CMK opens although no emulator has wrapped it, as messages of other programs have such. At Alibaba Cloud, where a blob
// names its CMK, these do not.
type Wrapped struct {
	CMK     string // the URI
	Blob    []byte
	DataKey []byte
	Context map[string]string // at Alibaba Cloud
}

// An Emulator is the state of the regions of both clouds. Its methods may be called by several goroutines at once.
type Emulator struct {
	seed     string
	contexts map[string]ContextMode
	life     time.Duration
	role     string
	tls      *tls.Config
	now      func() time.Time
	keys     []*key        // the slice is never changed; a key's state is guarded by mu
	wrapped  []Wrapped     // constant
	closing  chan struct{} // closed by Close: ends delays and hangs

	script sync.Mutex // serialises changes of the script; taken before mu and before an Endpoint's mu

	mu          sync.Mutex
	credentials []Credential          // guarded by mu
	tokens      map[string]time.Time  // metadata session tokens and their expiry; guarded by mu
	nonces      map[string]bool       // seen in Alibaba Cloud's signatures; guarded by mu
	faults      []*fault              // guarded by mu
	counts      map[Count]*tally      // by Count without its numbers; guarded by mu
	plaintexts  map[string]bool       // guarded by mu
	secrets     map[secretKey]*secret // guarded by mu
	requests    []*Request            // guarded by mu
	endpoints   []*Endpoint           // guarded by mu
	closed      bool                  // guarded by mu
}

// New returns an emulator that does not listen yet. Close it after use.
func New(o Options) (*Emulator, error) {
	e := &Emulator{
		seed: o.Seed, contexts: o.Contexts, life: o.Life, role: o.Role, tls: o.TLS, now: o.Now,
		credentials: slices.Clone(o.Credentials), wrapped: o.Wrapped, closing: make(chan struct{}),
		tokens: map[string]time.Time{}, nonces: map[string]bool{}, counts: map[Count]*tally{}, plaintexts: map[string]bool{}, secrets: map[secretKey]*secret{},
	}
	if e.seed == "" {
		e.seed = "kmsfs"
	}
	if e.life == 0 {
		e.life = time.Hour
	}
	if e.role == "" {
		e.role = "kmsfs"
	}
	if e.now == nil {
		e.now = time.Now
	}
	if len(e.credentials) == 0 {
		e.credentials = []Credential{e.derivedCredential(Alibaba), e.derivedCredential(Huawei)}
	}
	for _, cmk := range o.CMKs {
		k, err := newKey(e.seed, cmk)
		if err != nil {
			return nil, err
		}
		if e.key(k.URI) != nil {
			return nil, fmt.Errorf("emulator: cmk %s is given twice", k.URI)
		}
		e.keys = append(e.keys, k)
	}
	return e, e.SetFaults(o.Faults...)
}

// elsewhere returns what a CMK of a region has wrapped elsewhere; the CMK is any if its URI is empty.
func (e *Emulator) elsewhere(provider, region, cmk string, blob []byte) *Wrapped {
	for i, w := range e.wrapped {
		if k := e.key(w.CMK); k != nil && k.provider == provider && k.region == region && (cmk == "" || cmk == w.CMK) && bytes.Equal(w.Blob, blob) {
			return &e.wrapped[i]
		}
	}
	return nil
}

// Close closes every endpoint and returns when no request is being answered any more.
func (e *Emulator) Close() error {
	e.script.Lock() // no Listen is half done
	defer e.script.Unlock()
	e.mu.Lock()
	endpoints, again := e.endpoints, e.closed
	e.endpoints, e.closed = nil, true
	e.mu.Unlock()
	if !again {
		close(e.closing)
	}
	var errs []error
	for _, p := range endpoints {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// Environ returns the environment, in the form of [os.Environ], in which kmsfs finds the endpoints that listen and the first credential of each cloud.
func (e *Emulator) Environ() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var endpoints, env []string
	for _, p := range e.endpoints {
		if p.provider != "" {
			endpoints = append(endpoints, p.provider+"/"+p.region+"="+p.URL)
		}
	}
	env = append(env, "KMSFS_ENDPOINTS="+strings.Join(endpoints, ","))
	seen := map[string]bool{}
	for _, c := range e.credentials {
		if !seen[c.Provider] && c.Expires.IsZero() {
			seen[c.Provider] = true
			env = append(env, c.environ()...)
		}
	}
	return env
}

// requestID returns a fresh identifier of a request, in the form both clouds use.
func requestID() string {
	b := make([]byte, 16)
	rand.Read(b)
	return uuid(b)
}

// uuid writes the first 16 bytes of b as a UUID.
func uuid(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
