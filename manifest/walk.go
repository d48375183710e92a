package manifest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/names"
	"github.com/kmsfs/kmsfs/volume"
)

// ErrUnsound says that an entry is not what a volume has: fsck says more about it.
var ErrUnsound = errors.New("manifest: not sound")

// ahead is how many entries may be looked at before the one that is written or compared. It bounds memory and open directories.
const ahead = 128

// Options say how a volume is walked. The zero value has a worker for each processor.
type Options struct {
	Plain    bool                       // tell plaintext paths, for which the volume must be unlocked unless its names are plaintext
	Workers  int                        // entries looked at at once; 0: as many as there are processors
	Progress func(entries, bytes int64) // is told now and then, one at a time, how many entries there were, and bytes of ciphertext read

	// Suspect reports whether an open file may be what a crash left of a first write that nobody synced (docs/format.md section 10.3): if it
	// is not sound, it counts as empty, as it does in a mount. nil: none may.
	Suspect func(fd int) bool
}

// A found is an entry as a walk finds it.
type found struct {
	Entry
	err    error // why it is not known, or unsound; it wraps ErrUnsound then
	closed bool  // a directory that could not be read: nothing below it is known

	dir  *directory
	name string
	done chan struct{} // closed when all but Entry.Path is known
}

// A walker walks one volume.
type walker struct {
	ctx    context.Context
	layout blockcrypt.Layout
	volume *header.Header
	names  *names.Keys // nil if names are plaintext, or shall not be told
	meta   int         // descriptor of the volume's own directory
	o      Options

	jobs  chan *found // to the workers
	order chan *found // in order

	entries, bytes atomic.Int64

	mu    sync.Mutex
	links map[inode]content // of files with several names; guarded by mu
}

// An inode names a file, whatever its names.
type inode struct{ dev, ino uint64 }

// A content is what is told of a file with content.
type content struct {
	id     header.ID
	digest Digest
}

// maxLinks bounds how many files with several names are remembered, so that each is read once.
const maxLinks = 1 << 16

// A directory is an open directory that is in use.
type directory struct {
	f     *os.File
	path  string
	plain string
	id    header.ID
	known bool // the plaintext names in it can be told
	uses  atomic.Int32
}

func (d *directory) release() {
	if d.uses.Add(-1) == 0 {
		d.f.Close()
	}
}

// walk calls yield with every entry of a volume, in order.
func walk(ctx context.Context, v *volume.Volume, o Options, yield func(*found) error) (entries, bytes int64, err error) {
	layout, err := v.Layout()
	if err != nil {
		return 0, 0, err
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	group, ctx := errgroup.WithContext(ctx)
	w := &walker{
		ctx: ctx, layout: layout, volume: v.Header(), meta: v.MetaFd(), o: o,
		jobs: make(chan *found), order: make(chan *found, ahead), links: make(map[inode]content),
	}
	if o.Plain && !w.volume.PlaintextNames {
		w.names = v.Names()
	}
	group.Go(func() error {
		defer close(w.order)
		defer close(w.jobs)
		return w.root(v.RootFd())
	})
	for range o.Workers {
		group.Go(func() error {
			digester := newDigester(w)
			for f := range w.jobs {
				w.look(f, digester)
				f.dir.release()
				close(f.done)
			}
			return nil
		})
	}
	group.Go(func() error {
		for f := range w.order {
			select {
			case <-f.done:
			case <-ctx.Done():
			}
			if err := ctx.Err(); err != nil {
				return err // f may not be known
			}
			if err := yield(f); err != nil {
				return err
			}
			w.entries.Add(1)
		}
		return nil
	})
	defer w.watch()()
	err = group.Wait()
	return w.entries.Load(), w.bytes.Load(), err
}

// watch tells of the progress until the function that it returns is called.
func (w *walker) watch() (stop func()) {
	if w.o.Progress == nil {
		return func() {}
	}
	done, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for over := false; !over; {
			select {
			case <-done:
				over = true
			case <-tick.C:
			}
			w.o.Progress(w.entries.Load(), w.bytes.Load())
		}
	}()
	return func() { close(done); <-gone }
}

// emit hands an entry on: first to its place in the order, then to a worker.
func (w *walker) emit(f *found) error {
	f.done = make(chan struct{})
	f.dir.uses.Add(1)
	for _, ch := range []chan *found{w.order, w.jobs} {
		select {
		case ch <- f:
		case <-w.ctx.Done():
			f.dir.release()
			return w.ctx.Err()
		}
	}
	return nil
}

