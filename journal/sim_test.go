package journal

import (
	"bytes"
	"maps"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

const simPage = 4096

// A sim is a disk under a journal, with the freedom that a disk has when the power is cut. It carries out and notes every call; what a sync
// would do is only noted. Its clock counts calls.
//
// Content is written back page by page, in any order, until a sync of its file has returned. Metadata (names, sizes, marks, freed blocks, modification
// times) is committed in the order of the calls, some prefix of it; a sync commits at least what concerns its file, fdatasync not the times.
type sim struct {
	t       *testing.T
	now     int
	files   map[uint64]*simFile // by inode number
	order   []uint64            // of these, as they were met: what is drawn for one after another does not depend on numbers
	base    map[string]uint64   // names of files at time 0; nil: names do not change
	entries []entry
	commits []commit
	between func(ino uint64)       // runs where a checkpoint holds no lock but that of the file ino
	refuse  func(ino uint64) error // why a file is not changed now

	unnumbered bool // inode numbers have no generation
}

// An entry says that a name was given to a file, or to none if ino is 0.
type entry struct {
	at   int
	name string
	ino  uint64
}

// A commit says that at time t all metadata up to the time upTo was durable.
type commit struct{ t, upTo int }

type simFile struct {
	base   image // at time 0
	size   int64
	events []event
	synced []int // times when all of the content was durable
	out    []int // times when all of the content had been written, but was not durable before the next commit
	meta   int   // time of the last change of metadata
	born   int   // time when it got its first name
	named  int   // time when it got its last name
}

// An event is a call that changes a file: at most one of data, cut, punch and mark. It may set the modification time alone.
type event struct {
	at     int
	off, n int64
	data   []byte // write; n bytes
	zeros  bool   // they are zeros
	cut    bool   // truncate to off
	punch  bool
	mark   []byte // set to this, removed if empty
	mtime  uint64 // afterwards; 0: that of the call, but for a mark
}

// newSim returns a disk with the files of w, which are in the given order.
func newSim(t *testing.T, w wreck, order []uint64) *sim {
	s := &sim{t: t, files: make(map[uint64]*simFile), order: slices.Clone(order), base: w.names}
	for _, ino := range order {
		s.files[ino] = &simFile{base: w.files[ino], size: w.files[ino].size}
	}
	return s
}

// enter notes names that were given at one time.
func (s *sim) enter(entries ...entry) {
	s.now++
	for _, e := range entries {
		e.at = s.now
		if s.entries = append(s.entries, e); e.ino != 0 {
			f := s.files[e.ino]
			if f.named = s.now; f.born == 0 {
				f.born = s.now
			}
		}
	}
}

// names returns who had which name at time k.
func (s *sim) names(k int) map[string]uint64 {
	if s.base == nil {
		return nil
	}
	names := maps.Clone(s.base)
	for _, e := range s.entries {
		if e.at > k {
			break
		}
		if names[e.name] = e.ino; e.ino == 0 {
			delete(names, e.name)
		}
	}
	return names
}

// links counts the names. A file that has none stays where the test can reach it.
func (s *sim) links(fd int) (n uint64, err error) {
	if s.base == nil {
		return linux{}.links(fd)
	}
	_, ino := s.file(fd)
	for _, named := range s.names(s.now) {
		if named == ino {
			n++
		}
	}
	return n, nil
}

// version is that of numbers which are not used again.
func (s *sim) version(int) (uint32, error) {
	if s.unnumbered {
		return 0, unix.ENOTTY
	}
	return 1, nil
}

func (s *sim) file(fd int) (*simFile, uint64) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		s.t.Fatalf("a call on a descriptor that is closed: %v", err)
	}
	f := s.files[st.Ino]
	if f == nil {
		f = &simFile{base: image{mtime: simTime(0)}}
		s.modified(fd, simTime(0), nil)
		s.files[st.Ino] = f
		s.order = append(s.order, st.Ino)
	}
	return f, st.Ino
}

