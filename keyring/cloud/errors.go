package cloud

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/kmsfs/kmsfs/keyring"
)

// A Kind says why a call failed.
type Kind int

// The kinds of failures. Those up to BadAnswer leave it open whether the CMK would have done what was asked.
const (
	Unavailable     Kind = iota // no answer, or a fault of the server
	Throttled                   // too many calls
	NoCredential                // there is nothing to sign the call with
	BadAnswer                   // an answer that is not to be trusted: redirected, incomplete, or about another CMK
	BadCredential               // unknown, expired, or a wrong signature
	NoPermission                // for this CMK or this call, or the account is locked
	KeyDisabled                 // the CMK is disabled or has no key material
	PendingDeletion             // the CMK will be deleted and can be recovered until then
	KeyNotFound                 // the CMK does not exist, at least not there
	NotWrapped                  // the EDK or its encryption context is not what the CMK wrapped
	SecretNotFound              // the secret, or that version of it, does not exist, at least not there
	SecretDisabled              // the secret is disabled, or will be deleted
	SecretExists                // there is a secret of that name
	Refused                     // for another reason; the code says which
)

// ErrOtherCMK says that an answer is about another CMK than was asked.
var ErrOtherCMK = errors.New("the answer is about another CMK")

var kindText = [...]string{
	Unavailable:     "no answer",
	Throttled:       "too many calls",
	NoCredential:    "no credential",
	BadAnswer:       "an answer that cannot be trusted",
	BadCredential:   "the credential is unknown, expired or wrong",
	NoPermission:    "no permission",
	KeyDisabled:     "the CMK is disabled",
	PendingDeletion: "the CMK IS PENDING DELETION: cancel that now, or its wrapped keys are lost",
	KeyNotFound:     "no such CMK",
	NotWrapped:      "the wrapped key or its encryption context is not what the CMK wrapped",
	SecretNotFound:  "no such secret, or not that version of it",
	SecretDisabled:  "the secret is disabled or pending deletion",
	SecretExists:    "a secret of that name exists",
	Refused:         "refused",
}

// String describes the kind.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindText) {
		return "unknown"
	}
	return kindText[k]
}

// An Error says how a call to a KMS failed. It unwraps to [keyring.ErrUnavailable] or [keyring.ErrDenied], and to the error of
// the network or of ctx if there was one. It never holds the text of the KMS's message, which may repeat what was sent.
type Error struct {
	CMK       string // the URI of the CMK or the secret
	Region    string // that was called; may be empty
	Call      string // as the vendor names it
	Kind      Kind
	Status    int           // of HTTP; 0 if there was no answer
	Code      string        // the vendor's; may be empty
	RequestID string        // the vendor's; may be empty
	Skew      time.Duration // how far this machine's clock was ahead of the server's; 0 if unknown
	Err       error         // of the network, the context or the check of an answer; may be nil
}

// SkewTold is the clock skew from which on messages mention it: both clouds refuse 15 minutes.
const SkewTold = 2 * time.Minute

// Error describes the failure in one line.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s: %s", e.CMK, e.Call, e.Kind)
	var notes []string
	if e.Status != 0 {
		notes = append(notes, strings.TrimSpace(fmt.Sprintf("HTTP %d %s", e.Status, e.Code)))
	}
	if e.RequestID != "" {
		notes = append(notes, "request "+e.RequestID)
	}
	if e.Skew.Abs() >= SkewTold {
		notes = append(notes, "the clock here differs by "+e.Skew.Round(time.Second).String())
	}
	if len(notes) > 0 {
		fmt.Fprintf(&b, " (%s)", strings.Join(notes, ", "))
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

// Unwrap returns the class and the cause.
func (e *Error) Unwrap() []error {
	class := keyring.ErrDenied
	if e.Kind <= BadAnswer {
		class = keyring.ErrUnavailable
	}
	if e.Err == nil {
		return []error{class}
	}
	return []error{class, e.Err}
}

// Temporary reports whether the same call may succeed when it is made again soon: network faults, throttling, and the
// statuses 429, 500, 502, 503 and 504.
func (e *Error) Temporary() bool {
	switch e.Kind {
	case Throttled:
		return true
	case Unavailable:
		switch e.Status {
		case 429, 500, 502, 503, 504:
			return true
		case 0:
			return !errors.As(e.Err, new(*certificateError)) && !errors.Is(e.Err, context.Canceled)
		}
	}
	return false
}

// KindOf classifies a failure by its HTTP status alone, for codes that a provider does not know.
func KindOf(status int) Kind {
	switch {
	case status == 401:
		return BadCredential
	case status == 403:
		return NoPermission
	case status == 404:
		return KeyNotFound
	case status == 429:
		return Throttled
	case status >= 500:
		return Unavailable
	case status >= 400:
		return Refused
	}
	return BadAnswer
}

// certificateError marks a TLS failure that no retry mends.
type certificateError struct{ error }

func (e *certificateError) Unwrap() error { return e.error }

// scrub keeps of an error of the HTTP client what is safe to print: not the URL, and no control characters of the server's.
func scrub(err error) error {
	for u := new(url.Error); errors.As(err, &u); {
		err = u.Err
	}
	return &scrubbed{err}
}

type scrubbed struct{ error }

func (s *scrubbed) Error() string { return printable(s.error.Error(), 160) }

func (s *scrubbed) Unwrap() error { return s.error }

// printable cuts a text and replaces what is not graphic in it.
func printable(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsGraphic(r) {
			return '?'
		}
		return r
	}, s)
}

// token returns s if it looks like a code or a request ID, and else nothing.
func token(s string) string {
	if len(s) > 80 {
		return ""
	}
	for _, r := range s {
		if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("._-", r)) {
			return ""
		}
	}
	return s
}
