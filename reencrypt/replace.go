package reencrypt

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
)

// New files are made durable together: as many, and as many bytes, as these.
const (
	batchFiles = 256
	batchBytes = 64 << 20
)

// ErrApart says that the names of one file are those of two with the same content, and cannot be brought together for now.
var ErrApart = errors.New("reencrypt: some names of a file cannot be changed, so that they are those of two files: nobody may write to either until they can")

// A replacement is a new file that waits to take the place of an old one. Its name in the directory of new files is its file ID.
type replacement struct {
	old, new header.ID // file IDs
	paths    []string  // all names of the file
	bytes    int64     // of ciphertext
	begun    bool      // some of several names may be those of the new file
}

// add puts a new file into the batch, and returns the batch if it is full.
func (r *run) add(n *replacement) []*replacement {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batch = append(r.batch, n)
	if r.weight += n.bytes; len(r.batch) < batchFiles && r.weight < batchBytes {
		return nil
	}
	return r.takeLocked()
}

// take empties the batch.
func (r *run) take() []*replacement {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.takeLocked()
}

func (r *run) takeLocked() (batch []*replacement) {
	batch, r.batch, r.weight = r.batch, nil, 0
	return batch
}

// settle makes new files durable, and then puts them in the places of the old ones. An error ends the run.
func (r *run) settle(batch []*replacement) (err error) {
	if len(batch) == 0 {
		return nil
	}
	defer func() {
		if err != nil {
			r.drop(batch)
		}
	}()
	batch = slices.DeleteFunc(batch, func(n *replacement) bool {
		if len(n.paths) == 1 {
			return false
		}
		err := n.note(r.work)
		if err != nil {
			n.remove(r.work)
			r.kept(n.paths, err)
		}
		return err != nil
	})
	if err := errors.Join(r.ctx.Err(), syncAll(r.work)); err != nil {
		return err
	}
	var several []*replacement
	for _, n := range batch {
		var kept error // why the old file stays
		if len(n.paths) > 1 {
			several = append(several, n)
			kept, err = r.exchange.all(n)
		} else {
			kept = r.exchange.one(n)
		}
		if err != nil {
			return err
		}
		r.settled(n, kept)
	}
	return r.exchange.end(several)
}

// settled counts a file that was replaced, or not.
func (r *run) settled(n *replacement, kept error) {
	if kept != nil {
		if !n.begun {
			n.remove(r.work)
		}
		r.kept(n.paths, kept)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Reencrypted += int64(len(n.paths))
	r.report.Bytes += n.bytes
}

// drop removes new files whose turn has not come.
func (r *run) drop(batch []*replacement) {
	for _, n := range batch {
		if !n.begun {
			n.remove(r.work)
		}
	}
}

// An exchange puts new files in the places of old ones.
type exchange struct {
	root int // descriptor of the ciphertext directory
	work *os.File

	mu sync.Mutex // held while an entry is changed, and then the times of its directory are set back
}

// one replaces a file that has a single name.
func (x *exchange) one(n *replacement) error {
	dir, name, err := openParent(x.root, n.paths[0])
	if err != nil {
		return err
	}
	defer dir.Close()
	id, err := fileID(dir, name)
	if err == nil && id != n.old {
		err = errors.New("another file took its name meanwhile")
	}
	if err == nil {
		err = x.rename(n.new.String(), dir, name)
	}
	return err
}

// all replaces a file that has several names, which are noted, under each of them. Where one of them cannot be changed, all get the old file back, and kept says why. With an
// error, neither was possible, and the note stays.
func (x *exchange) all(n *replacement) (kept, err error) {
	n.begun = true
	if kept = x.move(n, n.old, n.new); kept == nil {
		return nil, nil
	}
	if err := x.back(n); err != nil {
		return kept, fmt.Errorf("%w: %q: %w; back: %w", ErrApart, n.paths, kept, err)
	}
	return kept, nil
}

// end removes what was noted for files with several names, once all of them are durable.
func (x *exchange) end(several []*replacement) error {
	if len(several) == 0 {
		return nil
	}
	if err := syncAll(x.work); err != nil {
		return err
	}
	for _, n := range several {
		n.remove(x.work)
	}
	return nil
}

// back undoes a move that was cut off.
func (x *exchange) back(n *replacement) error {
	for _, path := range n.paths {
		dir, name, err := openParent(x.root, path)
		if err != nil {
			continue
		}
		id, err := fileID(dir, name)
		if err == nil && id == n.old {
			_ = unix.Linkat(int(dir.Fd()), name, int(x.work.Fd()), n.old.String(), 0)
		}
		dir.Close()
	}
	return x.move(n, n.new, n.old)
}

// move gives all names of one file to another, which is in the directory of new files under its ID. A name that is gone, or another file's, stays so.
func (x *exchange) move(n *replacement, from, to header.ID) error {
	for _, path := range n.paths {
		if err := x.moveOne(path, from, to); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

func (x *exchange) moveOne(path string, from, to header.ID) error {
	dir, name, err := openParent(x.root, path)
	if isGone(err) {
		return nil
	} else if err != nil {
		return err
	}
	defer dir.Close()
	id, err := fileID(dir, name)
	if err != nil || id != from {
		return err
	}
	if id, err := fileID(x.work, to.String()); err != nil {
		return err
	} else if id != to {
		return errors.New("the file that is to take its place is gone")
	}
	link := to.String() + linkSuffix
	remove(x.work, link)
	if err := unix.Linkat(int(x.work.Fd()), to.String(), int(x.work.Fd()), link, 0); err != nil {
		return os.NewSyscallError("link", err)
	}
	return x.rename(link, dir, name)
}

// rename moves a file from the directory of new files, and leaves the times of the directory that it comes to alone.
func (x *exchange) rename(from string, dir *os.File, to string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	if err := unix.Renameat(int(x.work.Fd()), from, int(dir.Fd()), to); err != nil {
		return os.NewSyscallError("rename", err)
	}
	_ = setTimes(int(dir.Fd()), &st)
	return nil
}
