package keyring

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"
)

// Bounds of an encryption context, docs/format.md section 4.3.
const (
	MaxContextEntries = 64
	MaxContextSize    = 8192 // bytes of the encoded field, without its length
)

// ErrContext says that an encryption context, or its encoding, is not valid.
var ErrContext = errors.New("keyring: bad encryption context")

// An EncryptionContext is a set of names and values that is bound into every wrapped data key. It is not secret.
type EncryptionContext map[string]string

// AppendTo appends the canonical encoding, docs/format.md section 4.3, to dst. The error wraps [ErrContext].
func (ec EncryptionContext) AppendTo(dst []byte) ([]byte, error) {
	if len(ec) > MaxContextEntries {
		return nil, fmt.Errorf("%w: %d entries, at most %d", ErrContext, len(ec), MaxContextEntries)
	}
	start := len(dst)
	dst = append(dst, 0, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(ec)))
	for _, k := range slices.Sorted(maps.Keys(ec)) {
		v := ec[k]
		if k == "" || !utf8.ValidString(k) || !utf8.ValidString(v) || len(k)+len(v) > MaxContextSize {
			return nil, fmt.Errorf("%w: entry %.40q is empty, too long or not UTF-8", ErrContext, k)
		}
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(k)))
		dst = append(dst, k...)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(v)))
		dst = append(dst, v...)
	}
	n := len(dst) - start - 2
	if n > MaxContextSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrContext, n, MaxContextSize)
	}
	binary.BigEndian.PutUint16(dst[start:], uint16(n))
	return dst, nil
}

// ParseEncryptionContext reads a canonical encoding at the start of b and returns what follows it. Any other
// spelling of the same context is an error that wraps [ErrContext].
func ParseEncryptionContext(b []byte) (ec EncryptionContext, rest []byte, err error) {
	field, rest, ok := cutString(b)
	if !ok || len(field) < 2 || len(field) > MaxContextSize {
		return nil, nil, fmt.Errorf("%w: bad length", ErrContext)
	}
	count := int(binary.BigEndian.Uint16(field))
	if count > MaxContextEntries {
		return nil, nil, fmt.Errorf("%w: %d entries, at most %d", ErrContext, count, MaxContextEntries)
	}
	field = field[2:]
	ec = make(EncryptionContext, count)
	last := ""
	for range count {
		var k, v []byte
		if k, field, ok = cutString(field); ok {
			v, field, ok = cutString(field)
		}
		if !ok || string(k) <= last || !utf8.Valid(k) || !utf8.Valid(v) {
			return nil, nil, fmt.Errorf("%w: entries are cut, not sorted or not UTF-8", ErrContext)
		}
		last = string(k)
		ec[last] = string(v)
	}
	if len(field) > 0 {
		return nil, nil, fmt.Errorf("%w: bytes after the last entry", ErrContext)
	}
	return ec, rest, nil
}

// cutString cuts a 16-bit length and that many bytes off b.
func cutString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+n {
		return nil, nil, false
	}
	return b[2 : 2+n], b[2+n:], true
}

// Digest returns the SHA-256 of the canonical encoding; providers bind it into the calls that wrap. The
// error wraps [ErrContext].
func (ec EncryptionContext) Digest() ([sha256.Size]byte, error) {
	b, err := ec.AppendTo(nil)
	return sha256.Sum256(b), err
}

// Equal reports whether two contexts have the same entries.
func (ec EncryptionContext) Equal(other EncryptionContext) bool { return maps.Equal(ec, other) }
