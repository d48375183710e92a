package journal

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// MarkName is the extended attribute that says in which epoch a ciphertext file got its first bytes.
const MarkName = "user.kmsfs-new"

const (
	stateMagic = "kmsfsepo"
	stateSlot  = 512 // bytes; two of them, written in turn
	maxSpans   = 16
)

// A span is the epochs from and up to, but without, to.
type span struct{ from, to uint64 }

// state is the file .kmsfs/epochs. The files of an epoch in doubt may be what a power cut left of a write that nobody synced.
type state struct {
	disk    disk
	turn    uint64 // counts writes; odd ones go to the second slot
	root    uint64 // inode number of the ciphertext directory: a copy of the volume elsewhere is in no doubt
	current uint64 // the largest epoch that was begun
	since   uint64 // the first epoch of the running mount that may not be durable; 0: none runs
	spans   []span // in doubt since an earlier crash
}

// openState reads the file, of which the younger valid slot counts.
func openState(k kernel, meta, root, flags int) (*state, error) {
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return nil, err
	}
	s := &state{disk: disk{k, -1}, root: st.Ino}
	fd, err := unix.Openat(meta, "epochs", flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err == unix.ENOENT {
		return s, nil
	} else if err != nil {
		return nil, fmt.Errorf("open .kmsfs/epochs: %w", err)
	}
	s.disk.fd = fd
	for i := range int64(2) {
		b := make([]byte, stateSlot)
		if n, _ := s.disk.ReadAt(b, i*stateSlot); n == len(b) {
			s.parse(b)
		}
	}
	return s, nil
}

// parse takes over what a slot says, if it is valid and younger.
func (s *state) parse(b []byte) {
	be := binary.BigEndian
	sum := sha256.Sum256(b[:stateSlot-32])
	if string(b[:8]) != stateMagic || sum != [32]byte(b[stateSlot-32:]) || be.Uint64(b[8:]) < s.turn {
		return
	}
	s.turn, s.current, s.since = be.Uint64(b[8:]), be.Uint64(b[24:]), be.Uint64(b[32:])
	s.spans = nil
	if be.Uint64(b[16:]) != s.root {
		s.since = 0
		return
	}
	n := min(be.Uint64(b[40:]), maxSpans)
	for i := range n {
		s.spans = append(s.spans, span{be.Uint64(b[48+16*i:]), be.Uint64(b[56+16*i:])})
	}
}

// write makes the state durable. If it fails, the next try has the same slot: the other one counts until then.
func (s *state) write() (err error) {
	s.turn++
	defer func() {
		if err != nil {
			s.turn--
		}
	}()
	be := binary.BigEndian
	b := append([]byte(stateMagic), make([]byte, stateSlot-8)...)
	for i, v := range []uint64{s.turn, s.root, s.current, s.since, uint64(len(s.spans))} {
		be.PutUint64(b[8+8*i:], v)
	}
	for i, v := range s.spans {
		be.PutUint64(b[48+16*i:], v.from)
		be.PutUint64(b[56+16*i:], v.to)
	}
	sum := sha256.Sum256(b[:stateSlot-32])
	copy(b[stateSlot-32:], sum[:])
	if _, err := s.disk.WriteAt(b, int64(s.turn%2)*stateSlot); err != nil {
		return err
	}
	return s.disk.sync()
}

// doubtful returns the spans in doubt when nobody has the volume mounted.
func (s *state) doubtful() []span {
	spans := s.spans
	if s.since > 0 {
		spans = append(spans, span{s.since, s.current + 2}) // an epoch begins before it is noted
	}
	if len(spans) > maxSpans {
		spans = append([]span{{spans[0].from, spans[1].to}}, spans[2:]...)
	}
	return spans
}

// begin notes that the volume is mounted.
func (s *state) begin() error {
	s.spans = s.doubtful()
	s.current += 2
	s.since = s.current
	return s.write()
}

// end notes that everything written since begin is durable.
func (s *state) end() error {
	s.since = 0
	return s.write()
}

// Suspect reports whether the file fd may be what a power cut left of a new file that was never synced, so that it is no loss, and no
// attack worth the name, if it reads as empty: whoever could set the mark could have cut the file.
func (j *Journal) Suspect(fd int) bool {
	if len(j.suspects) == 0 {
		return false
	}
	epoch, ok := readMark(fd)
	if !ok {
		return false
	}
	for _, s := range j.suspects {
		if s.from <= epoch && epoch < s.to {
			return true
		}
	}
	return false
}

// Doubts reports whether any file can be suspect.
func (j *Journal) Doubts() bool { return len(j.suspects) > 0 }

// Clear ends the doubt about fd, after its content was found whole or was dropped.
func (j *Journal) Clear(fd int) error {
	if j.readOnly {
		return nil
	}
	d := disk{j.kernel, fd}
	if err := d.writeOut(); err != nil {
		return err
	}
	return d.unmark()
}

func readMark(fd int) (epoch uint64, ok bool) {
	var b [8]byte
	n, err := unix.Fgetxattr(fd, MarkName, b[:])
	if err != nil || n != len(b) {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[:]), true
}

// mark marks f, which is about to get its first bytes. f.op is held.
func (j *Journal) mark(f *File) error {
	j.marks.RLock()
	defer j.marks.RUnlock()
	f.marked = true
	if j.unmarked.Load() {
		return nil
	}
	b := binary.BigEndian.AppendUint64(nil, j.epoch)
	switch err := j.kernel.setMark(f.fd, b); err {
	case nil:
		j.marked.Store(true)
	case unix.EOPNOTSUPP:
		j.unmarked.Store(true) // such a file is torn by a power cut as on any file system
	case unix.EPERM, unix.EACCES, unix.ENOSPC, unix.EDQUOT, unix.ERANGE, unix.E2BIG:
		j.lapsed.Store(true) // likewise, this one
	default:
		return err
	}
	return nil
}

// NextEpoch makes durable what new files hold that were written since the last epoch began, and ends the doubt about them.
func (j *Journal) NextEpoch() error {
	if !j.marked.Swap(false) {
		return nil
	}
	j.marks.Lock()
	if j.epoch == j.state.current { // else the last try failed
		j.epoch++
	}
	next := j.epoch
	j.marks.Unlock()
	// What is written from here on to files of the old epoch goes through the log.
	for _, f := range j.all() {
		f.op.Lock()
		f.settleDown()
		f.op.Unlock()
	}
	if err := j.disk().syncAll(); err != nil {
		j.marked.Store(true)
		return err
	}
	j.marks.Lock()
	defer j.marks.Unlock()
	last := *j.state
	j.state.current, j.state.since = next, next
	if err := j.state.write(); err != nil {
		*j.state = last
		j.marked.Store(true)
		return err
	}
	return nil
}
