package manifest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/volume"
)

// ErrOtherVolume says that a manifest is of another volume.
var ErrOtherVolume = errors.New("manifest: of another volume")

// A Kind says what has become of an entry.
type Kind string

// The kinds of differences.
const (
	Changed    Kind = "changed"    // another content or target of the same file or link; an older one, perhaps
	Swapped    Kind = "swapped"    // what the manifest has in another place that has changed as well
	Replaced   Kind = "replaced"   // another file, or an entry of another type
	Moved      Kind = "moved"      // what the manifest has in a place where it is no longer
	Removed    Kind = "removed"    // the manifest has it
	Added      Kind = "added"      // the manifest does not have it
	Metadata   Kind = "metadata"   // mode, owner, extended attributes
	Unreadable Kind = "unreadable" // the storage below refuses: nothing is known
)

// A Difference is an entry that is not what a manifest says.
type Difference struct {
	Kind  Kind
	Path  string // in the ciphertext directory
	Plain string // in the mounted volume, as the manifest tells; may be empty
	From  string // of Swapped and Moved: the ciphertext path that the manifest has it at
	Cause string // what differs
}

// CompareOptions say what is compared. The zero value compares everything.
type CompareOptions struct {
	Content  bool // neither modes nor owners nor attributes, which copies may not keep
	Workers  int  // as for Options
	Progress func(entries, bytes int64)
	Suspect  func(fd int) bool
}

// maxHeld bounds the differences that are held back to find out which files have changed places. Further ones are told as Replaced, Removed
// and Added.
const maxHeld = 1 << 16

// A comparison is one comparison of a manifest and a volume.
type comparison struct {
	r    *Reader
	o    CompareOptions
	next *Entry  // of the manifest; nil at its end
	sum  Summary // of the manifest, as far as it was read

	hidden string // path of a directory that could not be read
	hides  bool

	held  []held
	tell  func(Difference)
	count int64
}

// A held difference may turn out to be one half of a swap or a move.
type held struct {
	Difference
	was, is header.ID // of the file that the manifest has there, and of the file that is there
}

// Compare tells every difference between a manifest and a volume, in order but for those that come in such numbers that they cannot be held, and
// returns how many there are. The error wraps [ErrFormat] or [ErrOtherVolume], or says why nothing could be compared; differences are no error.
func Compare(ctx context.Context, v *volume.Volume, r *Reader, o CompareOptions, tell func(Difference)) (Summary, int64, error) {
	head := r.Head()
	if id := v.Header().FileID; id != head.Volume {
		return Summary{}, 0, fmt.Errorf("%w: %s, not %s", ErrOtherVolume, head.Volume, id)
	}
	c := &comparison{r: r, o: o, tell: tell, sum: Summary{Volume: head.Volume, Time: head.Time}}
	for _, path := range headerFiles() {
		d := Difference{Kind: Changed, Path: path, Cause: "more of the volume header than a rewrap changes"}
		digest, err := volumeDigest(v, path)
		if err != nil {
			d.Cause = "the volume header: " + err.Error()
		}
		if digest != head.Header {
			c.hold(held{Difference: d})
		}
	}
	if err := c.advance(); err != nil {
		return Summary{}, 0, err
	}
	_, bytes, err := walk(ctx, v, Options{Workers: o.Workers, Progress: o.Progress, Suspect: o.Suspect}, c.found)
	for err == nil && c.next != nil {
		err = c.missing()
	}
	if err != nil {
		return Summary{}, 0, err
	}
	c.sum.Bytes = bytes
	c.settle()
	return c.sum, c.count, nil
}

// advance reads the next entry of the manifest.
func (c *comparison) advance() (err error) {
	if c.next, err = c.r.Next(); errors.Is(err, io.EOF) {
		c.next, err = nil, nil
	} else if err == nil {
		c.sum.Entries++
	}
	return err
}

// missing notes that the next entry of the manifest is not there.
func (c *comparison) missing() error {
	e := c.next
	d := held{Difference: Difference{Kind: Removed, Path: e.Path, Plain: e.Plain}, was: e.ID}
	if c.hides && below(e.Path, c.hidden) {
		d.Kind, d.Cause = Unreadable, "its directory cannot be read"
	}
	c.hold(d)
	return c.advance()
}

