package journal

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

const simPage = 4096

// A sim is a disk under a journal, with the freedom that a disk has when the power is cut. It carries out and notes every call; what a sync
// would do is only noted. Its clock counts calls.
//
// Content is written back page by page, in any order, until a sync of its file has returned. Metadata (sizes, marks, freed blocks, modification times) is
// committed in the order of the calls, some prefix of it; a sync commits at least what concerns its file, fdatasync not the times.
type sim struct {
	t       *testing.T
	now     int
	files   map[uint64]*simFile // by inode number
	order   []uint64            // of these, as they were met: what is drawn for one after another does not depend on numbers
	commits []commit
	between func(ino uint64) // runs where a checkpoint holds no lock but that of the file ino
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

// An image is what a disk has of a file.
type image struct {
	size  int64
	pages map[int64][]byte // absent ones are zeros
	mark  []byte
	mtime uint64
}

// newSim returns a disk with the files base, which are in the given order.
func newSim(t *testing.T, base map[uint64]image, order []uint64) *sim {
	s := &sim{t: t, files: make(map[uint64]*simFile), order: slices.Clone(order)}
	for _, ino := range order {
		s.files[ino] = &simFile{base: base[ino], size: base[ino].size}
	}
	return s
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

func (s *sim) pwrite(fd int, p []byte, off int64) (int, error) {
	f := s.note(fd, event{off: off, n: int64(len(p)), data: bytes.Clone(p), zeros: bytes.Count(p, []byte{0}) == len(p)})
	if end := off + int64(len(p)); end > f.size {
		f.size, f.meta = end, s.now
	}
	n, err := unix.Pwrite(fd, p, off)
	return n, s.modified(fd, simTime(s.now), err)
}

func (s *sim) ftruncate(fd int, size int64) error {
	s.note(fd, event{off: size, cut: true}).size = size
	return s.modified(fd, simTime(s.now), unix.Ftruncate(fd, size))
}

func (s *sim) fallocate(fd int, mode uint32, off, n int64) error {
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
	s.commits = append(s.commits, commit{s.now, f.meta})
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

// cut returns what a power cut at time k may leave or, without rnd, what a kill does.
func (s *sim) cut(k int, rnd *rand.Rand) map[uint64]image {
	committed := 0
	for _, c := range s.commits {
		if c.t <= k {
			committed = max(committed, c.upTo)
		}
	}
	committed = pick(rnd, committed, k)
	images := make(map[uint64]image)
	for _, ino := range s.order {
		images[ino] = s.files[ino].cut(k, committed, rnd)
	}
	return images
}

// pick returns a time from lo to hi, the ends more often than others, and hi without rnd.
func pick(rnd *rand.Rand, lo, hi int) int {
	if rnd == nil {
		return hi
	}
	switch rnd.IntN(4) {
	case 0:
		return lo
	case 1:
		return hi
	}
	return lo + rnd.IntN(hi-lo+1)
}

func (f *simFile) cut(k, committed int, rnd *rand.Rand) image {
	written := 0 // everything up to then is on the disk
	for _, at := range f.synced {
		if at <= k {
			written = max(written, at)
		}
	}
	for _, at := range f.out {
		if at < committed {
			written = max(written, at)
		}
	}
	im := image{size: f.base.size, pages: make(map[int64][]byte), mark: f.base.mark, mtime: f.base.mtime}
	for p, b := range f.base.pages {
		im.pages[p] = append([]byte(nil), b...)
	}
	until := make(map[int64]int) // when each page was written back last
	mode := 1
	if rnd != nil {
		mode = rnd.IntN(3)
	}
	last := func(p int64) int {
		if _, ok := until[p]; !ok {
			until[p] = [3]int{written, k, pick(rnd, written, k)}[mode]
		}
		return until[p]
	}
	zero := func(at int, from, to int64) { // to < 0: everything from there on
		for _, p := range slices.Sorted(maps.Keys(im.pages)) { // in one order, since last draws
			b := im.pages[p]
			lo, hi := max(from-p*simPage, 0), int64(simPage)
			if to >= 0 {
				hi = min(to-p*simPage, simPage)
			}
			switch {
			case lo >= hi:
			case at <= committed || hi-lo < simPage && at <= last(p):
				clear(b[lo:hi])
			case hi-lo == simPage && at <= last(p):
				until[p] = at - 1 // what is written later goes to blocks that nothing leads to yet
			}
		}
	}
	for _, e := range f.events {
		if e.at > k {
			break
		}
		if e.mtime != 0 && e.at <= committed {
			im.mtime = e.mtime
		}
		switch {
		case e.data != nil:
			for at := e.off; at < e.off+e.n; {
				p := at / simPage
				n := min((p+1)*simPage, e.off+e.n) - at
				if e.at <= last(p) {
					if im.pages[p] == nil {
						if e.zeros {
							at += n
							continue
						}
						im.pages[p] = make([]byte, simPage)
					}
					copy(im.pages[p][at-p*simPage:], e.data[at-e.off:][:n])
				}
				at += n
			}
			if e.at <= committed {
				im.size = max(im.size, e.off+e.n)
			}
		case e.cut:
			zero(e.at, e.off, -1)
			if e.at <= committed {
				im.size = e.off
			}
		case e.punch:
			zero(e.at, e.off, e.off+e.n)
		case e.mark != nil && e.at <= committed:
			im.mark = e.mark
		}
	}
	for p, b := range im.pages {
		if n := im.size - p*simPage; n < simPage {
			clear(b[max(n, 0):])
		}
		if bytes.Count(b, []byte{0}) == simPage {
			delete(im.pages, p)
		}
	}
	return im
}

// restore makes the file at path an image.
func (im image) restore(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(im.size); err != nil {
		t.Fatal(err)
	}
	for p, b := range im.pages {
		if _, err := f.WriteAt(b[:min(im.size-p*simPage, simPage)], p*simPage); err != nil {
			t.Fatal(err)
		}
	}
	if len(im.mark) > 0 {
		err = unix.Fsetxattr(int(f.Fd()), MarkName, im.mark, 0)
	} else if err = unix.Fremovexattr(int(f.Fd()), MarkName); err == unix.ENODATA {
		err = nil
	}
	if err == nil {
		err = linux{}.setModified(int(f.Fd()), unstamp(im.mtime))
	}
	if err != nil {
		t.Fatal(err)
	}
}
