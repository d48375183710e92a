package signature

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrFormat says that a text holds no signature.
var ErrFormat = errors.New("signature: not a kmsfs signature")

// Magic is the first line of a signature.
const Magic = "kmsfs-signature-1\n"

// Bounds of a signature in text.
const (
	MaxSize = 4096 // bytes of all of it

	maxCMK     = 512
	maxVersion = 128
	maxValue   = 512 // what RSA with 4,096 bits makes
)

// A Signature is the signature of one CMK over one digest. What it says of itself proves nothing: [Signature.Verify] does, with a key that comes
// from elsewhere.
type Signature struct {
	Algorithm Algorithm
	CMK       string            // the URI of the CMK that made it
	Version   string            // the ID of the version of the CMK's key, where the provider has such
	Key       [sha256.Size]byte // the [PublicKey.Fingerprint] of its public key
	Digest    [DigestSize]byte
	Value     []byte
}

// Append appends the text of a signature, of which there is one spelling.
func (s *Signature) Append(dst []byte) []byte {
	version := s.Version
	if version == "" {
		version = "-"
	}
	return fmt.Appendf(dst, "%salgorithm %s\ncmk %s\nversion %s\nkey %x\ndigest %x\nvalue %s\n",
		Magic, s.Algorithm, s.CMK, version, s.Key, s.Digest, base64.StdEncoding.EncodeToString(s.Value))
}

// Parse is the inverse of [Signature.Append]. The error wraps [ErrFormat].
func Parse(text []byte) (*Signature, error) {
	bad := func(what string) (*Signature, error) { return nil, fmt.Errorf("%w: %s", ErrFormat, what) }
	rest, ok := strings.CutPrefix(string(text), Magic)
	if !ok || len(text) > MaxSize {
		return bad("no line " + strings.TrimSpace(Magic))
	}
	s := new(Signature)
	var algorithm, key, digest, value string
	for _, field := range []struct {
		name string
		into *string
	}{{"algorithm", &algorithm}, {"cmk", &s.CMK}, {"version", &s.Version}, {"key", &key}, {"digest", &digest}, {"value", &value}} {
		var line string
		if line, rest, ok = strings.Cut(rest, "\n"); ok {
			*field.into, ok = strings.CutPrefix(line, field.name+" ")
		}
		if !ok {
			return bad("no line " + field.name)
		}
	}
	s.Algorithm = Algorithm(algorithm)
	if s.Version == "-" {
		s.Version = ""
	}
	var err error
	if s.Value, err = base64.StdEncoding.DecodeString(value); err != nil || len(s.Value) == 0 || len(s.Value) > maxValue {
		return bad("bad value")
	}
	switch {
	case s.Algorithm != RSAPSS && s.Algorithm != ECDSA && s.Algorithm != SM2:
		return bad(fmt.Sprintf("unknown algorithm %.40q", algorithm))
	case !word(s.CMK, maxCMK):
		return bad("bad CMK")
	case s.Version != "" && !word(s.Version, maxVersion):
		return bad("bad version")
	case !unhex(&s.Key, key):
		return bad("bad key")
	case !unhex(&s.Digest, digest):
		return bad("bad digest")
	case !bytes.Equal(s.Append(nil), text):
		return bad("there is another spelling of it")
	}
	return s, nil
}

// word reports whether s is 1 to most characters of ASCII that show.
func word(s string, most int) bool {
	return s != "" && len(s) <= most && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

func unhex(dst *[32]byte, s string) bool {
	n, err := hex.Decode(dst[:], []byte(s[:min(len(s), 2*len(dst))]))
	return err == nil && n == len(dst)
}

// Verify checks that k made s, and over digest. The error wraps [ErrOtherKey], [ErrForged] or [ErrChanged].
func (s *Signature) Verify(k *PublicKey, digest []byte) error {
	if s.Key != k.Fingerprint() || s.Algorithm != k.algorithm {
		return ErrOtherKey
	}
	if value, err := k.Check(s.Digest[:], s.Value); err != nil || !bytes.Equal(value, s.Value) {
		return ErrForged
	}
	if !bytes.Equal(digest, s.Digest[:]) {
		return ErrChanged
	}
	return nil
}

// Split finds the signature at the end of a text of size bytes, which may be all of it, and returns how many bytes are before it. The error wraps
// [ErrFormat], or is that of r.
func Split(r io.ReaderAt, size int64) (*Signature, int64, error) {
	tail := make([]byte, min(size, MaxSize))
	if n, err := r.ReadAt(tail, size-int64(len(tail))); n < len(tail) {
		return nil, 0, err
	}
	// It begins a line. No line of what is before can be its first one, or the last of them is meant.
	at := bytes.LastIndex(tail, []byte("\n"+Magic)) + 1
	if at == 0 && int64(len(tail)) < size {
		return nil, 0, fmt.Errorf("%w: there is none at its end", ErrFormat)
	}
	s, err := Parse(tail[at:])
	return s, size - int64(len(tail)-at), err
}
