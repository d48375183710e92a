package journal

import (
	"math"

	"golang.org/x/sys/unix"
)

// Times runs set, which sets times of the file id. No checkpoint undoes that, and no replay of an earlier change.
func (j *Journal) Times(id Inode, set func() error) error {
	for {
		j.present.RLock()
		f := j.files[id]
		if f == nil {
			defer j.present.RUnlock() // nobody may begin to log changes meanwhile
			return set()
		}
		j.present.RUnlock()
		f.Begin()
		if j.find(id) != f {
			f.End()
			continue
		}
		err := set()
		f.meta.Store(true)
		f.End()
		if err != nil {
			return err
		}
		return f.Save()
	}
}

// Changed notes that attributes of a file, or its names, have changed: its next sync makes them durable, too.
func (j *Journal) Changed(id Inode) {
	if f := j.find(id); f != nil {
		f.meta.Store(true)
	}
}

func (j *Journal) find(id Inode) *File {
	j.present.RLock()
	defer j.present.RUnlock()
	return j.files[id]
}

// modified returns the modification time of the file as records carry it. f.op is held.
func (f *File) modified() uint64 {
	var st unix.Stat_t
	if unix.Fstat(f.fd, &st) != nil {
		return 0
	}
	return stamp(st.Mtim)
}

// timeZero is the time from which records count, in seconds since 1970: the oldest one that ext4 and XFS know.
const timeZero = -1 << 31

// stamp returns a time in nanoseconds since timeZero, 0 if it is not later or more than 584 years so.
func stamp(t unix.Timespec) uint64 {
	if t.Sec < timeZero || uint64(t.Sec-timeZero) >= math.MaxUint64/1_000_000_000 {
		return 0
	}
	return uint64(t.Sec-timeZero)*1_000_000_000 + uint64(t.Nsec)
}

// unstamp is the inverse of stamp.
func unstamp(n uint64) unix.Timespec {
	return unix.Timespec{Sec: int64(n/1_000_000_000) + timeZero, Nsec: int64(n % 1_000_000_000)}
}
