// Package journal makes changes to the durable bytes of ciphertext files atomic and durable, by a redo log.
//
// Bytes that a file had at open or at its last sync are never overwritten in place until their new form is durable in the log. A
// change is kept in memory ([overlay]), written to the log when the file is closed or synced ([File.Save], [File.Sync]), and
// put in place later, by a checkpoint. The log holds ciphertext as it will stand in the file, so that replay needs no key;
// docs/format.md section 10 describes it.
//
// The bytes of a file that has none yet are written in place, once: there is nothing that a torn write could destroy. Such a file carries a
// mark (an extended attribute) until it is durable, so that what a power cut leaves of it can be told from damage ([Journal.Suspect]).
//
// Lock order: Journal.watching, Journal.checkpoints, File.op, then File.placing, Journal.marks, Journal.present or Journal.mu, then File.mu or log.syncing. Nobody waits for room in the log while holding any of them.
package journal

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// logLimit is how many bytes a log may have before the other one is used: it bounds replay, and what changes hold of memory.
	logLimit = 16 << 20
	// maxLog is how long a log may become at all, in bytes, when changes cannot be put in place: it bounds what replay needs of memory.
	maxLog = 256 << 20
	// saveAt is how many bytes of unsaved changes one file may hold before they go to the log, unsynced.
	saveAt = 1 << 20
	// growInMemory is how many bytes a durable file may grow by before the rest is written in place.
	growInMemory = 4 << 20
	// maxIdle is how many closed files may wait for a checkpoint, each with its descriptor.
	maxIdle = 256
	// crowd is how many of them make whoever closes one more wait for it.
	crowd = 2 * maxIdle
	// checkpointEvery is how long a closed file waits for its bytes to be put in place.
	checkpointEvery = 10 * time.Second
	// epochEvery is how long a new file that nobody syncs may stay open to doubt after a power cut, as ext4's own write-back does.
	epochEvery = 30 * time.Second
)

// ErrReplay says that what a crash left in the log cannot be put in place, or that there can be no log.
var ErrReplay = errors.New("journal: cannot replay")

// An Inode names a ciphertext file.
type Inode struct{ Dev, Ino uint64 }

// A Journal is the log of one volume. Its methods may be called by several goroutines at once.
type Journal struct {
	root   int // descriptor of the ciphertext directory
	kernel kernel
	limits limits
	logger *slog.Logger

	readOnly bool
	suspects []span // epochs whose files are open to doubt; constant

	marks    sync.RWMutex
	epoch    uint64      // of files that get their first bytes now; guarded by marks
	state    *state      // guarded by marks
	marked   atomic.Bool // a file was marked since the epoch began
	unmarked atomic.Bool // the backing has no extended attributes
	lapsed   atomic.Bool // some file could not be marked: that one has no mark does not say that it is durable

	renames  atomic.Uint64              // counts what may have changed a path
	deleted  atomic.Bool                // files were deleted whose changes are in the logs, and not in place
	watching sync.RWMutex               // taken before any other
	moved    func(dir int, name string) // see Watch; guarded by watching

	present sync.RWMutex
	files   map[Inode]*File // all that are open, or whose changes are not in place; guarded by present
	idle    int             // of those, closed ones; guarded by present

	mu       sync.Mutex
	logs     [2]*log    // see log for what is guarded by mu
	active   int        // the log that is written to; guarded by mu
	draining bool       // a checkpoint is to empty the other one; guarded by mu
	reserved int64      // bytes that unsaved changes will need in the log; guarded by mu
	room     *sync.Cond // on mu: a checkpoint has ended
	stuck    error      // why the last checkpoint could not empty its log; guarded by mu
	failed   error      // a log could not be made durable; guarded by mu

	checkpoints sync.Mutex // one at a time
	wake        chan struct{}
	stop        chan struct{}
	done        sync.WaitGroup
}

// Options say how a journal is opened. The zero value is useful.
type Options struct {
	ReadOnly bool         // the backing cannot be written: nothing may be left to replay
	Logger   *slog.Logger // default: slog.Default()

	kernel kernel // nil: linux
	limits limits // zero: the constants
}

// limits are logLimit, saveAt and growInMemory, which tests make smaller.
type limits struct{ log, save, grow int64 }

