package journal

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// maxSyncs is how many files a checkpoint syncs one by one before it syncs the whole file system instead.
const maxSyncs = 16

// write adds a record to the active log, whose unsaved form had reserved so many bytes. errFull says that there is no room, unless force.
func (j *Journal) write(r *record, reserved int64, force bool) (position, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed != nil {
		return position{}, j.failed
	}
	if l := j.logs[j.active]; l.pos.Load() >= j.limits.log && !force {
		if j.draining {
			return position{}, errFull
		}
		if err := j.turn(); err != nil {
			return position{}, err
		}
		j.hurry()
	}
	l := j.logs[j.active]
	end, err := l.write(r)
	if err != nil {
		// Nothing follows a torn record: the log goes on at the same place.
		return position{}, fmt.Errorf("write .kmsfs/%s: %w", l.name, err)
	}
	j.reserved -= reserved
	return position{l, l.generation.Load(), end}, nil
}

// turn makes the other log, which is empty, the active one. What this one has is durable before the other gets anything. j.mu is held.
func (j *Journal) turn() error {
	l := j.logs[j.active]
	if err := l.sync(l.generation.Load(), l.pos.Load()); err != nil {
		return j.fail(".kmsfs/"+l.name, err)
	}
	j.active, j.draining = 1-j.active, true
	return nil
}

// fail remembers that a log, or what was put in place from it, could not be made durable: what the kernel has dropped cannot be told, and another
// sync would succeed. The logs stay as they are for the next mount. j.mu is held.
func (j *Journal) fail(what string, err error) error {
	if j.failed == nil {
		j.failed = fmt.Errorf("sync %s: %w; mount the volume again", what, err)
		j.room.Broadcast()
	}
	return j.failed
}

// sync makes a record durable.
func (j *Journal) sync(p position) error {
	if !p.live() { // what it said is durable in place
		return nil
	}
	if err := p.log.sync(p.generation, p.end); err != nil {
		j.mu.Lock()
		defer j.mu.Unlock()
		return j.fail(".kmsfs/"+p.log.name, err)
	}
	return nil
}

// all returns every file that the journal knows.
func (j *Journal) all() []*File {
	j.present.RLock()
	defer j.present.RUnlock()
	files := make([]*File, 0, len(j.files))
	for _, f := range j.files {
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b *File) int { return cmp.Compare(a.id.Ino, b.id.Ino) }) // about as they lie on the disk
	return files
}

// crowded reports whether so many closed files wait that descriptors may run short.
func (j *Journal) crowded() bool {
	j.present.RLock()
	defer j.present.RUnlock()
	return j.idle > crowd
}

// Checkpoint puts in place, durably, what the log holds, and empties it. A file that cannot be changed in place does not keep it from that: its changes go
// on to the other log. The error tells.
func (j *Journal) Checkpoint() (err error) {
	j.checkpoints.Lock()
	defer j.checkpoints.Unlock()
	if err := j.syncActive(); err != nil { // so that turn has little left to sync while everybody waits
		return err
	}
	j.mu.Lock()
	if j.failed != nil || !j.draining && j.logs[j.active].empty() {
		defer j.mu.Unlock()
		return j.failed
	}
	if !j.draining {
		if err := j.turn(); err != nil {
			j.mu.Unlock()
			return err
		}
	}
	old := j.logs[1-j.active]
	j.mu.Unlock()
	var problems []error
	err = j.drain(old, &problems)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.stuck = err
	j.room.Broadcast()
	return errors.Join(append(problems, err)...)
}

// drain empties the log old, which is not written to any more, and adds what is wrong with single files to problems. After an error the log stays, and
// with it all that it promises.
func (j *Journal) drain(old *log, problems *[]error) error {
	files := j.all()
	if err := j.saveAll(files); err != nil {
		return err
	}
	for _, f := range files {
		problem, err := f.settle()
		if err != nil {
			return err
		}
		if problem != nil {
			*problems = append(*problems, problem)
		}
	}
	if len(*problems) > 0 {
		if err := j.syncActive(); err != nil {
			return err
		}
	}
	if err := j.syncAll(files); err != nil {
		return err
	}
	generation := max(j.logs[0].generation.Load(), j.logs[1].generation.Load()) + 1
	if err := old.reset(generation); err != nil {
		return err
	}
	j.mu.Lock()
	old.begin(generation)
	j.draining = false
	j.mu.Unlock()
	for _, f := range files {
		f.op.Lock()
		j.present.Lock()
		j.drop(f)
		j.present.Unlock()
		f.op.Unlock()
	}
	return nil
}

