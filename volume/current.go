package volume

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
)

// Names of the files that hold the data key of new files once that is not the volume header's any more, docs/format.md section 4.8.
const (
	currentFile = "current"
	currentCopy = "current.copy"
)

// Errors that say why new files cannot be made. The volume can be read all the same.
var (
	ErrCurrent    = errors.New("volume: the data key of new files is lost")
	ErrRolledBack = errors.New("volume: the rotation of the data key was undone") // that of new files is an older one than it has been
)

// A current is what new files get.
type current struct {
	header *header.Header // nil: what the volume header says
	err    error          // why new files cannot be made, nil if they can
}

// Current returns the header that has the data key and the EDKs of new files, of kind [header.Volume] until the data key was rotated. Before Unlock nothing in it is authenticated. The
// error says why files cannot be made; it wraps [ErrCurrent], [ErrRolledBack], or what the CMKs said. All that is there can be read all the same, since every file has its own EDKs.
func (v *Volume) Current() (*header.Header, error) {
	if v.keys == nil {
		if found, _ := v.readCurrent(); len(found) > 0 {
			return found[0].header, nil
		}
		return v.Header(), nil
	}
	c := v.current.Load()
	if c.header == nil {
		return v.Header(), c.err
	}
	return c.header, c.err
}

// CurrentKey returns the data key ID of new files of an unlocked volume, zero if each gets one of its own.
func (v *Volume) CurrentKey() header.ID {
	h, err := v.Current()
	if v.Header().PerFile || err != nil {
		return header.ID{}
	}
	return h.KeyID
}

// Generation returns how often the volume was given another data key for new files.
func (v *Volume) Generation() uint64 {
	if h, err := v.Current(); err == nil && h.Kind == header.Current {
		return h.Generation
	}
	return 0
}

// Expect says that somebody has seen the volume with this generation: an older one is refused from then on. It is called right after Unlock.
func (v *Volume) Expect(generation uint64) {
	v.expected = generation
	c := v.current.Load()
	if c.err == nil && v.Generation() < generation {
		v.current.Store(&current{err: fmt.Errorf("%w: new files would get a data key of generation %d, but this machine has seen generation %d", ErrRolledBack, v.Generation(), generation)})
	}
}

// readCurrent reads the two files, without a key: what parses, the largest generation first, and what is wrong with the others. Both are empty if the data key was never rotated.
func (v *Volume) readCurrent() (found []candidate, faults []HeaderFault) {
	missing := 0
	for _, name := range []string{currentFile, currentCopy} {
		c, err := v.readHeader(name, header.Current)
		if errors.Is(err, unix.ENOENT) {
			missing++
		}
		h, vh := c.header, v.Header()
		switch {
		case err != nil:
		case h.FileID != vh.FileID:
			err = errors.New("the header of something else")
		case len(c.raw) != h.Size || h.Size != vh.Size || h.Algorithm != vh.Algorithm || h.SegmentSize != vh.SegmentSize || !h.Context.Equal(vh.Context):
			err = fmt.Errorf("%w: not what this volume's are like", header.ErrFormat)
		}
		if err != nil {
			faults = append(faults, HeaderFault{filepath.Join(MetaDir, name), err})
			continue
		}
		found = append(found, c)
	}
	if missing == 2 {
		return nil, nil
	}
	slices.SortStableFunc(found, func(a, b candidate) int { return cmp.Compare(b.header.Generation, a.header.Generation) })
	return found, faults
}

// endorsed is readCurrent with the volume's data key: what it does not vouch for is at fault, too. No CMK is asked.
func (v *Volume) endorsed(volumeKey keyring.DataKey) (found []candidate, faults []HeaderFault) {
	all, faults := v.readCurrent()
	for _, c := range all {
		if err := c.header.EndorsedBy(volumeKey); err != nil {
			faults = append(faults, HeaderFault{filepath.Join(MetaDir, c.name), err})
			continue
		}
		found = append(found, c)
	}
	return found, faults
}

