// Package names seals the names, symbolic-link targets and extended attributes of a volume.
//
// Everything is AES-SIV, so that equal names in one directory are equal when sealed and nothing depends on a nonce that must not repeat.
// It works on strings and bytes only; docs/format.md sections 7 to 9 are normative.
package names

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// Names of a directory's own links, docs/format.md section 7.
const (
	DirLink     = "kmsfs.dir"
	DirLinkCopy = "kmsfs.dir.copy"

	longPrefix = "kmsfs.long."
	namePrefix = "kmsfs.name."
	copyPrefix = "kmsfs.copy."

	maxName = 255 // bytes, plaintext or stored
)

// Errors that callers branch on.
var (
	// ErrAuth says that something was not sealed by this volume, or not for this place.
	ErrAuth = errors.New("names: does not authenticate")
	// ErrTooLong says that a name has more than 255 bytes.
	ErrTooLong = errors.New("names: name too long")
)

// strict refuses a second spelling of the same bytes.
var strict = base64.RawURLEncoding.Strict()

// Keys seals and opens for one volume. It may be used by several goroutines at once.
type Keys struct {
	names, links, xattrs, directories hidden
}

// A hidden is one key: no verb of fmt looks into a function.
type hidden func() *siv

// New derives the keys from a volume's data key and ID, docs/format.md section 4.4.
func New(dek []byte, volumeID [16]byte) (*Keys, error) {
	prk, err := hkdf.Extract(sha256.New, dek, volumeID[:])
	if err != nil {
		return nil, err
	}
	k := new(Keys)
	for _, key := range []struct {
		use string
		key *hidden
	}{{"names", &k.names}, {"links", &k.links}, {"xattrs", &k.xattrs}, {"directories", &k.directories}} {
		b, err := hkdf.Expand(sha256.New, prk, "kmsfs v1 "+key.use, sivKeySize)
		if err != nil {
			return nil, err
		}
		s, err := newSIV(b)
		if err != nil {
			return nil, err
		}
		*key.key = func() *siv { return s }
	}
	return k, nil
}

// decode is the inverse of [base64.Encoding.EncodeToString]; a second spelling of the same bytes is refused.
func decode(dst []byte, s string) ([]byte, error) {
	// Line breaks are what even a strict decoder skips.
	if strings.IndexByte(s, '\n') >= 0 || strings.IndexByte(s, '\r') >= 0 {
		return nil, ErrAuth
	}
	b, err := strict.AppendDecode(dst, []byte(s))
	if err != nil {
		return nil, ErrAuth
	}
	return b, nil
}

// An Entry is how a name is stored.
type Entry struct {
	Disk   string // the name of the ciphertext entry
	Long   bool   // Disk is a digest: the two side links tell the name
	Sealed string // target of the side links
}

// Name seals a name in the directory with the given ID. The error is [ErrTooLong] for names over 255 bytes.
func (k *Keys) Name(dir [16]byte, plain string) (Entry, error) {
	if len(plain) > maxName {
		return Entry{}, ErrTooLong
	}
	var buf [maxName + block]byte
	var text [2 * maxName]byte
	c := k.names().seal(buf[:0], []byte(plain), dir[:])
	sealed := string(strict.AppendEncode(text[:0], c))
	if len(sealed) <= maxName {
		return Entry{Disk: sealed}, nil
	}
	return Entry{Disk: longPrefix + digest(c), Long: true, Sealed: sealed}, nil
}

// Open opens a stored name that [IsLong] does not hold for.
func (k *Keys) Open(dir [16]byte, disk string) (string, error) {
	var buf [maxName]byte
	if len(disk) > maxName {
		return "", ErrAuth
	}
	c, err := decode(buf[:0], disk)
	if err != nil {
		return "", err
	}
	return k.openName(dir, c)
}

// OpenLong opens a stored name that [IsLong] holds for, given the target of one of its side links.
func (k *Keys) OpenLong(dir [16]byte, disk, sealed string) (string, error) {
	c, err := decode(nil, sealed)
	if err != nil || longPrefix+digest(c) != disk {
		return "", ErrAuth
	}
	return k.openName(dir, c)
}

func (k *Keys) openName(dir [16]byte, c []byte) (string, error) {
	if len(c) <= block || len(c) > block+maxName {
		return "", ErrAuth
	}
	var buf [maxName]byte
	plain, err := k.names().open(buf[:0], c, dir[:])
	if err != nil {
		return "", err
	}
	name := string(plain)
	if name == "." || name == ".." || strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0 {
		return "", ErrAuth
	}
	return name, nil
}

func digest(c []byte) string {
	h := sha256.Sum256(c)
	return strict.EncodeToString(h[:])
}

// IsLong reports whether a stored name stands for a long one.
func IsLong(disk string) bool { return strings.HasPrefix(disk, longPrefix) }

// IsSide reports whether a stored name is not an entry but belongs to the directory or to a long name.
func IsSide(disk string) bool {
	return disk == DirLink || disk == DirLinkCopy || strings.HasPrefix(disk, namePrefix) || strings.HasPrefix(disk, copyPrefix)
}

// SideLinks returns the names of the two links that tell the long name stored as disk.
func SideLinks(disk string) (name, copy string) {
	h := strings.TrimPrefix(disk, longPrefix)
	return namePrefix + h, copyPrefix + h
}

// NewDirID returns a random directory ID.
func NewDirID() [16]byte {
	var id [16]byte
	rand.Read(id[:])
	return id
}

// SealDirID returns the target of a directory's ID links.
func (k *Keys) SealDirID(id [16]byte) string {
	return strict.EncodeToString(k.directories().seal(nil, id[:], nil))
}

// OpenDirID is the inverse of SealDirID.
func (k *Keys) OpenDirID(target string) ([16]byte, error) {
	c, err := decode(nil, target)
	if err != nil {
		return [16]byte{}, fmt.Errorf("directory ID: %w", err)
	}
	id, err := k.directories().open(nil, c, nil)
	if err != nil || len(id) != 16 {
		return [16]byte{}, fmt.Errorf("directory ID: %w", ErrAuth)
	}
	return [16]byte(id), nil
}

// SideOf returns the stored name of the entry whose long name a side link tells; ok is false for any other name.
func SideOf(side string) (disk string, ok bool) {
	for _, prefix := range []string{namePrefix, copyPrefix} {
		if h, found := strings.CutPrefix(side, prefix); found {
			return longPrefix + h, true
		}
	}
	return "", false
}
