// Package header reads and writes the authenticated header of a ciphertext file.
//
//	fixed part (56 bytes: magic, versions, kind, algorithm, sizes, file ID, data key ID)
//	encryption context ‖ EDKs ‖ key commitment ‖ MAC ‖ zeros up to the header length
//
// docs/format.md section 4 is normative. [Parse] checks the structure, of which there is exactly one spelling; nothing in a header is
// to be believed before [Header.Verify] has checked it against the data key.
package header

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/kmsfs/kmsfs/keyring"
)

// Version is the format version of headers, but for those that have what section 4.8 of docs/format.md added: they are of version 2. Later ones are read, too, if they say that
// their minimum reader version is no larger than this one.
const Version = 1

// version2 is the format version of headers with a generation or with PerFile.
const version2 = 2

// Sizes and bounds, docs/format.md section 4.
const (
	FixedSize  = 56    // bytes before the encryption context
	MaxSize    = 65024 // the largest header length
	MaxEDKs    = 16
	MaxCMK     = 512  // bytes of a CMK URI
	MaxWrapped = 4096 // bytes of a wrapped data key

	sizeUnit        = 512
	commitmentSize  = 32
	macSize         = 32
	endorsementSize = 32
	minSegmentLog   = 12
	maxSegmentLog   = 16

	flagPlainNames = 1
	flagPerFile    = 1 << 8 // volumes, from version 2
	flagRotated    = 1 << 9 // volumes, from version 2: a generation follows the EDKs
	flagsIgnorable = 0xff00 // unknown ones of these do not keep a reader of a later version's header from it
)

// Errors that callers branch on.
var (
	ErrFormat  = errors.New("header: not a kmsfs header")
	ErrVersion = errors.New("header: made by a newer kmsfs")
	ErrAuth    = errors.New("header: does not authenticate")
	ErrBounds  = errors.New("header: out of bounds") // what was to be written is more than a header can hold
)

// A Kind says what a header belongs to.
type Kind uint8

// The kinds of docs/format.md sections 4.1 and 4.8.
const (
	File    Kind = 1
	Volume  Kind = 2
	Current Kind = 3 // the data key that new files of a volume get; its file ID is the volume's
)

// An Algorithm seals segments.
type Algorithm uint8

// The algorithms of docs/format.md section 4.1.
const (
	AES256GCM Algorithm = 1
	AES128GCM Algorithm = 2
	SM4128GCM Algorithm = 3
)

// Algorithms lists all of them.
func Algorithms() []Algorithm { return []Algorithm{AES256GCM, AES128GCM, SM4128GCM} }

// String returns the algorithm's name on the command line.
func (a Algorithm) String() string {
	switch a {
	case AES256GCM:
		return "aes-256-gcm"
	case AES128GCM:
		return "aes-128-gcm"
	case SM4128GCM:
		return "sm4-128-gcm"
	}
	return fmt.Sprintf("algorithm %d", uint8(a))
}

// KeySize returns the length of a data key in bytes, 0 for an unknown algorithm.
func (a Algorithm) KeySize() int {
	switch a {
	case AES256GCM:
		return 32
	case AES128GCM, SM4128GCM:
		return 16
	}
	return 0
}

// ParseAlgorithm is the inverse of String.
func ParseAlgorithm(s string) (Algorithm, error) {
	for _, a := range Algorithms() {
		if a.String() == s {
			return a, nil
		}
	}
	return 0, fmt.Errorf("header: unknown algorithm %q; use aes-256-gcm, aes-128-gcm or sm4-128-gcm", s)
}

// An ID is 16 bytes that name a file, a volume or a data key.
type ID [16]byte

// NewID returns a random ID.
func NewID() ID {
	var id ID
	rand.Read(id[:])
	return id
}

// String returns the ID in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// A Header is the header of a ciphertext file or of a volume.
type Header struct {
	Kind           Kind
	Algorithm      Algorithm
	SegmentSize    int  // bytes of plaintext in a segment
	PlaintextNames bool // volumes only
	Size           int  // the header length H in bytes, padding included
	FileID         ID   // of a volume header: the volume ID
	KeyID          ID   // names the data key; set by Seal
	Context        keyring.EncryptionContext
	EDKs           []keyring.EncryptedDataKey

	PerFile     bool                  // volumes only: every file has a data key of its own
	Generation  uint64                // of a Current: which data key of new files it is, from 1; of a volume: the least that its Current may be, 0 if it need not have one
	Endorsement [endorsementSize]byte // of a Current: see Endorse

	used       int // bytes before the padding, as Parse or Seal has found them
	commitment [commitmentSize]byte
	mac        [macSize]byte
	later      later
}

// A later is what a header of a later version has that this package does not know. It is authenticated, and carried verbatim.
type later struct {
	version byte   // 0: the header is of this package's version
	flags   uint16 // within flagsIgnorable
	fields  string // between the EDKs and the key commitment
}

// FormatVersion returns the format version of a header, [Version] or a later one.
func (h *Header) FormatVersion() int {
	if h.PerFile || h.Generation > 0 {
		return max(version2, int(h.later.version))
	}
	return max(Version, int(h.later.version))
}

// Used returns the number of bytes before the padding. The error wraps [ErrBounds].
func (h *Header) Used() (int, error) {
	b, err := h.appendSigned(nil)
	if err != nil {
		return 0, err
	}
	return len(b) + macSize, nil
}

// SizeFor returns the header length for a new volume with the EDKs of h: the smallest step that leaves 512 bytes
// free, so that another CMK can be added in place. The error wraps [ErrBounds].
func SizeFor(h *Header) (int, error) {
	probe := *h
	probe.Size = MaxSize
	used, err := probe.Used()
	if err != nil {
		return 0, err
	}
	// Header and hole root (512 bytes) together are a power of two, so that slots begin at one.
	for prologue := 2048; prologue <= MaxSize+sizeUnit; prologue *= 2 {
		if size := prologue - sizeUnit; used+sizeUnit <= size {
			return size, nil
		}
	}
	return 0, fmt.Errorf("%w: the wrapped data keys and the encryption context need %d bytes", ErrBounds, used)
}