// saveAll writes what files have changed to the active log and makes it durable.
func (j *Journal) saveAll(files []*File) error {
	for _, f := range files {
		f.op.Lock()
		var err error
		if f.pending() || f.growing || f.changed {
			err = f.save(true)
		}
		f.op.Unlock()
		if err != nil {
			return err
		}
	}
	return j.syncActive()
}

// syncActive makes durable what has been written to the active log.
func (j *Journal) syncActive() error {
	j.mu.Lock()
	l := j.logs[j.active]
	p := position{l, l.generation.Load(), l.pos.Load()}
	j.mu.Unlock()
	return j.sync(p)
}

// settle puts the changes of f in place. They are durable in the log but for what came since saveAll. If that is not possible, problem says why, and all of
// them are in the active log.
func (f *File) settle() (problem, err error) {
	f.op.Lock()
	defer f.op.Unlock()
	if f.pending() || f.growing || f.changed {
		if f.deleted() {
			f.j.deleted.Store(true)
			return nil, nil
		}
		if err := f.save(true); err != nil {
			return nil, err
		}
	}
	// Even if the file in place is already as its changes leave it, cut back to what it was: records of theirs in the active log build on those of the old one.
	if err := f.j.sync(f.saved); err != nil {
		return nil, err
	}
	if !f.pending() && !f.growing {
		return nil, nil
	}
	// A growth that has not begun ends here: the record that allows it may be on its way out.
	f.growing = false
	if f.stuck = f.apply(); f.stuck == nil {
		return nil, nil
	}
	f.mu.Lock()
	for i := range f.ext {
		f.ext[i].dirty = true
	}
	f.mu.Unlock()
	f.changed, f.keep = true, f.base
	f.stuck = fmt.Errorf("%s: %w", f.known, f.stuck)
	return f.stuck, f.save(true)
}

// syncAll makes durable in place what was put there.
func (j *Journal) syncAll(files []*File) error {
	var fds []*File
	for _, f := range files {
		f.op.Lock()
		if f.unsynced || f.untimed {
			fds = append(fds, f)
		}
		f.op.Unlock()
	}
	whole := len(fds) > maxSyncs
	for _, f := range fds {
		f.op.Lock()
		var err error
		switch {
		case whole:
			f.unsynced, f.untimed = false, false // before: what comes meanwhile is for the next checkpoint
		case f.unsynced || f.untimed: // else it was synced, or is gone
			err = f.flush(true) // the modification time, too: the log will not have it any more
		}
		f.op.Unlock()
		if err != nil {
			return err
		}
	}
	if whole {
		if err := j.syncFS(); err != nil {
			return err
		}
	}
	// A power cut must not bring a file back that was deleted, and not its changes.
	if j.deleted.Swap(false) {
		return j.syncFS()
	}
	return nil
}

// syncFS makes everything in place durable.
func (j *Journal) syncFS() error {
	err := j.disk().syncAll()
	if err != nil {
		j.mu.Lock()
		defer j.mu.Unlock()
		return j.fail("the file system", err)
	}
	return nil
}

// flush makes the content of f durable in place and, if whole, its attributes. An error may be about what a checkpoint has put there, or what the file has grown by. f.op is held.
func (f *File) flush(whole bool) error {
	sync := f.disk.syncData
	if whole {
		sync = f.disk.sync
	}
	err := sync()
	if err != nil && (f.unsynced || f.growing) {
		f.j.mu.Lock()
		defer f.j.mu.Unlock()
		return f.j.fail(f.known, err)
	}
	if err == nil {
		f.unsynced, f.untimed = false, f.untimed && !whole
	}
	return err
}