// root walks everything.
func (w *walker) root(fd int) error {
	f, list, err := listDir(fd, ".")
	if err != nil {
		return err
	}
	d := &directory{f: f, plain: "/", id: w.volume.FileID, known: w.o.Plain}
	d.uses.Store(1)
	defer d.release()
	top := &found{dir: d, name: "."}
	if d.known {
		top.Plain = d.plain
	}
	if err := w.emit(top); err != nil {
		return err
	}
	return w.directory(d, list)
}

// directory emits what is in an open directory, given the names of it.
func (w *walker) directory(d *directory, list []string) error {
	slices.Sort(list)
	for _, name := range list {
		if d.path == "" && (name == volume.MetaDir || name == "lost+found" && !w.volume.PlaintextNames) {
			continue
		}
		if err := w.entry(d, name); err != nil {
			return err
		}
	}
	return nil
}

// entry emits an entry and, if it is a directory, what is in it.
func (w *walker) entry(d *directory, name string) error {
	f := &found{dir: d, name: name, Entry: Entry{Path: child(d.path, name)}}
	var st unix.Stat_t
	err := unix.Fstatat(int(d.f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		f.err = os.NewSyscallError("stat", err)
		return w.emit(f)
	}
	f.stat(&st)
	if f.Type == 0 || len(f.Path) > maxPath {
		f.err = fmt.Errorf("%w: an unknown type of entry, or a path of more than %d bytes", ErrUnsound, maxPath)
		return w.emit(f)
	}
	f.Plain, f.err = w.plain(d, name)
	if f.Type != Directory {
		return w.emit(f)
	}
	sub, list, err := listDir(int(d.f.Fd()), name)
	if err != nil {
		f.err, f.closed = err, true
		return w.emit(f)
	}
	below := &directory{f: sub, path: f.Path, plain: f.Plain, known: f.Plain != ""}
	below.uses.Store(1)
	defer below.release()
	if below.known && w.names != nil && len(list) > 0 {
		if below.id, err = w.directoryID(sub); err != nil {
			below.known, f.err = false, fmt.Errorf("%w: the directory's ID: %w", ErrUnsound, err)
		}
	}
	if err := w.emit(f); err != nil {
		return err
	}
	return w.directory(below, list)
}

// stat takes over what stat tells.
func (e *Entry) stat(st *unix.Stat_t) {
	e.Type = map[uint32]Type{
		unix.S_IFDIR: Directory, unix.S_IFREG: File, unix.S_IFLNK: Link, unix.S_IFBLK: BlockDevice, unix.S_IFCHR: CharDevice,
		unix.S_IFIFO: FIFO, unix.S_IFSOCK: Socket,
	}[st.Mode&unix.S_IFMT]
	e.Mode, e.UID, e.GID = st.Mode&0o7777, st.Uid, st.Gid
	if e.Type == BlockDevice || e.Type == CharDevice {
		e.Major, e.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
}

// plain returns the plaintext path of an entry, "" if there is none.
func (w *walker) plain(d *directory, disk string) (string, error) {
	switch {
	case !d.known:
		return "", nil
	case w.names == nil:
		return path.Join(d.plain, disk), nil
	case names.IsSide(disk):
		return "", nil
	}
	name, err := w.open(d, disk)
	if err != nil {
		return "", fmt.Errorf("%w: its name: %w", ErrUnsound, err)
	}
	return path.Join(d.plain, name), nil
}

// open opens a stored name.
func (w *walker) open(d *directory, disk string) (name string, err error) {
	if !names.IsLong(disk) {
		return w.names.Open(d.id, disk)
	}
	one, two := names.SideLinks(disk)
	for _, side := range []string{one, two} {
		var sealed string
		if sealed, err = readlink(int(d.f.Fd()), side); err == nil {
			if name, err = w.names.OpenLong(d.id, disk, sealed); err == nil {
				return name, nil
			}
		}
	}
	return "", err
}

// directoryID reads the ID of a directory from one of the links that hold it.
func (w *walker) directoryID(f *os.File) (id [16]byte, err error) {
	for _, link := range []string{names.DirLink, names.DirLinkCopy} {
		var target string
		if target, err = readlink(int(f.Fd()), link); err == nil {
			if id, err = w.names.OpenDirID(target); err == nil {
				return id, nil
			}
		}
	}
	return id, err
}
