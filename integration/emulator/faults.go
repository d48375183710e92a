package emulator

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// A FaultKind is what goes wrong.
type FaultKind string

// What may go wrong. Delay and Skew of a [Fault] go with every kind.
const (
	Slow           FaultKind = "delay"           // nothing but Delay
	Hang           FaultKind = "hang"            // no answer until the client gives up
	Reset          FaultKind = "reset"           // the connection is reset
	Refuse         FaultKind = "refuse"          // the endpoints of the provider and region refuse connections
	Status         FaultKind = "status"          // Status with Code and Message, or with Body
	Throttle       FaultKind = "throttle"        // the cloud's own way to say so, or Status and Code
	Redirect       FaultKind = "redirect"        // 302 to Location
	Truncate       FaultKind = "truncate"        // half of the right answer
	Empty          FaultKind = "empty"           // 200 and {}
	DropField      FaultKind = "drop-field"      // the right answer without Field
	WrongKeyID     FaultKind = "wrong-key-id"    // the right answer in the name of another CMK, or another secret
	WrongDigest    FaultKind = "wrong-digest"    // Huawei Cloud: the right data key, another digest
	WrongLength    FaultKind = "wrong-length"    // a plaintext, or a signature, one byte short
	WrongPlaintext FaultKind = "wrong-plaintext" // another plaintext, with the digest that belongs to it, or another signature
	ClockSkew      FaultKind = "skew"            // nothing but Skew
)

var faultKinds = []FaultKind{Slow, Hang, Reset, Refuse, Status, Throttle, Redirect, Truncate, Empty, DropField,
	WrongKeyID, WrongDigest, WrongLength, WrongPlaintext, ClockSkew}

// redirected is where a Redirect leads by default: the request that comes is kept with the others.
const redirected = "/emulator/redirected"

// A Fault is one line of a script: which calls it is for, and what happens to them. Of several that match, the first one happens.
type Fault struct {
	Provider  string    `json:"provider,omitempty"`  // empty is both
	Region    string    `json:"region,omitempty"`    // empty is all
	CMK       string    `json:"cmk,omitempty"`       // a URI; empty is all
	Operation string    `json:"operation,omitempty"` // as the cloud names it, or MetadataToken or MetadataCredentials; empty is all
	Kind      FaultKind `json:"fault"`
	Skip      int       `json:"skip,omitempty"`  // this many matching calls go well first
	Count     int       `json:"count,omitempty"` // then this many do not; 0 is all

	Delay    time.Duration `json:"delay,omitempty"` // before anything else happens; in a script "1.5s"
	Skew     time.Duration `json:"skew,omitempty"`  // of the region's clock during the call, ahead if positive
	Status   int           `json:"status,omitempty"`
	Code     string        `json:"code,omitempty"`
	Message  string        `json:"message,omitempty"`
	Body     string        `json:"body,omitempty"`     // in place of the cloud's own form of an error
	Location string        `json:"location,omitempty"` // default: a path of the same endpoint
	Field    string        `json:"field,omitempty"`
}

// UnmarshalJSON reads durations in the notation of [time.ParseDuration], and no field that it does not know.
func (f *Fault) UnmarshalJSON(b []byte) error {
	type plain Fault
	in := struct {
		*plain
		Delay string `json:"delay"`
		Skew  string `json:"skew"`
	}{plain: (*plain)(f)}
	if err := unmarshalStrict(b, &in); err != nil {
		return err
	}
	for _, d := range []struct {
		text string
		into *time.Duration
	}{{in.Delay, &f.Delay}, {in.Skew, &f.Skew}} {
		if d.text == "" {
			continue
		}
		var err error
		if *d.into, err = time.ParseDuration(d.text); err != nil {
			return err
		}
	}
	return nil
}

// MarshalJSON writes what UnmarshalJSON reads.
func (f Fault) MarshalJSON() ([]byte, error) {
	type plain Fault
	out := struct {
		plain
		Delay string `json:"delay,omitempty"`
		Skew  string `json:"skew,omitempty"`
	}{plain: plain(f)}
	if f.Delay != 0 {
		out.Delay = f.Delay.String()
	}
	if f.Skew != 0 {
		out.Skew = f.Skew.String()
	}
	return json.Marshal(out)
}

// ReadFaults reads a script: a JSON array of faults.
func ReadFaults(r io.Reader) ([]Fault, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("emulator: read faults: %w", err)
	}
	var faults []Fault
	if err := unmarshalStrict(b, &faults); err != nil {
		return nil, fmt.Errorf("emulator: read faults: %w", err)
	}
	return faults, nil
}

// A fault counts how often its Fault matched.
type fault struct {
	Fault
	matched int // guarded by Emulator.mu
}

