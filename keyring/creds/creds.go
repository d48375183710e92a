// Package creds obtains the credentials that calls to a cloud are signed with, and keeps them fresh.
//
// A [Source] fetches a credential: from the environment, a file, or the metadata service of the instance. A [Keeper] holds the
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
	// ErrFormat says that a credential file, a set of variables or the answer of a metadata service is not what it should be.
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

// same reports whether two credentials sign alike.
func (c Credential) same(other Credential) bool {
	return c.ID == other.ID && c.Secret == other.Secret && c.Token == other.Token
}

// String hides the credential.
func (c Credential) String() string { return "credential (hidden)" }

// Format hides the credential from every verb.
func (c Credential) Format(f fmt.State, _ rune) { fmt.Fprint(f, c.String()) }

// LogValue hides the credential from structured logs.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// A Source fetches a credential. The error wraps [ErrNone] if there is none to fetch. Fetch may be called by several goroutines at once.
type Source interface {
	Fetch(ctx context.Context) (Credential, error)
}

// Options say where a cloud's credentials come from: the environment, else a file, else the instance's metadata service. The zero value
// looks at none of them.
type Options struct {
	Getenv   func(string) string // reads the vendor's variables; nil for no environment
	File     string              // a credential file; if empty, the one that the vendor's variable names
	Metadata string              // base URL of the metadata service; empty for the vendor's own address
	Role     string              // Alibaba Cloud: the instance's RAM role; if empty, the vendor's variable, or the service, tells
	Instance bool                // ask the metadata service
	Failed   func(error)         // called when a renewal in the background fails; may be nil
}

// NewAlibaba returns a keeper of credentials for Alibaba Cloud. Close it after use.
func NewAlibaba(o Options) (*Keeper, error) {
	return newKeeper(o, vendor{
		id: "ALIBABA_CLOUD_ACCESS_KEY_ID", secret: "ALIBABA_CLOUD_ACCESS_KEY_SECRET", token: "ALIBABA_CLOUD_SECURITY_TOKEN",
		file: "ALIBABA_CLOUD_CREDENTIALS_FILE", section: "default",
		idField: "access_key_id", secretField: "access_key_secret", tokenField: "security_token",
		disabled: "ALIBABA_CLOUD_ECS_METADATA_DISABLED", role: "ALIBABA_CLOUD_ECS_METADATA",
		metadata: "http://100.100.100.200", tokenPath: "/latest/api/token", tokenHeader: "X-aliyun-ecs-metadata-token", fetch: fetchAlibaba,
	})
}

// NewHuawei returns a keeper of credentials for Huawei Cloud. Close it after use.
func NewHuawei(o Options) (*Keeper, error) {
	return newKeeper(o, vendor{
		id: "HUAWEICLOUD_SDK_AK", secret: "HUAWEICLOUD_SDK_SK", token: "HUAWEICLOUD_SDK_SECURITY_TOKEN",
		file: "HUAWEICLOUD_SDK_CREDENTIALS_FILE", section: "basic",
		idField: "ak", secretField: "sk", tokenField: "security_token",
		metadata: "http://169.254.169.254", tokenPath: "/meta-data/latest/api/token", tokenHeader: "X-Metadata-Token", fetch: fetchHuawei,
	})
}

// A vendor has the names that a cloud's own tools use.
type vendor struct {
	id, secret, token string // variables

	file                             string // variable with the path of a credential file
	section                          string // of the file
	idField, secretField, tokenField string // of the section

	disabled, role string // variables about the metadata service; may be empty

	metadata, tokenPath, tokenHeader string
	fetch                            func(ctx context.Context, m *instance, header map[string]string) (Credential, error)
}

func newKeeper(o Options, v vendor) (*Keeper, error) {
	getenv := o.Getenv
	if getenv == nil {
		getenv = func(string) string { return "" }
	}
	var local []Source
	if o.Getenv != nil {
		local = append(local, environment{v, getenv})
	}
	if path := o.File; path != "" {
		local = append(local, file{v, path})
	} else if path := getenv(v.file); path != "" {
		local = append(local, file{v, path})
	}
	var remote Source
	if o.Instance && (v.disabled == "" || getenv(v.disabled) != "true") {
		role := o.Role
		if role == "" && v.role != "" {
			role = getenv(v.role)
		}
		m, err := newInstance(v, o.Metadata, role)
		if err != nil {
			return nil, err
		}
		remote = m
	}
	return NewKeeper(local, remote, o.Failed), nil
}

// environment reads the vendor's variables.
type environment struct {
	vendor
	getenv func(string) string
}

// Fetch implements [Source].
func (e environment) Fetch(context.Context) (Credential, error) {
	c := Credential{ID: e.getenv(e.id), Secret: e.getenv(e.secret), Token: e.getenv(e.token)}
	switch {
	case c.ID == "" && c.Secret == "":
		return Credential{}, fmt.Errorf("%w: %s and %s are not set", ErrNone, e.id, e.secret)
	case c.ID == "" || c.Secret == "":
		return Credential{}, fmt.Errorf("%w: only one of %s and %s is set", ErrFormat, e.id, e.secret)
	}
	return c, nil
}
