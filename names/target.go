package names

import (
	"encoding/hex"
	"strings"
)

const (
	// TargetOverhead is how many bytes longer a sealed target or attribute value is: a random number and the synthetic IV.
	TargetOverhead = randomSize + block

	randomSize       = 16
	maxLink          = 4095 // bytes of a symbolic link's target
	longTargetPrefix = "kmsfs.link."
	longTargetSize   = len(longTargetPrefix) + 32
)

// A Target is a sealed symbolic-link target.
type Target struct {
	Disk string // the target to store; empty if it would be too long
	Blob []byte // what to store elsewhere if it is
}

// Long reports whether the target does not fit into a symbolic link.
func (t Target) Long() bool { return t.Blob != nil }

// SealTarget seals a symbolic link's target, docs/format.md section 8.
func (k *Keys) SealTarget(target string) Target {
	blob := sealRandom(k.links, nil, nil, []byte(target))
	if disk := strict.EncodeToString(blob); len(disk) <= maxLink {
		return Target{Disk: disk}
	}
	return Target{Blob: blob}
}

// OpenTarget opens a stored target in the short form.
func (k *Keys) OpenTarget(disk string) (string, error) {
	blob, err := decode(nil, disk)
	if err != nil {
		return "", err
	}
	return k.OpenLongTarget(blob)
}

// OpenLongTarget opens a sealed target in its raw form.
func (k *Keys) OpenLongTarget(blob []byte) (string, error) {
	b, err := openRandom(k.links, nil, nil, blob)
	return string(b), err
}

// LongTarget returns the stored target of a link in the long form whose blob is kept under id.
func LongTarget(id [16]byte) string { return longTargetPrefix + hex.EncodeToString(id[:]) }

// ParseLongTarget is the inverse of LongTarget.
func ParseLongTarget(disk string) (id [16]byte, ok bool) {
	digits, found := strings.CutPrefix(disk, longTargetPrefix)
	if !found || len(disk) != longTargetSize || strings.ToLower(digits) != digits {
		return id, false
	}
	_, err := hex.Decode(id[:], []byte(digits))
	return id, err == nil
}

// TargetSize returns the length of the plaintext of a stored target of n bytes. For the long form it is not known: long is true.
func TargetSize(n int) (size int64, long bool) {
	if n == longTargetSize {
		return 0, true
	}
	return int64(max(strict.DecodedLen(n)-TargetOverhead, 0)), false
}
