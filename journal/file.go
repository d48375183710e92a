package journal

import (
	"errors"
	"io"
	"math"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A File is the ciphertext of one file as its changes leave it, whether they are in place or not. It is a backing of
// blockcrypt: changes come between Begin and End, one operation at a time; reads may run beside them.
type File struct {
	j        *Journal
	id       Inode
	fd       int
	disk     disk
	refs     int         // guarded by Journal.present
	closed   atomic.Bool // refs is 0
	meta     atomic.Bool // attributes changed since the last sync
	path     atomic.Pointer[func() string]
	writable bool

	op sync.Mutex // held over an operation, and over what must see whole ones

	// Guarded by op.
	told     bool           // version and fileID are known
	version  uint32         // inode generation
	fileID   [16]byte       // in the header in place
	known    string         // what path said last
	knownAt  uint64         // Journal.renames at that time, plus one; 0: path was not asked
	direct   bool           // new: everything goes in place
	marked   bool           // new, and the mark is on it
	synced   bool           // was durable in place once since it was opened
	touched  bool           // this operation has set the times, or is not to
	quiet    *unix.Timespec // the modification time that this operation is to leave; nil: its own
	solid    int64          // bytes below which there are no holes: a change needs no space
	reserved int64          // bytes below which space was reserved past durable
	durable  int64          // bytes in place that must not be touched
	growing  bool           // what lies past durable goes in place
	full     error          // why this operation may change nothing
	stuck    error          // why the last checkpoint could put nothing in place
	halfway  bool           // changes were put in place in part
	changed  bool           // there is something to save
	dirty    int64          // bytes of it
	owed     int64          // what it has reserved in the log
	keep     int64          // the smallest size since the last save
	saved    position       // of the last record
	mtime    uint64         // what that says
	unsynced bool           // was changed in place, and is not durable there
	untimed  bool           // the modification time is that of a record, and may not be durable in place

	placing sync.RWMutex // held while changes are put in place, which shows in the times; taken after op

	mu   sync.RWMutex // taken after op
	ext  overlay      // guarded by mu
	base int64        // in place is part of the file up to here; guarded by mu
	size int64        // guarded by mu
}

// A position is the end of a record in a log.
type position struct {
	log        *log
	generation uint64
	end        int64
}

// errReadOnly says that a file was opened for reading only.
const errReadOnly = unix.EBADF

// Open makes fd, which it takes over, the content of the file id; path tells where that is in the ciphertext directory, "" if nowhere or
// unknown. If changes of the file are under way to their place, the File that has them is returned, and fd closed. The error is ESTALE if fd is not of that file.
func (j *Journal) Open(fd int, id Inode, writable bool, path func() string) (*File, error) {
	j.present.Lock()
	defer j.present.Unlock()
	var st unix.Stat_t // not earlier: a checkpoint may have put changes in place just now
	err := unix.Fstat(fd, &st)
	if err == nil && (id != Inode{uint64(st.Dev), st.Ino} || st.Mode&unix.S_IFMT != unix.S_IFREG) {
		err = unix.ESTALE
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	f := j.open(fd, id, st.Size, writable)
	f.path.Store(&path)
	return f, nil
}

// open is Open but for the path and what fstat tells. present is held for writing.
func (j *Journal) open(fd int, id Inode, size int64, writable bool) *File {
	if f := j.files[id]; f != nil {
		if f.refs == 0 {
			j.idle--
		}
		f.refs++
		f.closed.Store(false)
		unix.Close(fd)
		return f
	}
	f := &File{
		j: j, id: id, fd: fd, disk: disk{j.kernel, fd}, writable: writable, refs: 1,
		direct: size == 0, size: size, base: size, durable: size, keep: math.MaxInt64,
	}
	j.files[id] = f
	return f
}

// Fd returns the descriptor of the ciphertext file: for its attributes, not for its content.
func (f *File) Fd() int { return f.fd }

// Writable reports whether the descriptor is open for writing.
func (f *File) Writable() bool { return f.writable }

// SetWritable notes that the descriptor was replaced by one for writing.
func (f *File) SetWritable() {
	f.op.Lock()
	defer f.op.Unlock()
	f.writable = true
}

// Begin implements blockcrypt.Backing: an operation begins. Space in the log for all of it, and for undoing it, is found
// beforehand, so that a full disk meets its first change and not a later one.
func (f *File) Begin() {
	f.op.Lock()
	f.full = nil
	switch {
	case f.direct:
		return
	case f.stuck != nil && f.ext.bytes() > f.j.limits.log:
		f.full = f.stuck
		return
	case f.j.reserve() == nil:
		return
	}
	f.op.Unlock()
	_ = f.j.Checkpoint() // an empty log has room
	f.op.Lock()
	f.full = f.j.reserve()
}

// Quiet implements blockcrypt.Backing: the operation under way leaves the modification time alone.
func (f *File) Quiet() {
	var st unix.Stat_t
	if unix.Fstat(f.fd, &st) == nil {
		f.touched, f.quiet = true, &st.Mtim
	}
}

// End implements blockcrypt.Backing: the operation is over. It returns when what the file keeps in memory is within bounds again.
func (f *File) End() {
	if f.end() {
		_ = f.j.makeRoom() // the next save meets the error
	}
}

func (f *File) end() (full bool) {
	defer f.op.Unlock()
	f.touched = false
	if f.quiet != nil {
		var st unix.Stat_t
		if unix.Fstat(f.fd, &st) == nil && st.Mtim != *f.quiet {
			f.disk.setModified(*f.quiet) // something went in place, or had space reserved
		}
		f.quiet = nil
	}
	if f.direct {
		return false
	}
	if !f.growing && f.size-f.durable > f.j.limits.grow {
		if err := f.grow(); err != nil {
			return errors.Is(err, errFull) // else the next sync meets it
		}
	}
	if f.dirty >= f.j.limits.save {
		return errors.Is(f.save(false), errFull)
	}
	return false
}

// Size implements blockcrypt.Backing.
func (f *File) Size() (int64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.size, nil
}

// ReadAt implements [io.ReaderAt].
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	n := min(int64(len(p)), f.size-off)
	if n <= 0 {
		return 0, io.EOF
	}
	if err := f.ext.read(p[:n], off, f.readDisk); err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// readDisk fills p with what is in place, and with zeros past base.
func (f *File) readDisk(p []byte, off int64) error {
	in := min(max(f.base-off, 0), int64(len(p)))
	clear(p[in:])
	if in == 0 {
		return nil
	}
	_, err := f.disk.ReadAt(p[:in], off)
	return err
}

// WriteAt implements [io.WriterAt]. An operation is under way.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if !f.writable {
		return 0, errReadOnly
	}
	if f.direct && !f.marked {
		if err := f.j.mark(f); err != nil {
			return 0, err
		}
	}
	split := f.kept(off, int64(len(p)))
	if head := p[:split]; split > 0 {
		if err := f.reserve(off, split); err != nil {
			return 0, err
		}
		f.touch()
		f.mu.Lock()
		f.ext.put(extent{off: off, n: split, data: append([]byte(nil), head...), dirty: true})
		f.size = max(f.size, off+split)
		f.mu.Unlock()
		f.changed, f.dirty = true, f.dirty+split
	}
	if tail := p[split:]; len(tail) > 0 {
		n, err := f.disk.WriteAt(tail, off+split)
		if n > 0 { // else nothing ends at off, either
			f.mu.Lock()
			end := off + split + int64(n)
			f.base, f.size = max(f.base, end), max(f.size, end)
			f.mu.Unlock()
			f.changed = f.changed || f.growing
		}
		if err != nil {
			return int(split) + n, err
		}
	}
	return len(p), nil
}

