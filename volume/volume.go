// Package volume creates, opens and unlocks a ciphertext directory.
//
// A volume is a directory with a header of its own in .kmsfs/volume (docs/format.md, sections 2 and 4). Opening it needs no key;
// [Volume.Unlock] unwraps its data key through a keyring, after which headers of files can be made and opened without
// asking any CMK again.
package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
)

// Names of a volume's own files, docs/format.md section 2.
const (
	MetaDir  = ".kmsfs"    // the directory of the volume's own files, in the root of the ciphertext directory
	LinksDir = "links"     // in MetaDir: the targets of long symbolic links
	WorkDir  = "reencrypt" // in MetaDir: files that are being sealed anew

	headerFile = "volume"
	headerCopy = "volume.copy"
)

// Errors that callers branch on.
var (
	ErrNotVolume = errors.New("volume: not a kmsfs volume")
	ErrNotEmpty  = errors.New("volume: directory is not empty")
	ErrInUse     = errors.New("volume: already mounted")
	ErrDamaged   = errors.New("volume: the volume header is damaged")
)

// A Volume is an open ciphertext directory. Its methods may be called by several goroutines at once, but for
// Lock, Unlock and Close.
type Volume struct {
	dir     string
	root    int // descriptor of the ciphertext directory
	meta    int // descriptor of its MetaDir; holds the lock
	warning string

	// The candidates for the volume header that parse, best first: the file and, if it differs, its copy.
	candidates []candidate
	keys       *keys                         // nil until Unlock
	changed    atomic.Pointer[header.Header] // takes the place of the candidates; nil until it was written anew
	current    atomic.Pointer[current]       // nil until Unlock
	expected   uint64                        // generation that somebody has seen; set by Unlock and Expect
}

// A candidate is a header that parses.
type candidate struct {
	name   string
	header *header.Header
	raw    []byte
}

// Open opens the volume in dir. It reads the volume header but needs no key and no network. The error wraps
// [ErrNotVolume] if there is no volume, [ErrDamaged] if neither the header nor its copy can be parsed, and
// [header.ErrVersion] if a newer kmsfs made it.
func Open(dir string) (_ *Volume, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("open volume: %w", err)
	}
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open volume: %w", &os.PathError{Op: "open", Path: dir, Err: err})
	}
	v := &Volume{dir: dir, root: root, meta: -1}
	defer func() {
		if err != nil {
			v.Close()
		}
	}()
	v.meta, err = unix.Openat(root, MetaDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%w: %s has no %s directory", ErrNotVolume, dir, MetaDir)
	} else if err != nil {
		return nil, fmt.Errorf("open volume: %w", &os.PathError{Op: "open", Path: filepath.Join(dir, MetaDir), Err: err})
	}
	if err := v.readHeaders(); err != nil {
		return nil, err
	}
	return v, nil
}

// readHeaders fills the candidates.
func (v *Volume) readHeaders() error {
	v.candidates, v.warning = nil, ""
	var first error // why the header file itself was no good
	var before []byte
	missing := 0
	for _, name := range []string{headerFile, headerCopy} {
		c, err := v.readHeader(name, header.Volume)
		if errors.Is(err, unix.ENOENT) {
			missing++
		}
		if err != nil {
			if first == nil {
				first = fmt.Errorf("%s: %w", filepath.Join(v.dir, MetaDir, name), err)
			}
			continue
		}
		if before != nil && bytes.Equal(c.raw, before) {
			continue // asking CMKs for the same again would only take time
		}
		before = c.raw
		v.candidates = append(v.candidates, c)
	}
	switch {
	case missing == 2:
		return fmt.Errorf("%w: %s has no file %s", ErrNotVolume, filepath.Join(v.dir, MetaDir), headerFile)
	case len(v.candidates) == 0 && errors.Is(first, header.ErrVersion):
		return first
	case len(v.candidates) == 0:
		return fmt.Errorf("%w, and so is its copy: %w", ErrDamaged, first)
	case first != nil && v.candidates[0].name == headerCopy:
		v.warning = fmt.Sprintf("using %s: %v", headerCopy, first)
	case first != nil:
		v.warning = fmt.Sprintf("the copy of the volume header is damaged: %v", first)
	}
	return nil
}

// readHeader reads a header of this kind from one of the volume's own files. It is not authenticated yet.
func (v *Volume) readHeader(name string, kind header.Kind) (c candidate, err error) {
	c.name = name
	if c.raw, err = readSmall(v.meta, name, header.MaxSize); err != nil {
		return c, err
	}
	if c.header, err = header.Parse(c.raw); err == nil && c.header.Kind != kind {
		err = errors.New("the header of something else")
	}
	return c, err
}

// readSmall reads a regular file of at most limit bytes; it follows no symbolic link.
func readSmall(dirfd int, name string, limit int64) ([]byte, error) {
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > limit {
		return nil, fmt.Errorf("not a regular file of at most %d bytes", limit)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// Header returns the volume's header. Before Unlock nothing in it is authenticated.
func (v *Volume) Header() *header.Header {
	if h := v.changed.Load(); h != nil {
		return h
	}
	return v.candidates[0].header
}

// Dir returns the absolute path of the ciphertext directory, symbolic links resolved.
func (v *Volume) Dir() string { return v.dir }

// InTree reports whether an entry of the ciphertext directory itself belongs to the volume's tree. The volume's own files do not, nor does the lost+found of
// the file system below, unless names are stored as they are.
func (v *Volume) InTree(name string) bool {
	return name != MetaDir && (name != "lost+found" || v.Header().PlaintextNames)
}

// RootFd returns a descriptor of the ciphertext directory, valid until Close.
func (v *Volume) RootFd() int { return v.root }

// MetaFd returns a descriptor of the directory of the volume's own files, valid until Close.
func (v *Volume) MetaFd() int { return v.meta }

// OpenLinks opens LinksDir below an open MetaDir, for calls that name what is in it, and no symbolic link that somebody may have put in its place.
func OpenLinks(meta int) (fd int, err error) {
	return unix.Openat(meta, LinksDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// Warning returns what is wrong with the volume header or its copy, or "".
func (v *Volume) Warning() string { return v.warning }

// Lock makes sure that nobody else mounts the volume while it is open; the error wraps [ErrInUse] if somebody does.
// The lock goes with the process. It is for before Unlock: the volume header is read again, since whoever had the lock may have changed it.
func (v *Volume) Lock() error {
	err := unix.Flock(v.meta, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%w: %s", ErrInUse, v.dir)
	} else if err != nil {
		return fmt.Errorf("lock volume: %w", &os.PathError{Op: "flock", Path: filepath.Join(v.dir, MetaDir), Err: err})
	}
	return v.readHeaders()
}

// Close forgets the keys, closes the directory and gives up the lock: last, since whoever waits for it may unmount what the directory is on.
func (v *Volume) Close() error {
	if v.keys != nil {
		v.keys.known.wipe()
	}
	err := unix.Close(v.root)
	if v.meta >= 0 {
		unix.Close(v.meta)
	}
	return err
}