// SetFaults puts a script in the place of the one before. Calls that are being answered keep the fault they have.
func (e *Emulator) SetFaults(faults ...Fault) error {
	for _, f := range faults {
		switch {
		case !slices.Contains(faultKinds, f.Kind):
			return fmt.Errorf("emulator: unknown fault %q", f.Kind)
		case f.Kind == Status && f.Status == 0:
			return fmt.Errorf("emulator: a %s fault has no status", f.Kind)
		case f.Kind == DropField && f.Field == "":
			return fmt.Errorf("emulator: a %s fault names no field", f.Kind)
		case f.Kind == Refuse && (f.CMK != "" || f.Operation != "" || f.Skip != 0 || f.Count != 0):
			return fmt.Errorf("emulator: a %s fault is for a region, always", f.Kind)
		case f.CMK != "" && e.key(f.CMK) == nil:
			return fmt.Errorf("emulator: a %s fault is for cmk %s, which is not there", f.Kind, f.CMK)
		}
	}
	e.script.Lock()
	defer e.script.Unlock()
	e.mu.Lock()
	e.faults = nil
	for _, f := range faults {
		e.faults = append(e.faults, &fault{Fault: f})
	}
	endpoints := slices.Clone(e.endpoints)
	e.mu.Unlock()
	for _, p := range endpoints {
		if err := p.refuse(e.refuses(p.provider, p.region)); err != nil {
			return err
		}
	}
	return nil
}

// Faults returns the script.
func (e *Emulator) Faults() []Fault {
	e.mu.Lock()
	defer e.mu.Unlock()
	faults := make([]Fault, len(e.faults))
	for i, f := range e.faults {
		faults[i] = f.Fault
	}
	return faults
}

// refuses reports whether the script lets the endpoints of a region refuse connections. An endpoint of all regions never does.
func (e *Emulator) refuses(provider, region string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return region != "" && slices.ContainsFunc(e.faults, func(f *fault) bool {
		return f.Kind == Refuse && (f.Provider == "" || f.Provider == provider) && (f.Region == "" || f.Region == region)
	})
}

// fault returns what shall happen to a call; of no Kind if nothing.
func (e *Emulator) fault(c *call) Fault {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range e.faults {
		if f.Kind == Refuse || f.Provider != "" && f.Provider != c.provider || f.Region != "" && f.Region != c.region ||
			f.Operation != "" && f.Operation != c.operation || f.CMK != "" && (c.key == nil || f.CMK != c.key.URI) {
			continue
		}
		f.matched++
		if f.matched > f.Skip && (f.Count == 0 || f.matched <= f.Skip+f.Count) {
			return f.Fault
		}
	}
	return Fault{}
}

// failure returns the error that a Status or Throttle fault reports.
func (f Fault) failure(provider string) failure {
	fail := failure{f.Status, f.Code, "A fault of the script."} // Huawei Cloud's SDK ignores a code without a message
	if f.Kind == Throttle && provider == Huawei {
		fail = failure{http.StatusTooManyRequests, "APIGW.0308", "The throttling threshold has been reached: policy user over ratelimit,limit:20,time:1 second"}
	} else if f.Kind == Throttle {
		fail = failure{http.StatusTooManyRequests, "Rejected.Throttling", "QPS Limit Exceeded"}
	}
	if f.Status != 0 {
		fail.status = f.Status
	}
	if f.Code != "" {
		fail.code = f.Code
	}
	if f.Message != "" {
		fail.message = f.Message
	}
	return fail
}

// falsify changes an answer that was right.
func (f Fault) falsify(c *call, answer map[string]any) {
	switch f.Kind {
	case DropField:
		delete(answer, f.Field)
	case WrongKeyID:
		for _, field := range []string{"key_id", "KeyId"} {
			if _, ok := answer[field]; ok {
				answer[field] = "00000000-0000-4000-8000-000000000000"
			}
		}
		renameSecret(answer)
	case WrongDigest:
		if digest, ok := answer["datakey_dgst"].(string); ok {
			answer["datakey_dgst"] = hexed(digest, flip)
		}
	case WrongLength:
		changePlaintext(answer, func(b []byte) []byte { return b[:max(0, len(b)-1)] })
	case WrongPlaintext:
		changePlaintext(answer, flip)
		if dataKey, ok := answer["data_key"].(string); ok && c.key != nil {
			plain, _ := hex.DecodeString(dataKey)
			answer["datakey_dgst"] = hex.EncodeToString(c.key.digest(plain))
		}
	}
}

// changePlaintext changes the plaintext, or the signature, in an answer, in each of the encodings it is there in.
func changePlaintext(answer map[string]any, change func([]byte) []byte) {
	for field, encoded := range map[string]func(string, func([]byte) []byte) string{
		"plain_text": hexed, "data_key": hexed, "plain_text_base64": based, "Plaintext": based,
		"signature": based, "Value": based,
	} {
		if text, ok := answer[field].(string); ok {
			answer[field] = encoded(text, change)
		}
	}
}

// hexed changes what is written in hexadecimal, or a text that is not.
func hexed(text string, change func([]byte) []byte) string {
	b, err := hex.DecodeString(text)
	if err != nil {
		return string(change([]byte(text)))
	}
	return hex.EncodeToString(change(b))
}

func based(text string, change func([]byte) []byte) string {
	b, _ := base64.StdEncoding.DecodeString(text)
	return base64.StdEncoding.EncodeToString(change(b))
}

func flip(b []byte) []byte {
	if len(b) > 0 {
		b[0] ^= 1
	}
	return b
}

func itoa(n int) string { return strconv.Itoa(n) }
