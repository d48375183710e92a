// Package manifest lists what is in a volume, and names what has changed since.
//
// A manifest has a line for each entry of the ciphertext directory, in one order, with a digest over the sealed form of each file, so that
// neither making one nor comparing one needs a key: keys only add the plaintext paths. It is made and compared as a stream. Nothing here is
// secret or authenticated; whoever signs a manifest vouches for it. docs/signing.md is normative for the text.
package manifest

import (
	"errors"
	"strings"
	"time"

	"github.com/kmsfs/kmsfs/header"
)

// ErrFormat says that a text is not a manifest.
var ErrFormat = errors.New("manifest: not a kmsfs manifest")

// A Type says what an entry is.
type Type byte

// The types.
const (
	Directory   Type = 'd'
	File        Type = 'f'
	Link        Type = 'l' // symbolic
	BlockDevice Type = 'b'
	CharDevice  Type = 'c'
	FIFO        Type = 'p'
	Socket      Type = 's'
)

// A Digest is a SHA-256 digest; all zeros is none.
type Digest [32]byte

// A Head says what a manifest is of.
type Head struct {
	Volume header.ID
	Header Digest    // of what a rewrap leaves alone of the volume header
	Time   time.Time // when it was begun, to the second
	Plain  bool      // entries have their plaintext paths
}

// An Entry is one entry of a ciphertext directory.
type Entry struct {
	Path   string // in the ciphertext directory, names with slashes between; empty for the ciphertext directory itself
	Plain  string // in the mounted volume, from /; empty where there is none: not told, or a side link
	Type   Type
	Mode   uint32 // of permission, with the set-ID and sticky bits
	UID    uint32
	GID    uint32
	Xattrs Digest // of the extended attributes, none if there are none

	Size   int64     // of files: bytes of plaintext
	ID     header.ID // of files with content
	Digest Digest    // of files with content: over the sealed form; of links: over the stored target

	Major, Minor uint32 // of devices
}

// child is a path in a directory.
func child(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// before reports whether the path a comes before b: directories before what is in them, and names in one directory by their bytes.
func before(a, b string) bool {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	switch {
	case n == len(a) || n == len(b):
		return len(a) < len(b)
	case a[n] == '/' || b[n] == '/':
		return a[n] == '/'
	}
	return a[n] < b[n]
}

// below reports whether path is in the directory dir, at any depth.
func below(path, dir string) bool {
	return dir == "" && path != "" || strings.HasPrefix(path, dir+"/")
}
