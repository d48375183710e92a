// Package creds obtains the credentials that calls to a cloud are signed with, and keeps them fresh.
//
// A [Source] fetches a credential: from the environment, a file or an instance's metadata service. A [Keeper] holds the
// last one, renews it ahead of its expiry in the background, and goes on with it while it is valid if that fails.
package creds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Errors that callers branch on.
var (
	// ErrNone says that a source has no credential at all, as opposed to one that it failed to fetch.
	ErrNone = errors.New("creds: no credential")
	// ErrMode says that others than its owner may read a credential file.
	ErrMode = errors.New("creds: credential file is open to others")
	// ErrFormat says that a credential file or the answer of a metadata service is not what it should be.
	ErrFormat = errors.New("creds: bad credential")
)

// A Credential is an access key, with a security token if it is a temporary one. It prints as a placeholder.
type Credential struct {
	ID     string    // of the access key
	Secret string    // of the access key
	Token  string    // security token; empty for a permanent access key
	Expiry time.Time // when a temporary one ends; zero if that is never or unknown
}

// Valid reports whether the credential can sign calls at a time.
func (c Credential) Valid(now time.Time) bool {
	return c.ID != "" && c.Secret != "" && (c.Expiry.IsZero() || now.Before(c.Expiry))
}

// String hides the credential.
func (c Credential) String() string { return "credential (hidden)" }

// Format hides the credential from every verb.
func (c Credential) Format(f fmt.State, _ rune) { fmt.Fprint(f, c.String()) }

// LogValue hides the credential from structured logs.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// A Source fetches a credential. The error wraps [ErrNone] if there is none to fetch. Its methods may be called by several
// goroutines at once.
type Source interface {
	Fetch(ctx context.Context) (Credential, error)
}

// Chain is a source that asks several in order, past those that have none.
func Chain(sources ...Source) Source { return chain(sources) }

type chain []Source

func (c chain) Fetch(ctx context.Context) (Credential, error) {
	var failures []error
	for _, s := range c {
		got, err := s.Fetch(ctx)
		if err == nil {
			return got, nil
		}
		failures = append(failures, err)
		if !errors.Is(err, ErrNone) {
			break
		}
	}
	return Credential{}, errors.Join(failures...)
}
