// Package secrets reads references to values that a cloud's secret manager holds, and keeps what they stand for fresh.
//
// A reference is csms://NAME[#FIELD][@VERSION] for Huawei Cloud's CSMS, or alibaba-secret://NAME[#FIELD][@VERSION] for Alibaba Cloud's Secrets
// Manager; FIELD is one of the fields of a secret that is a JSON object.
package secrets

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The schemes of references.
const (
	CSMS    = "csms"
	Alibaba = "alibaba-secret"
)

// Errors that callers branch on.
var (
	// ErrRef says that a string is not a reference.
	ErrRef = errors.New("secrets: not a reference")
	// ErrValue says that the value of a secret has no such field, or is not text.
	ErrValue = errors.New("secrets: not such a value")
)

// Bounds of the parts of a reference, in bytes.
const (
	maxHuaweiName  = 64
	maxAlibabaName = 64
	maxField       = 128
	maxVersion     = 64
)

// A Ref names a value in a secret manager. It is comparable.
type Ref struct {
	Scheme  string // CSMS or Alibaba
	Name    string
	Field   string // empty for the whole secret
	Version string // empty for the current one
}

// IsRef reports whether s begins as a reference does.
func IsRef(s string) bool {
	scheme, _, ok := strings.Cut(s, "://")
	return ok && (scheme == CSMS || scheme == Alibaba)
}

// Parse parses a reference. The last @ begins the version, so that a name with an @ in it needs one, or a field. The error wraps [ErrRef].
func Parse(s string) (Ref, error) {
	if !IsRef(s) {
		return Ref{}, fmt.Errorf("%w: %.80q, want csms://NAME[#FIELD][@VERSION] or alibaba-secret://NAME[#FIELD][@VERSION]", ErrRef, s)
	}
	var r Ref
	var rest string
	r.Scheme, rest, _ = strings.Cut(s, "://")
	name, field, hasField := strings.Cut(rest, "#")
	last := &name
	if hasField {
		last = &field
	}
	if at := strings.LastIndexByte(*last, '@'); at >= 0 {
		r.Version = (*last)[at+1:]
		*last = (*last)[:at]
		if !made(r.Version, "._-", maxVersion) {
			return Ref{}, fmt.Errorf("%w: %.80q: the part after the @ is not a version", ErrRef, s)
		}
	}
	r.Name, r.Field = name, field
	marks, most := "._-", maxHuaweiName
	if r.Scheme == Alibaba {
		marks, most = "._-/+=@", maxAlibabaName
	}
	switch {
	case !made(r.Name, marks, most):
		return Ref{}, fmt.Errorf("%w: %.80q: the name is not 1 to %d letters, digits and %s", ErrRef, s, most, marks)
	case hasField && (r.Field == "" || len(r.Field) > maxField || !graphic(r.Field)):
		return Ref{}, fmt.Errorf("%w: %.80q: the part after the # is not the name of a field", ErrRef, s)
	}
	return r, nil
}

// made reports whether s is 1 to most letters, digits and marks, with a letter or a digit first: it may become part of a path.
func made(s, marks string, most int) bool {
	if s == "" || len(s) > most || strings.IndexByte(marks, s[0]) >= 0 {
		return false
	}
	for _, r := range s {
		if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune(marks, r)) {
			return false
		}
	}
	return true
}

func graphic(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) })
}

// String returns the reference.
func (r Ref) String() string {
	s := r.Scheme + "://" + r.Name
	if r.Field != "" {
		s += "#" + r.Field
	}
	if r.Version != "" {
		s += "@" + r.Version
	}
	return s
}

// A Value is what a secret manager holds. It prints as a placeholder.
type Value []byte

// Wipe overwrites the value with zeros.
func (v Value) Wipe() { clear(v) }

// String hides the value.
func (v Value) String() string { return "secret (hidden)" }

// Format hides the value from every verb.
func (v Value) Format(f fmt.State, _ rune) { fmt.Fprint(f, v.String()) }

// LogValue hides the value from structured logs.
func (v Value) LogValue() slog.Value { return slog.StringValue(v.String()) }

// Field returns a field of a JSON object: a string as it is, a number or a boolean as it is written. An empty name is the whole value. The
// error wraps [ErrValue] and quotes nothing of the value.
func (v Value) Field(name string) (Value, error) {
	if name == "" {
		return bytes.Clone(v), nil
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(v, &fields) != nil {
		return nil, fmt.Errorf("%w: it is not a JSON object, so it has no field %q", ErrValue, name)
	}
	raw, ok := fields[name]
	if !ok {
		return nil, fmt.Errorf("%w: it has no field %q", ErrValue, name)
	}
	switch {
	case raw[0] == '"':
		var text string
		if json.Unmarshal(raw, &text) == nil {
			return Value(text), nil
		}
	case raw[0] != '{' && raw[0] != '[' && string(raw) != "null":
		return Value(raw), nil
	}
	return nil, fmt.Errorf("%w: its field %q is not text", ErrValue, name)
}

// Text returns the value as a setting: text of one line, whose end may be marked as in a file. The error wraps [ErrValue].
func (v Value) Text() (string, error) {
	b := bytes.TrimSuffix(bytes.TrimSuffix(v, []byte("\n")), []byte("\r"))
	if len(b) == 0 || !utf8.Valid(b) || bytes.ContainsFunc(b, unicode.IsControl) {
		return "", fmt.Errorf("%w: it is not text of one line", ErrValue)
	}
	return string(b), nil
}