// Open opens the journal kept in the directory meta of the ciphertext directory root (descriptors that stay open until Close) and puts in
// place what a crash has left. The error wraps [ErrReplay] if that cannot be done; nothing is lost then, and the next Open tries again.
func Open(root, meta int, o Options) (*Journal, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.kernel == nil {
		o.kernel = linux{}
	}
	if o.limits == (limits{}) {
		o.limits = limits{logLimit, saveAt, growInMemory}
	}
	j := &Journal{
		root:     root,
		kernel:   o.kernel,
		limits:   o.limits,
		logger:   o.Logger,
		readOnly: o.ReadOnly,
		files:    make(map[Inode]*File),
		wake:     make(chan struct{}, 1),
		stop:     make(chan struct{}),
	}
	j.room = sync.NewCond(&j.mu)
	if err := j.begin(meta); err != nil {
		if !errors.Is(err, ErrReplay) {
			err = fmt.Errorf("%w: %w", ErrReplay, err)
		}
		j.closeLogs()
		return nil, err
	}
	if !j.readOnly {
		j.done.Add(1)
		go j.background()
	}
	return j, nil
}

func (j *Journal) begin(meta int) (err error) {
	flags := unix.O_RDWR | unix.O_CREAT
	if j.readOnly {
		flags = unix.O_RDONLY
	}
	for i := range j.logs {
		if j.logs[i], err = openLog(j.kernel, meta, fmt.Sprintf("journal.%d", i), flags); err != nil {
			return err
		}
	}
	if err := j.replay(); err != nil {
		return err
	}
	if j.state, err = openState(j.kernel, meta, j.root, flags); err != nil {
		return err
	}
	if j.readOnly {
		j.suspects = j.state.doubtful()
		return nil
	}
	if j.state.since > 0 {
		// What a killed process has written may be in the page cache only; a file without a mark is taken for durable, and those that are looked at lose theirs.
		if err := j.disk().syncAll(); err != nil {
			return fmt.Errorf("journal: sync what is left of an unclean end: %w", err)
		}
	}
	if err := j.state.begin(); err != nil {
		return fmt.Errorf("journal: epochs: %w", err)
	}
	j.epoch, j.suspects = j.state.current, j.state.spans
	// The logs may be new, and are relied on by name.
	return disk{j.kernel, meta}.sync()
}

// Close puts every change in place and closes the journal. All files must have been released.
func (j *Journal) Close() error {
	if j.readOnly {
		j.closeLogs()
		return nil
	}
	close(j.stop)
	j.done.Wait()
	err := j.Checkpoint()
	if err == nil {
		err = j.Checkpoint() // the second log
	}
	if err == nil {
		err = j.disk().syncAll()
	}
	if err == nil {
		j.marks.Lock()
		err = j.state.end()
		j.marks.Unlock()
	}
	j.present.Lock()
	for _, f := range j.files {
		unix.Close(f.fd)
	}
	clear(j.files)
	j.present.Unlock()
	j.closeLogs()
	return err
}

func (j *Journal) closeLogs() {
	for _, l := range j.logs {
		if l != nil {
			unix.Close(l.fd)
		}
	}
	if j.state != nil {
		unix.Close(j.state.disk.fd)
	}
}

// disk is the ciphertext directory, by which the file system below is synced.
func (j *Journal) disk() disk { return disk{j.kernel, j.root} }

// Renamed says that the path of some file may have changed.
func (j *Journal) Renamed() { j.renames.Add(1) }

// Stat runs stat, which reads the attributes of a ciphertext file from its entry, and returns the size that the file will have when all
// changes are in place; ok is false if the entry tells. Attributes and size belong together. It may run stat several times.
func (j *Journal) Stat(id func() Inode, stat func() error) (size int64, ok bool, err error) {
	for {
		j.present.RLock()
		err := stat()
		f := j.files[id()]
		j.present.RUnlock()
		if err != nil || f == nil {
			return 0, false, err
		}
		// Once more: the times may have been those of a checkpoint.
		f.placing.RLock()
		err = stat()
		size, _ := f.Size()
		f.placing.RUnlock()
		if err != nil {
			return 0, false, err
		}
		if j.find(f.id) == f {
			return size, true, nil
		}
	}
}

// background runs checkpoints and begins epochs until stop.
func (j *Journal) background() {
	defer j.done.Done()
	checkpoint, epoch := time.NewTicker(checkpointEvery), time.NewTicker(epochEvery)
	defer checkpoint.Stop()
	defer epoch.Stop()
	for {
		var err error
		select {
		case <-j.stop:
			return
		case <-j.wake:
			err = j.Checkpoint()
		case <-checkpoint.C:
			err = j.Checkpoint()
		case <-epoch.C:
			err = j.NextEpoch()
		}
		if err != nil {
			j.logger.Error("journal: cannot put changes in place", "err", err)
		}
	}
}

// hurry asks for a checkpoint now.
func (j *Journal) hurry() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}
