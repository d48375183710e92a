package cloud

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kmsfs/kmsfs/keyring"
)

// A Report says what a CMK can do now.
type Report struct {
	CMK          string        `json:"cmk"`
	Spec         string        `json:"spec,omitempty"`     // the vendor's name of the kind of key; empty if there is no KMS, or it does not say
	State        string        `json:"state,omitempty"`    // one of the States
	Deletion     string        `json:"deletion,omitempty"` // when it will be deleted
	Wraps        bool          `json:"wraps"`
	Unwraps      bool          `json:"unwraps"`
	BindsContext bool          `json:"bindsContext"` // an EDK does not unwrap under another encryption context; false if that is unknown
	Latency      time.Duration `json:"latency"`      // of the unwrap; nanoseconds in JSON
	Skew         time.Duration `json:"skew"`         // how far this machine's clock is ahead of the KMS's, to about a second; nanoseconds in JSON
	Errors       []string      `json:"errors,omitempty"`
}

// OK reports whether the CMK can do everything that a volume needs of it.
func (r Report) OK() bool { return r.Wraps && r.Unwraps }

// Check finds out what a CMK can do, by wrapping and unwrapping a key that is for nothing else: up to five calls.
func Check(ctx context.Context, k interface {
	keyring.Keyring
	CMK() string
}) Report {
	r := Report{CMK: k.CMK()}
	note := func(err error) {
		if e := new(Error); errors.As(err, &e) && e.Skew != 0 {
			r.Skew = e.Skew
		}
		r.Errors = append(r.Errors, err.Error())
	}
	if d, ok := k.(interface {
		Describe(context.Context) (*KeyInfo, Answer, error)
	}); ok {
		if info, answer, err := d.Describe(ctx); err != nil {
			note(err)
		} else {
			r.Spec, r.State, r.Deletion, r.Skew = info.Spec, info.State, info.Deletion, answer.Skew
		}
	}
	dk := keyring.NewDataKey(32)
	defer dk.Wipe()
	ec := keyring.EncryptionContext{"kmsfs": "check"}
	edks, err := k.EncryptDataKey(ctx, dk, ec)
	if err != nil {
		note(err)
		return r
	}
	r.Wraps = true
	start := time.Now()
	got, err := k.DecryptDataKey(ctx, edks, ec)
	r.Latency = time.Since(start)
	switch {
	case err != nil:
		note(err)
		return r
	case string(got) != string(dk):
		note(fmt.Errorf("%s: %w: unwrapped another key than it wrapped", k.CMK(), keyring.ErrUnavailable))
		return r
	}
	got.Wipe()
	r.Unwraps = true
	got, err = k.DecryptDataKey(ctx, edks, keyring.EncryptionContext{"kmsfs": "another"})
	got.Wipe()
	switch {
	case err == nil:
		note(fmt.Errorf("%s: does not bind the encryption context; the headers of the volume do", k.CMK()))
	case errors.Is(err, keyring.ErrDenied):
		r.BindsContext = true
	default:
		note(err)
	}
	return r
}
