package volume

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
)

// A HeaderFault is what is wrong with one of the two files that hold a header of the volume.
type HeaderFault struct {
	Path string // below the ciphertext directory
	Err  error
}

// CheckHeaders authenticates both files that hold the header of an unlocked volume. The second must be what the first is.
func (v *Volume) CheckHeaders() []HeaderFault {
	_, faults := v.soundHeader()
	return faults
}

// MendHeaders writes the files that CheckHeaders finds fault with anew, from the other, and makes them durable.
func (v *Volume) MendHeaders() error {
	raw, faults := v.soundHeader()
	if raw == nil {
		return ErrDamaged
	}
	for _, f := range faults {
		if err := v.replace(filepath.Base(f.Path), raw); err != nil {
			return fmt.Errorf("mend %s: %w", filepath.Join(v.dir, f.Path), err)
		}
	}
	if len(faults) > 0 {
		v.warning = ""
	}
	return unix.Fsync(v.meta)
}

// soundHeader returns the bytes of the better one of the two files, nil if neither authenticates, and what is wrong with them.
func (v *Volume) soundHeader() (sound []byte, faults []HeaderFault) {
	for _, name := range []string{headerFile, headerCopy} {
		c, err := v.readHeader(name, header.Volume)
		switch {
		case err != nil:
		case c.header.FileID != v.Header().FileID:
			err = errors.New("the header of something else")
		case len(c.raw) != c.header.Size:
			err = fmt.Errorf("%w: %d bytes instead of %d", header.ErrFormat, len(c.raw), c.header.Size)
		default:
			err = c.header.Verify(v.keys.known.get(v.keys.volume))
		}
		if err == nil && sound != nil && !bytes.Equal(c.raw, sound) {
			err = fmt.Errorf("sound, but not what %s is", headerFile)
		}
		if err != nil {
			faults = append(faults, HeaderFault{filepath.Join(MetaDir, name), err})
		} else if sound == nil {
			sound = c.raw
		}
	}
	return sound, faults
}

// setHeader gives the volume another header, under its own data key.
func (v *Volume) setHeader(h *header.Header) error {
	raw, err := h.Seal(v.keys.known.get(v.keys.volume))
	if err == nil {
		err = v.writeBoth(headerCopy, headerFile, raw)
	}
	if err == nil {
		v.changed.Store(h)
	}
	return err
}

// writeBoth replaces a file and its copy. The copy is durable before the file is touched, so that one of them is whole whatever happens.
func (v *Volume) writeBoth(copied, file string, raw []byte) error {
	for _, name := range []string{copied, file} {
		if err := errors.Join(v.replace(name, raw), unix.Fsync(v.meta)); err != nil {
			return fmt.Errorf("write %s/%s: %w", MetaDir, name, err)
		}
	}
	return nil
}

// replace replaces a file in the volume's own directory.
func (v *Volume) replace(name string, b []byte) error {
	const temporary = "volume.new"
	if err := unix.Unlinkat(v.meta, temporary, 0); err != nil && err != unix.ENOENT { // of a run that was killed
		return &os.PathError{Op: "remove", Path: temporary, Err: err}
	}
	fd, err := unix.Openat(v.meta, temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), temporary)
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = unix.Renameat(v.meta, temporary, v.meta, name)
	}
	if err != nil {
		_ = unix.Unlinkat(v.meta, temporary, 0)
	}
	return err
}