func (s *sim) note(fd int, e event) *simFile {
	f, ino := s.file(fd)
	if s.between != nil {
		s.between(ino)
	}
	s.now++
	e.at = s.now
	if e.cut || e.punch || e.mark != nil {
		f.meta = s.now
	}
	if e.mark == nil && e.mtime == 0 {
		e.mtime = simTime(s.now)
	}
	f.events = append(f.events, e)
	return f
}

// simTime is the time at the call number n, as records carry it.
func simTime(n int) uint64 { return stamp(unix.Timespec{Sec: 1e9 + int64(n)}) }

// modified sets a modification time after a call that was without error.
func (s *sim) modified(fd int, mtime uint64, err error) error {
	if err == nil {
		err = linux{}.setModified(fd, unstamp(mtime))
	}
	if err != nil {
		s.t.Error(err)
	}
	return err
}

func (s *sim) setModified(fd int, t unix.Timespec) error {
	e := event{mtime: stamp(t)}
	if t.Nsec == unix.UTIME_NOW {
		e.mtime = 0
	}
	events := s.note(fd, e).events
	return s.modified(fd, events[len(events)-1].mtime, nil)
}

// refused is why a call fails, without effect.
func (s *sim) refused(fd int) error {
	if s.refuse == nil {
		return nil
	}
	_, ino := s.file(fd)
	return s.refuse(ino)
}

func (s *sim) pwrite(fd int, p []byte, off int64) (int, error) {
	if err := s.refused(fd); err != nil {
		return 0, err
	}
	f := s.note(fd, event{off: off, n: int64(len(p)), data: bytes.Clone(p), zeros: bytes.Count(p, []byte{0}) == len(p)})
	if end := off + int64(len(p)); end > f.size {
		f.size, f.meta = end, s.now
	}
	n, err := unix.Pwrite(fd, p, off)
	return n, s.modified(fd, simTime(s.now), err)
}

func (s *sim) ftruncate(fd int, size int64) error {
	if err := s.refused(fd); err != nil {
		return err
	}
	s.note(fd, event{off: size, cut: true}).size = size
	return s.modified(fd, simTime(s.now), unix.Ftruncate(fd, size))
}

func (s *sim) fallocate(fd int, mode uint32, off, n int64) error {
	if err := s.refused(fd); err != nil {
		return err
	}
	s.note(fd, event{off: off, n: n, punch: mode&unix.FALLOC_FL_PUNCH_HOLE != 0})
	if mode&unix.FALLOC_FL_PUNCH_HOLE == 0 {
		return s.modified(fd, simTime(s.now), nil) // space does not show
	}
	return s.modified(fd, simTime(s.now), unix.Fallocate(fd, mode, off, n))
}

func (s *sim) setMark(fd int, epoch []byte) error {
	s.note(fd, event{mark: append([]byte(nil), epoch...)})
	return unix.Fsetxattr(fd, MarkName, epoch, 0)
}

func (s *sim) removeMark(fd int) error {
	s.note(fd, event{mark: []byte{}})
	return unix.Fremovexattr(fd, MarkName)
}

func (s *sim) fdatasync(fd int) error {
	f, _ := s.file(fd)
	s.now++
	f.synced = append(f.synced, s.now)
	s.commits = append(s.commits, commit{s.now, max(f.meta, f.born)})
	return nil
}

func (s *sim) fsync(fd int) error {
	f, _ := s.file(fd)
	s.now++
	f.synced = append(f.synced, s.now)
	s.commits = append(s.commits, commit{s.now, s.now})
	return nil
}

func (s *sim) syncfs(int) error {
	if s.between != nil {
		s.between(0)
	}
	s.now++
	for _, f := range s.files {
		f.synced = append(f.synced, s.now)
	}
	s.commits = append(s.commits, commit{s.now, s.now})
	return nil
}

func (s *sim) writeOut(fd int) error {
	f, _ := s.file(fd)
	s.now++
	f.out = append(f.out, s.now)
	return nil
}

// seekHole says that a file may be all holes: where they are depends on the file system, and on the page cache.
func (s *sim) seekHole(int) (int64, error) { return 0, nil }
