package journal

import "golang.org/x/sys/unix"

// Space for a change is found before it is accepted, in the log and in place: a full disk is met by the write, and not by what makes it durable later.

// headroom is how many bytes one operation may need in the log: a request of 1 MiB, sealed, hole maps, and as much again to undo it.
const headroom = 3 << 20

// reserve makes sure that both logs have space for what is not saved yet and for one more operation.
func (j *Journal) reserve() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.failed != nil:
		return j.failed
	case j.stuck != nil && (j.reserved > j.limits.log || j.logs[j.active].pos.Load() > 2*j.limits.log):
		return j.stuck
	}
	for _, l := range j.logs {
		if err := l.reserve(j.reserved + headroom); err != nil {
			return err
		}
	}
	return nil
}

// take notes that a change of n bytes is to be saved.
func (j *Journal) take(n int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.reserved += n
}

// makeRoom asks for a checkpoint and waits for its end. The error says why there is still no room.
func (j *Journal) makeRoom() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.draining && j.failed == nil && j.stuck == nil {
		j.hurry()
		j.room.Wait()
	}
	if j.failed != nil || !j.draining {
		return j.failed
	}
	return j.stuck
}

// owe makes sure that a change of n bytes finds space in the log.
func (f *File) owe(n int64) error {
	if f.full != nil {
		return f.full
	}
	f.owed += n + extentSize
	f.j.take(n + extentSize)
	return nil
}

// reserve makes sure that a change kept in memory will find space, in the log and in place.
func (f *File) reserve(off, n int64) error {
	if err := f.owe(n); err != nil {
		return err
	}
	end := off + n
	from := off
	if off < f.durable {
		from = max(off, f.dense())
	}
	if from >= f.durable {
		if end <= max(f.reserved, f.durable) {
			return nil
		}
		end = (end + 64<<10) &^ (64<<10 - 1) // the rest is given back when the changes are in place
	}
	if from >= end {
		return nil
	}
	err := f.disk.Preallocate(from, end-from)
	if err == unix.EOPNOTSUPP {
		err = nil
	}
	if err == nil && from >= f.durable {
		f.reserved = end
	}
	return err
}

// dense returns how many bytes below durable come before the first hole.
func (f *File) dense() int64 {
	if f.solid < f.durable {
		if at, err := f.j.kernel.seekHole(f.fd); err == nil {
			f.solid = min(at, f.durable)
		}
	}
	return f.solid
}
