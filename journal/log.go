package journal

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	logMagic = "kmsfslog"
	logStart = 4096 // where records begin

	// maxScratch is how many bytes a log keeps for the next record: more than one save takes of a file that is written little by little.
	maxScratch = saveAt + 512<<10
)

// A log is one of the two files that hold records. What lies past the last record of its generation is of no account.
type log struct {
	name string
	fd   int
	disk disk

	// Changed under Journal.mu only.
	generation atomic.Uint64
	pos        atomic.Int64 // where the next record goes
	sequence   uint64       // of the next record
	scratch    []byte       // for the next record
	allocated  int64        // bytes that have space below, and have been written once: syncing them again changes no metadata

	syncing sync.Mutex // held over fdatasync
	synced  int64      // bytes of this generation that are durable; guarded by syncing
}

func openLog(k kernel, meta int, name string, flags int) (*log, error) {
	fd, err := unix.Openat(meta, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err == unix.ENOENT {
		l := &log{name: name, fd: -1, disk: disk{k, -1}}
		l.pos.Store(logStart)
		return l, nil // opened for reading: nothing to replay
	} else if err != nil {
		return nil, fmt.Errorf("open .kmsfs/%s: %w", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, fmt.Errorf("open .kmsfs/%s: not a regular file", name)
	}
	l := &log{name: name, fd: fd, disk: disk{k, fd}}
	l.pos.Store(logStart)
	head := make([]byte, 48)
	if n, err := l.disk.ReadAt(head, 0); n == len(head) {
		if string(head[:8]) == logMagic && logSum(head) == [32]byte(head[16:]) {
			l.generation.Store(binary.BigEndian.Uint64(head[8:]))
		}
	} else if err != io.EOF {
		unix.Close(fd)
		return nil, fmt.Errorf("read .kmsfs/%s: %w", name, err)
	}
	return l, nil
}

func logSum(head []byte) [32]byte { return sha256.Sum256(head[:16]) }

// scan calls fn for every record of the log, in order.
func (l *log) scan(fn func(*record) error) error {
	sequence, pos := uint64(0), int64(logStart)
	if l.fd < 0 {
		return nil
	}
	size, err := l.disk.Size()
	if err != nil {
		return err
	}
	for {
		head := make([]byte, recordHeader)
		if n, err := l.disk.ReadAt(head, pos); err != nil && err != io.EOF {
			return fmt.Errorf("read .kmsfs/%s: %w", l.name, err)
		} else if n < len(head) {
			return nil
		}
		n := recordLen(head, l.generation.Load(), sequence)
		if n == 0 || n > min(size, maxLog)-pos {
			return nil
		}
		b := make([]byte, n)
		if _, err := l.disk.ReadAt(b, pos); err != nil && err != io.EOF {
			return fmt.Errorf("read .kmsfs/%s: %w", l.name, err)
		}
		r, err := parseRecord(b)
		if err != nil {
			return nil // torn: it was never promised, and nothing follows it
		}
		if err := fn(r); err != nil {
			return err
		}
		pos, sequence = pos+n, sequence+1
	}
}

// empty reports whether the log has no record.
func (l *log) empty() bool { return l.pos.Load() == logStart }

// reset notes a new generation, durably: the records of the old one are gone. Then begin must be called.
func (l *log) reset(generation uint64) error {
	head := append([]byte(logMagic), make([]byte, 40)...)
	binary.BigEndian.PutUint64(head[8:], generation)
	sum := logSum(head)
	copy(head[16:], sum[:])
	if _, err := l.disk.WriteAt(head, 0); err != nil {
		return err
	}
	return l.disk.syncData()
}

// begin makes the log ready for the records of a generation.
func (l *log) begin(generation uint64) {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.generation.Store(generation)
	l.pos.Store(logStart)
	l.sequence, l.synced = 0, logStart
}

// reserve makes sure that records of n bytes find space.
func (l *log) reserve(n int64) error {
	pos := l.pos.Load()
	if pos+n <= l.allocated {
		return nil
	}
	step := int64(1 << 20)
	if pos+n < 4*step {
		step /= 4 // most volumes never need more
	}
	end := (pos + n + step - 1) &^ (step - 1)
	zeros := make([]byte, 64<<10)
	size, err := l.disk.Size()
	if err != nil {
		return err
	}
	err = l.disk.Preallocate(0, end)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	for off := size; off < end; off += int64(len(zeros)) {
		if _, err := l.disk.WriteAt(zeros[:min(end-off, int64(len(zeros)))], off); err != nil {
			return err
		}
	}
	l.allocated = end
	return nil
}

// write adds a record, which is durable after a sync up to the offset returned.
func (l *log) write(r *record) (end int64, err error) {
	if r.encoded() > maxLog-l.pos.Load() {
		return 0, unix.EFBIG
	}
	b := r.append(slices.Grow(l.scratch[:0], int(r.encoded())), l.generation.Load(), l.sequence)
	if cap(b) <= maxScratch {
		l.scratch = b
	}
	pos := l.pos.Load()
	if _, err := l.disk.WriteAt(b, pos); err != nil {
		return 0, err
	}
	end = pos + int64(len(b))
	l.pos.Store(end)
	l.sequence++
	return end, nil
}

// sync makes the log durable up to an offset at least. A generation that is over was durable, in place, before it ended.
func (l *log) sync(generation uint64, end int64) error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	if l.generation.Load() != generation || l.synced >= end {
		return nil
	}
	written := l.pos.Load()
	if err := l.disk.syncData(); err != nil {
		return err
	}
	l.synced = max(l.synced, written)
	return nil
}
