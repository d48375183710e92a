package reencrypt

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/volume"
)

// A note says, durably, which names are being moved from one file to another: docs/format.md section 10.4.
const (
	linkSuffix = ".link"  // behind the ID of a file: a name of it that is about to be moved
	noteSuffix = ".names" // behind the ID of the new file
	noteMagic  = "kmsfsnam"
	noteFixed  = 8 + 16 + 16 + 4 // magic, file IDs, number of names
	maxNote    = 64 << 20        // bytes
)

// An inode names a file, whatever its names.
type inode struct{ dev, ino uint64 }

// A group is a file with several names, not all of which have been met yet.
type group struct {
	links int
	paths []string
}

// together notes a name of a file with several. It returns all of them when the last one is met, else nil.
func (r *run) together(st *unix.Stat_t, path string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := inode{st.Dev, st.Ino}
	g := r.groups[id]
	if g == nil {
		g = &group{}
		r.groups[id] = g
	}
	g.links = int(st.Nlink)
	if g.paths = append(g.paths, path); len(g.paths) < g.links {
		return nil
	}
	slices.Sort(g.paths)
	if g.paths = slices.Compact(g.paths); len(g.paths) < g.links {
		return nil // somebody moves files about
	}
	delete(r.groups, id)
	return g.paths
}

// encode returns the note of what is to be moved.
func (n *replacement) encode() []byte {
	b := append([]byte(noteMagic), n.old[:]...)
	b = append(b, n.new[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(n.paths)))
	for _, path := range n.paths {
		b = binary.BigEndian.AppendUint32(b, uint32(len(path)))
		b = append(b, path...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// note writes down what is to be moved. It is not durable yet.
func (n *replacement) note(work *os.File) error {
	b := n.encode()
	if len(b) > maxNote {
		return fmt.Errorf("it has too many names: %d", len(n.paths))
	}
	f, err := cipherdir.CreateFile(int(work.Fd()), n.new.String()+noteSuffix)
	if err != nil {
		return os.NewSyscallError("create", err)
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

var errNote = errors.New("not a note of names")

// parseNote is the inverse of encode. Lengths are checked before they are used.
func parseNote(b []byte) (*replacement, error) {
	if len(b) < noteFixed+sha256.Size || len(b) > maxNote || string(b[:8]) != noteMagic {
		return nil, errNote
	}
	signed, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if want := sha256.Sum256(signed); !bytes.Equal(want[:], sum) {
		return nil, errNote
	}
	n := &replacement{old: header.ID(b[8:]), new: header.ID(b[24:])}
	if zero := (header.ID{}); n.old == zero || n.new == zero || n.old == n.new {
		return nil, errNote // zeros are what a file without a header has for an ID
	}
	count, rest := binary.BigEndian.Uint32(b[40:]), signed[noteFixed:]
	for range count {
		if len(rest) < 4 {
			return nil, errNote
		}
		size := int64(binary.BigEndian.Uint32(rest))
		if rest = rest[4:]; size > int64(len(rest)) {
			return nil, errNote
		}
		if !inVolume(string(rest[:size])) {
			return nil, errNote
		}
		n.paths, rest = append(n.paths, string(rest[:size])), rest[size:]
	}
	if len(rest) > 0 {
		return nil, errNote
	}
	return n, nil
}

// remove removes what n has in the directory of new files; the note goes last.
func (n *replacement) remove(work *os.File) {
	for _, name := range []string{n.old.String(), n.old.String() + linkSuffix, n.new.String(), n.new.String() + linkSuffix, n.new.String() + noteSuffix} {
		remove(work, name)
	}
}

func remove(dir *os.File, name string) { _ = unix.Unlinkat(int(dir.Fd()), name, 0) }

// Finish brings the names of files together that a crash in Run has left apart. Whoever is going to change files of the volume, whose lock he holds, calls it before. It needs no key. The error
// wraps [ErrApart] if that cannot be done.
func Finish(v *volume.Volume) error {
	work, err := openWork(v)
	if work == nil || err != nil {
		return err
	}
	defer work.Close()
	return finish(v, work)
}

// Pending reports whether Finish would change names: the volume is not yet what it will be once somebody writes to it. It changes nothing.
func Pending(v *volume.Volume) (pending bool, err error) {
	work, err := openWork(v)
	if work == nil || err != nil {
		return false, err
	}
	defer work.Close()
	err = eachNote(v, work, func(*replacement) error {
		pending = true
		return nil
	})
	return pending, err
}

func finish(v *volume.Volume, work *os.File) error {
	x := exchange{root: v.RootFd(), work: work}
	var several []*replacement
	err := eachNote(v, work, func(n *replacement) error {
		several = append(several, &replacement{old: n.old, new: n.new}) // the names may be many
		_, err := x.all(n)
		return err
	})
	if err == nil {
		err = x.end(several)
	}
	if err != nil {
		return err
	}
	// Once the files have changed, no note must come back, and no name must be the old file's again: a run that was killed has made neither durable.
	return syncAll(work)
}

// eachNote calls fn with what is written down of names that may be apart.
func eachNote(v *volume.Volume, work *os.File, fn func(*replacement) error) error {
	names, err := work.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list %s: %w", workPath(v), err)
	}
	for _, name := range names {
		if !strings.HasSuffix(name, noteSuffix) {
			continue
		}
		n, err := readNote(work, name)
		if errors.Is(err, errNote) {
			continue // torn: no name was changed yet
		} else if err != nil {
			return fmt.Errorf("read %s/%s: %w", workPath(v), name, err)
		}
		if err := fn(n); err != nil {
			return err
		}
	}
	return nil
}

func readNote(work *os.File, name string) (*replacement, error) {
	f, st, err := openFileAt(int(work.Fd()), name)
	if errors.Is(err, errNoFile) {
		return nil, errNote
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	if st.Size > maxNote {
		return nil, errNote
	}
	b, err := io.ReadAll(io.LimitReader(f, maxNote))
	if err != nil {
		return nil, err
	}
	return parseNote(b)
}

// Recover does what Finish does, and removes whatever else a run that was cut off has left.
func Recover(v *volume.Volume) error {
	work, err := openWork(v)
	if work == nil || err != nil {
		return err
	}
	defer work.Close()
	if err := finish(v, work); err != nil {
		return err
	}
	if _, err := work.Seek(0, io.SeekStart); err != nil {
		return err
	}
	names, err := work.Readdirnames(-1)
	for _, name := range names {
		remove(work, name)
	}
	_ = unix.Unlinkat(v.MetaFd(), volume.WorkDir, unix.AT_REMOVEDIR)
	return err
}

// openWork opens the directory of new files, nil if there is none.
func openWork(v *volume.Volume) (*os.File, error) {
	work, err := cipherdir.OpenDir(v.MetaFd(), volume.WorkDir)
	if isGone(err) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("open %s: %w", workPath(v), err)
	}
	return work, nil
}

// makeWork makes the directory of new files.
func makeWork(v *volume.Volume) (*os.File, error) {
	if err := unix.Mkdirat(v.MetaFd(), volume.WorkDir, 0o700); err != nil && err != unix.EEXIST {
		return nil, fmt.Errorf("make %s: %w", workPath(v), err)
	}
	work, err := cipherdir.OpenDir(v.MetaFd(), volume.WorkDir)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", workPath(v), err)
	}
	return work, nil
}

func workPath(v *volume.Volume) string { return v.Dir() + "/" + volume.MetaDir + "/" + volume.WorkDir }