// found compares an entry of the volume.
func (c *comparison) found(f *found) error {
	for c.next != nil && before(c.next.Path, f.Path) {
		if err := c.missing(); err != nil {
			return err
		}
	}
	if f.closed {
		c.hidden, c.hides = f.Path, true
	}
	d := held{Difference: Difference{Path: f.Path}, is: f.ID}
	if c.next == nil || c.next.Path != f.Path {
		d.Kind = Added
		c.hold(d)
		return nil
	}
	was := c.next
	d.Plain, d.was = was.Plain, was.ID
	if d.Kind, d.Cause = c.differs(was, f); d.Kind != "" {
		c.hold(d)
	}
	return c.advance()
}

// differs compares an entry with what was in its place; the kind is empty if that is the same.
func (c *comparison) differs(was *Entry, f *found) (Kind, string) {
	is := &f.Entry
	var causes []string
	kind := Kind("")
	note := func(k Kind, format string, args ...any) {
		if kind == "" {
			kind = k
		}
		causes = append(causes, fmt.Sprintf(format, args...))
	}
	switch {
	case f.err != nil && !errors.Is(f.err, ErrUnsound):
		return Unreadable, f.err.Error()
	case was.Type != is.Type:
		return Replaced, fmt.Sprintf("%s in place of %s", is.Type, was.Type)
	case f.err != nil:
		note(Changed, "%v", f.err)
	case was.Type == File && is.Size == 0 && was.Size > 0:
		note(Changed, "cut to nothing")
	case was.ID != is.ID:
		note(Replaced, "another file, or an earlier one of that name")
	case was.Size != is.Size:
		note(Changed, "changed or rolled back, %d bytes to %d", was.Size, is.Size)
	case was.Digest != is.Digest && was.Type == Link:
		note(Changed, "another target")
	case was.Digest != is.Digest:
		note(Changed, "changed or rolled back")
	case was.Major != is.Major || was.Minor != is.Minor:
		note(Changed, "device %d:%d to %d:%d", was.Major, was.Minor, is.Major, is.Minor)
	}
	if !c.o.Content {
		if was.Mode != is.Mode {
			note(Metadata, "mode %04o to %04o", was.Mode, is.Mode)
		}
		if was.UID != is.UID || was.GID != is.GID {
			note(Metadata, "owner %d:%d to %d:%d", was.UID, was.GID, is.UID, is.GID)
		}
		if f.err == nil && was.Xattrs != is.Xattrs {
			note(Metadata, "extended attributes or ACLs")
		}
	}
	return kind, strings.Join(causes, "; ")
}

// String names a type.
func (t Type) String() string {
	switch t {
	case Directory:
		return "a directory"
	case File:
		return "a file"
	case Link:
		return "a symbolic link"
	case BlockDevice, CharDevice:
		return "a device"
	case FIFO:
		return "a FIFO"
	case Socket:
		return "a socket"
	}
	return "something unknown"
}

// hold keeps a difference until all are known, or tells it if there are too many.
func (c *comparison) hold(d held) {
	c.count++
	if len(c.held) == maxHeld {
		c.settle()
	}
	c.held = append(c.held, d)
}

// settle finds out which of the differences that are held are halves of swaps and moves, and tells them all.
func (c *comparison) settle() {
	none := header.ID{}
	places := make(map[header.ID]*held) // where the manifest has the files that are not there any more
	for i := range c.held {
		if d := &c.held[i]; d.was != none && d.was != d.is {
			places[d.was] = d
		}
	}
	for _, d := range c.held {
		if from := places[d.is]; d.is != none && from != nil && from.Path != d.Path {
			switch d.Kind {
			case Replaced:
				d.Kind, d.From = Swapped, from.Path
				d.Cause = strings.Replace(d.Cause, "another file, or an earlier one of that name", "the file that was at "+name(from.Difference), 1)
			case Added:
				d.Kind, d.From, d.Cause = Moved, from.Path, "the file that was at "+name(from.Difference)
			}
		}
		c.tell(d.Difference)
	}
	c.held = c.held[:0]
}

// name is the path that a reader knows an entry by.
func name(d Difference) string {
	if d.Plain != "" {
		return Quote(d.Plain)
	}
	return Quote(d.Path)
}