// unlockCurrent unwraps the data key of new files. What has the larger generation was written later; an older one never takes its place.
func (v *Volume) unlockCurrent(ctx context.Context, k keyring.Keyring, volumeKey keyring.DataKey) *current {
	found, faults := v.endorsed(volumeKey)
	least := v.Header().Generation
	switch {
	case len(found) == 0 && len(faults) > 0:
		return &current{err: fmt.Errorf("%w: %s: %w", ErrCurrent, filepath.Join(v.dir, faults[0].Path), faults[0].Err)}
	case len(found) == 0 && least > 0:
		return &current{err: fmt.Errorf("%w: %s and its copy are missing", ErrCurrent, filepath.Join(v.dir, MetaDir, currentFile))}
	case len(found) == 0:
		return &current{}
	case found[0].header.Generation < least:
		return &current{err: fmt.Errorf("%w: %s is of generation %d, the volume header knows of %d", ErrRolledBack, filepath.Join(v.dir, MetaDir, found[0].name), found[0].header.Generation, least)}
	}
	var failure error
	for _, c := range found {
		if c.header.Generation != found[0].header.Generation {
			break
		}
		dk, err := openKey(ctx, k, c.header)
		if err == nil {
			v.keys.known.keep(c.header.KeyID, dk)
			if len(faults) > 0 {
				v.warning = fmt.Sprintf("using %s: %s: %v", c.name, faults[0].Path, faults[0].Err)
			}
			return &current{header: c.header}
		}
		fault := HeaderFault{filepath.Join(MetaDir, c.name), err}
		faults = append(faults, fault)
		if failure == nil {
			failure = fmt.Errorf("%w: %s: %w", ErrCurrent, filepath.Join(v.dir, fault.Path), err)
		}
	}
	return &current{err: failure}
}

// CheckCurrent authenticates both files that hold the data key of new files, and looks whether the volume header knows of them.
func (v *Volume) CheckCurrent() []HeaderFault {
	_, faults := v.soundCurrent()
	return faults
}

// MendCurrent writes the files that CheckCurrent finds fault with anew, each from the other, and makes them durable. The error wraps [ErrCurrent] if neither is sound.
func (v *Volume) MendCurrent() error {
	sound, faults := v.soundCurrent()
	if len(faults) == 0 {
		return nil
	}
	if sound == nil {
		return ErrCurrent
	}
	if err := v.writeBoth(currentCopy, currentFile, sound.raw); err != nil {
		return err
	}
	return v.notice(sound.header.Generation)
}

// soundCurrent returns the file that holds the data key of new files, nil if neither authenticates, and what is wrong with the two.
func (v *Volume) soundCurrent() (sound *candidate, faults []HeaderFault) {
	found, faults := v.endorsed(v.keys.known.get(v.keys.volume))
	least := v.Header().Generation
	for _, c := range found {
		var err error
		dk := v.keys.known.get(c.header.KeyID)
		switch {
		case sound != nil && bytes.Equal(c.raw, sound.raw):
		case sound != nil:
			err = fmt.Errorf("not what %s is: a rotation or a rewrap was cut off", sound.name)
		case c.header.Generation < max(least, v.expected):
			err = fmt.Errorf("%w: it is of generation %d, %d was there", ErrRolledBack, c.header.Generation, max(least, v.expected))
		case dk == nil:
			err = errors.New("made under a data key that no CMK unwraps now")
		default:
			err = c.header.Verify(dk)
		}
		if err != nil {
			faults = append(faults, HeaderFault{filepath.Join(MetaDir, c.name), err})
		} else if sound == nil {
			sound = &c
		}
	}
	switch {
	case len(found) == 0 && len(faults) == 0 && max(least, v.expected) > 0:
		faults = append(faults, HeaderFault{filepath.Join(MetaDir, currentFile), errors.New("missing, and so is the copy")})
	case sound != nil && least < sound.header.Generation:
		faults = append(faults, HeaderFault{filepath.Join(MetaDir, headerFile), fmt.Errorf("does not know of generation %d of the data key: a rotation was cut off", sound.header.Generation)})
	}
	return sound, faults
}

// notice has the volume header say that the data key of new files is of this generation at least.
func (v *Volume) notice(generation uint64) error {
	if v.Header().Generation >= generation {
		return nil
	}
	changed := *v.Header()
	changed.Generation = generation
	return v.setHeader(&changed)
}
