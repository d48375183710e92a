package cloud

import (
	"fmt"
	"unicode/utf8"
)

// MaxSecret is the longest secret that either cloud keeps, in bytes.
const MaxSecret = 32 << 10

// A Secret is one in a cloud's secret manager. It is comparable.
type Secret struct {
	URI     string // as errors name it
	Region  string
	Account string // the project at Huawei
	Name    string
	Version string // empty for the current one
}

// String returns the URI.
func (s Secret) String() string { return s.URI }

// Place implements [Target].
func (s Secret) Place() (region, account string) { return s.Region, s.Account }

// CheckPlace refuses a region or project that must not become part of a host name or a path. The error wraps [ErrURI].
func (s Secret) CheckPlace(project bool) error {
	probe := CMK{Provider: Alibaba, Region: s.Region, Account: "a", KeyID: "k"}
	if project {
		probe.Account = s.Account
	}
	_, err := ParseCMK(probe.String())
	return err
}

// A NewSecret is what a secret is created with, beside its name. Only Value is required.
type NewSecret struct {
	Value    []byte
	KeyID    string // of the CMK that protects it; empty for the provider's default
	Instance string // Alibaba Cloud: the KMS instance that keeps it
}

// Text reports whether the value is stored as text. Any other is binary.
func (n NewSecret) Text() bool { return utf8.Valid(n.Value) }

// SecretValue checks the value of a secret in an answer.
func SecretValue(b []byte) ([]byte, error) {
	if len(b) == 0 || len(b) > MaxSecret {
		clear(b)
		return nil, Distrust(fmt.Sprintf("it has no value of 1 to %d bytes", MaxSecret))
	}
	return b, nil
}
