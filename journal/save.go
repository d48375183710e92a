package journal

import (
	"errors"
	"math"

	"golang.org/x/sys/unix"
)

// errFull says that both logs are full, and that a checkpoint must end first.
var errFull = errors.New("journal: no room in the log")

// Save writes the changes of the file to the log: a killed process does not lose them then. It is called when somebody closes the file.
func (f *File) Save() error {
	if f.j.crowded() {
		_ = f.j.Checkpoint() // who closes files faster than they can be put in place waits; an error is met by the next checkpoint, too
	}
	return f.j.retry(func() error {
		f.op.Lock()
		defer f.op.Unlock()
		return f.save(false)
	})
}

// retry runs save again for as long as there is no room.
func (j *Journal) retry(save func() error) error {
	for {
		err := save()
		if !errors.Is(err, errFull) {
			return err
		}
		if err := j.makeRoom(); err != nil {
			return err
		}
	}
}

// Sync makes the content durable and, unless dataOnly, attributes and name.
func (f *File) Sync(dataOnly bool) error {
	var saved position
	err := f.j.retry(func() error {
		f.op.Lock()
		defer f.op.Unlock()
		if !f.synced {
			f.meta.Store(true)
		}
		if err := f.firstSync(); err != nil {
			return err
		}
		whole := !dataOnly && f.meta.Load()
		if err := f.save(false); err != nil {
			return err
		}
		saved = f.saved
		if whole {
			return f.syncWhole()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return f.j.sync(saved)
}

// firstSync makes durable what is in place if it may not be. The mark goes in a transaction of the file system that follows the data, so that no
// power cut leaves a file without a mark and without its data. f.op is held.
func (f *File) firstSync() error {
	if f.synced {
		return nil
	}
	_, marked := readMark(f.fd)
	if marked || f.direct || f.j.unmarked.Load() || f.j.lapsed.Load() {
		if marked && f.writable {
			if err := f.disk.writeOut(); err != nil {
				return err
			}
			if err := f.disk.unmark(); err != nil {
				return err
			}
		}
		if err := f.syncWhole(); err != nil {
			return err
		}
	}
	f.settleDown()
	f.synced = f.size > 0
	return nil
}

// syncWhole makes durable what is in place, with attributes and name. f.op is held.
func (f *File) syncWhole() error {
	f.meta.Store(false) // before: what changes meanwhile is for the next sync
	err := f.flush(true)
	if err != nil {
		f.meta.Store(true)
	}
	return err
}

// settleDown makes a new file one whose bytes are not touched in place any more. f.op is held.
func (f *File) settleDown() {
	f.marked = false // the mark is gone, or of an epoch that is over
	if !f.direct || f.size == 0 {
		return
	}
	f.direct = false
	f.durable, f.solid, f.reserved = f.size, 0, 0
	f.mu.Lock()
	f.base = f.size
	f.mu.Unlock()
	f.told = false
}

// save writes a record of what has changed since the last, be it the modification time alone. force takes room beyond the limit. f.op is held.
func (f *File) save(force bool) error {
	if f.direct || !f.changed && (!f.saved.live() || f.modified() == f.mtime) {
		return nil
	}
	r := f.record(kindChange)
	r.keep, r.size, r.grown = f.keep, f.size, f.growing
	if f.growing {
		if err := f.flush(false); err != nil {
			return err
		}
		r.keep = f.base
	}
	for _, e := range f.ext {
		if e.dirty {
			r.extents = append(r.extents, e)
		}
	}
	at, err := f.j.write(r, f.owed, force)
	if err != nil {
		return err
	}
	f.mu.Lock()
	for i := range f.ext {
		f.ext[i].dirty = false
	}
	f.mu.Unlock()
	if f.growing {
		f.growing, f.durable, f.solid, f.reserved = false, f.base, 0, 0
	}
	f.saved, f.mtime, f.untimed = at, r.mtime, true
	f.changed, f.dirty, f.owed, f.keep = false, 0, 0, math.MaxInt64
	return nil
}

// record begins a record about the file. f.op is held.
func (f *File) record(kind byte) *record {
	if at := f.j.renames.Load() + 1; f.knownAt != at {
		if p := (*f.path.Load())(); p != "" {
			f.known = p
		}
		f.knownAt = at
	}
	if !f.told {
		if v, err := f.j.kernel.version(f.fd); err == nil {
			f.version = v
		}
		f.fileID, f.told = fileID(f.disk), true
	}
	if len(f.known) > unix.PathMax {
		f.known = ""
	}
	return &record{kind: kind, ino: f.id.Ino, version: f.version, fileID: f.fileID, mtime: f.modified(), path: f.known}
}

// grow lets a durable file grow in place: what it had is put there, durably, and the log notes where it ended. f.op is held.
func (f *File) grow() error {
	if err := f.save(false); err != nil {
		return err
	}
	if err := f.j.sync(f.saved); err != nil {
		return err
	}
	if err := f.apply(); err != nil {
		return err
	}
	if err := f.flush(false); err != nil {
		return err
	}
	r := f.record(kindGrow)
	r.keep, r.size = f.durable, f.durable
	at, err := f.j.write(r, 0, true)
	if err != nil {
		return err
	}
	if err := f.j.sync(at); err != nil {
		return err
	}
	f.saved, f.mtime, f.untimed, f.growing = at, r.mtime, true, true
	return nil
}

// apply puts every change in place: all of them are durable in the log. f.op is held.
func (f *File) apply() error {
	if !f.pending() {
		return nil
	}
	f.placing.Lock()
	defer f.placing.Unlock()
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	shorter := f.base < f.durable || f.halfway
	f.unsynced, f.halfway = true, true
	if shorter {
		if err := cut(f.disk, st.Size, f.base, f.ext); err != nil {
			return err
		}
		f.durable = f.base
	}
	err := place(f.disk, f.ext, f.size)
	f.disk.setModified(st.Mtim)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ext, f.base, f.durable, f.solid, f.reserved = nil, f.size, f.size, 0, 0
	f.told, f.halfway = false, false
	return nil
}

// pending reports whether something is not in place, or is there that is to go. f.op is held.
func (f *File) pending() bool {
	return !f.direct && (len(f.ext) > 0 || f.base != f.size || f.durable != f.size || f.halfway)
}

// cut cuts a file of size bytes to base, before extents are placed. If they begin with a header, the file keeps the ID in its old one until then: a replay may know it by nothing else.
func cut(d disk, size, base int64, ext overlay) error {
	if len(ext) > 0 && ext[0].holdsID() {
		base = max(base, min(size, idEnd))
	}
	return d.Truncate(base)
}

// place writes extents, neighbours together, and then sets the size.
func place(d disk, ext overlay, size int64) error {
	total := int64(0)
	for _, e := range ext {
		total += int64(len(e.data))
	}
	buf := make([]byte, 0, min(total, 1<<20)) // a checkpoint places many small files
	start := int64(0)
	flush := func() error {
		_, err := d.WriteAt(buf, start)
		buf = buf[:0]
		return err
	}
	for _, e := range ext {
		if e.data == nil {
			if err := d.PunchHole(e.off, e.n); err != nil {
				return err
			}
			continue
		}
		if len(buf) > 0 && (start+int64(len(buf)) != e.off || len(buf)+len(e.data) > cap(buf)) {
			if err := flush(); err != nil {
				return err
			}
		}
		if len(buf) == 0 {
			start = e.off
		}
		if len(e.data) > cap(buf)-len(buf) {
			if _, err := d.WriteAt(e.data, e.off); err != nil {
				return err
			}
			continue
		}
		buf = append(buf, e.data...)
	}
	if len(buf) > 0 {
		if err := flush(); err != nil {
			return err
		}
	}
	return d.Truncate(size)
}

// Release says that the last opener is gone. What is not in place yet stays with the journal.
func (f *File) Release() error {
	err := f.Save()
	f.op.Lock()
	defer f.op.Unlock()
	f.j.present.Lock()
	defer f.j.present.Unlock()
	if f.refs--; f.refs > 0 {
		return err
	}
	f.j.idle++
	f.closed.Store(true)
	f.j.drop(f)
	if f.j.idle > maxIdle {
		f.j.hurry()
	}
	return err
}

// drop closes f if nobody has it open and nothing of it is on its way; what could not be saved is tried again by checkpoints. f.op is held, and
// present for writing.
func (j *Journal) drop(f *File) {
	if f.refs > 0 || j.files[f.id] != f {
		return
	}
	// With a record alone, a replay would undo what is written in place once it is empty, and what is done to its times, unless the log is told.
	if f.pending() || f.changed || f.growing || f.unsynced || f.saved.live() {
		if !f.deleted() {
			return
		}
		j.deleted.Store(true)
	}
	j.mu.Lock()
	j.reserved -= f.owed
	j.mu.Unlock()
	j.idle--
	delete(j.files, f.id)
	unix.Close(f.fd)
	// A checkpoint or an epoch may be about to look at it: there is nothing to do.
	f.changed, f.growing, f.unsynced, f.untimed, f.halfway, f.owed, f.durable, f.saved = false, false, false, false, false, 0, f.size, position{}
	f.mu.Lock()
	f.ext, f.base = nil, f.size
	f.mu.Unlock()
}

// live reports whether the record is still in its log.
func (p position) live() bool { return p.log != nil && p.log.generation.Load() == p.generation }

// deleted reports whether f has neither a name nor an opener. f.op is held.
func (f *File) deleted() bool {
	if !f.closed.Load() {
		return false
	}
	n, err := f.j.kernel.links(f.fd)
	return err == nil && n == 0
}

// Unlinked says that the file id has lost its last name: if nobody has it open, its space is free at once.
func (j *Journal) Unlinked(id Inode) {
	f := j.find(id)
	if f == nil || !f.closed.Load() {
		return
	}
	f.op.Lock()
	defer f.op.Unlock()
	j.present.Lock()
	defer j.present.Unlock()
	j.drop(f)
}

// Empty cuts the file to nothing: nothing in it was promised. Its modification time stays: if it was synced while it was empty, that was promised.
func (f *File) Empty() error {
	f.Begin()
	defer f.End()
	if f.pending() || f.changed || f.saved.live() {
		// Somebody has changed it already, as a rewrap does: a replay would do that to what is written next.
		f.Quiet()
		err := f.Truncate(0)
		if err == nil {
			err = f.save(true)
		}
		if err == nil {
			err = f.j.sync(f.saved)
		}
		return err
	}
	var st unix.Stat_t
	err := unix.Fstat(f.fd, &st)
	if err == nil {
		err = f.disk.Truncate(0)
	}
	if err != nil {
		return err
	}
	f.disk.setModified(st.Mtim)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.direct, f.marked, f.told = true, false, false
	f.ext, f.base, f.size, f.durable = nil, 0, 0, 0
	return nil
}
