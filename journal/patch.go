package journal

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Enter is [Journal.Open] for somebody who keeps nobody else from opening, changing or closing the file meanwhile. path is where the file was found; whoever
// has it open knows better.
func (j *Journal) Enter(fd int, path string) (*File, error) {
	j.present.Lock()
	defer j.present.Unlock()
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = unix.EINVAL
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	f := j.open(fd, Inode{uint64(st.Dev), st.Ino}, st.Size, !j.readOnly)
	if f.path.Load() == nil {
		told := func() string { return path }
		f.path.Store(&told)
	}
	return f, nil
}

// Each calls fn for every file that somebody has open.
func (j *Journal) Each(fn func(*File)) {
	j.present.Lock()
	var files []*File
	for _, f := range j.files {
		if f.refs > 0 {
			f.refs++
			files = append(files, f)
		}
	}
	j.present.Unlock()
	for _, f := range files {
		fn(f)
		if err := f.Release(); err != nil {
			j.logger.Error("journal: cannot save changes", "ciphertext", f.Path(), "err", err)
		}
	}
}

// Path returns where the file is in the ciphertext directory, "" if nowhere or unknown.
func (f *File) Path() string { return (*f.path.Load())() }

// ReadOnly reports whether nothing can be changed.
func (j *Journal) ReadOnly() bool { return j.readOnly }

// Watch has moved told of every entry that gets another name or a further one, until stop is called: whoever walks the tree meanwhile may miss it. Renames
// wait for moved.
func (j *Journal) Watch(moved func(dir int, name string)) (stop func()) {
	j.watching.Lock()
	defer j.watching.Unlock()
	j.moved = moved
	return func() {
		j.watching.Lock()
		defer j.watching.Unlock()
		j.moved = nil
	}
}

// Moving is called before entries get other names, and done after Moved has told which: nobody begins or ends to watch in between.
func (j *Journal) Moving() (done func()) {
	j.watching.RLock()
	return j.watching.RUnlock
}

// Moved says that an entry is called name, in the open directory dir, now. See Moving.
func (j *Journal) Moved(dir int, name string) {
	if j.moved != nil {
		j.moved(dir, name)
	}
}

// Head returns the first n bytes of a file, or what there is of them, as no operation leaves them half done.
func (f *File) Head(n int) ([]byte, error) {
	f.op.Lock()
	defer f.op.Unlock()
	return f.head(n)
}

func (f *File) head(n int) ([]byte, error) {
	b := make([]byte, n)
	m, err := f.ReadAt(b, 0)
	if err == io.EOF {
		err = nil
	}
	return b[:m], err
}

// Patch replaces the first n bytes of a file by what edit makes of them, as one operation that leaves the modification time alone. edit is
// given fewer bytes if the file has no more; nil is no change.
func (f *File) Patch(n int, edit func(old []byte) ([]byte, error)) error {
	f.op.Lock()
	f.settleDown() // a change in place would show in the times
	f.op.Unlock()
	f.Begin()
	defer f.End()
	old, err := f.head(n)
	if err != nil {
		return err
	}
	b, err := edit(old)
	if err != nil || b == nil {
		return err
	}
	f.Quiet()
	if f.dense() < int64(len(b)) {
		// Space will be reserved, which changes them for a moment: a crash then finds them in the log.
		f.changed = true
		if err := f.save(true); err != nil {
			return err
		}
		if err := f.j.sync(f.saved); err != nil {
			return err
		}
	}
	_, err = f.WriteAt(b, 0)
	return err
}

// A Status is the state of a journal.
type Status struct {
	Bytes   int64  `json:"bytes"`            // in the logs
	Waiting int    `json:"waiting"`          // files that are closed, and not yet in place
	Open    int    `json:"open"`             // files that somebody has open
	Failed  string `json:"failed,omitempty"` // why changes to durable bytes are refused until the volume is mounted again
	Stuck   string `json:"stuck,omitempty"`  // why the last checkpoint could not put everything in place
	Doubts  bool   `json:"doubts"`           // what an earlier crash tore is still looked for
}

// Status returns the state of the journal.
func (j *Journal) Status() Status {
	j.present.RLock()
	s := Status{Waiting: j.idle, Open: len(j.files) - j.idle, Doubts: j.Doubts()}
	j.present.RUnlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, l := range j.logs {
		s.Bytes += l.pos.Load() - logStart
	}
	if j.failed != nil {
		s.Failed = fmt.Sprint(j.failed)
	}
	if j.stuck != nil {
		s.Stuck = fmt.Sprint(j.stuck)
	}
	return s
}