// kept returns how many bytes of a change of n bytes at off are kept in memory; those behind them go in place. f.op is held.
func (f *File) kept(off, n int64) int64 {
	switch {
	case f.direct:
		return 0
	case f.growing:
		return min(max(f.durable-off, 0), n)
	}
	return n
}

// touch sets the times that a write in place would set.
func (f *File) touch() {
	if f.touched {
		return
	}
	f.touched = true
	f.disk.setModified(unix.Timespec{Nsec: unix.UTIME_NOW})
}

// Truncate implements blockcrypt.Backing. An operation is under way.
func (f *File) Truncate(n int64) error {
	if !f.writable {
		return errReadOnly
	}
	inPlace := f.direct || f.growing && n >= f.durable
	if f.growing && n < f.durable {
		// What has grown goes; the file in place is as it was when it began to.
		if err := f.disk.Truncate(f.durable); err != nil {
			return err
		}
		f.growing = false
		f.mu.Lock()
		f.base = min(f.base, f.durable)
		f.mu.Unlock()
	}
	if inPlace {
		if err := f.disk.Truncate(n); err != nil {
			return err
		}
	} else {
		if err := f.owe(0); err != nil {
			return err
		}
		f.touch()
		f.keep = min(f.keep, n)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ext.cut(n)
	f.base = min(f.base, n)
	if inPlace {
		f.base = n
	}
	f.size = n
	f.changed = f.changed || !f.direct
	return nil
}

// PunchHole zeroes a range and frees its space. An operation is under way.
func (f *File) PunchHole(off, n int64) error {
	if !f.writable {
		return errReadOnly
	}
	split := f.kept(off, n)
	if split < n {
		if err := f.disk.PunchHole(off+split, n-split); err != nil {
			return err
		}
		f.changed = f.changed || !f.direct
	}
	if split = min(split, f.size-off); split <= 0 {
		return nil
	}
	if err := f.owe(0); err != nil {
		return err
	}
	f.touch()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ext.put(extent{off: off, n: split, dirty: true})
	f.changed = true
	return nil
}

// Preallocate reserves space, without a change of size.
func (f *File) Preallocate(off, n int64) error {
	defer f.meta.Store(true) // it shows in the times
	return f.disk.Preallocate(off, n)
}

// SeekData returns the next offset that may hold data, io.EOF if there is none.
func (f *File) SeekData(off int64) (int64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	at, err := f.disk.SeekData(off)
	if err != nil && err != io.EOF {
		return 0, err
	}
	if err == io.EOF || at >= f.base {
		at = math.MaxInt64
	}
	for i := f.ext.find(off); i < len(f.ext) && f.ext[i].off < at; i++ {
		if f.ext[i].data != nil {
			at = max(off, f.ext[i].off)
		}
	}
	if at == math.MaxInt64 {
		return 0, io.EOF
	}
	return at, nil
}
