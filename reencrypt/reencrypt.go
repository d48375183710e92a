// Package reencrypt rewrites the files of a volume that nobody uses under its current data key.
//
// A file is opened segment by segment and sealed anew, under a new header and file ID, into a new file in .kmsfs/reencrypt, which then takes its place. Many new files
// are made durable at once, and renamed after that: a crash leaves each name with the old file or with the new one. The names of a file that has several are written
// down before the first of them is changed, so that [Finish] brings them together again (docs/format.md section 10.4).
package reencrypt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/volume"
)

// progressEvery is how often progress is told, at most.
const progressEvery = 100 * time.Millisecond

// Options say how to re-encrypt. The zero value does it with one worker for each processor.
type Options struct {
	DryRun   bool           // read headers only, and tell what would be rewritten
	Key      header.ID      // of a dry run: the ID of the data key that files are to have; zero: that of new files
	Workers  int            // files rewritten at once, each of which needs its size in free space
	Progress func(Progress) // gets the state now and then, one at a time; nil: the bytes are not counted beforehand
}

// A Progress is how many bytes of ciphertext have been looked at.
type Progress struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"` // that were there at the start
}

// A Straggler is a file that was left as it was.
type Straggler struct {
	Ciphertext string `json:"ciphertext"` // path below the ciphertext directory
	Cause      string `json:"cause"`
}

// A Report is what a run did or, of a dry run, would do. A file with several names counts once for each.
type Report struct {
	Files       int64       `json:"files"`       // looked at, those without a header apart
	Reencrypted int64       `json:"reencrypted"` // of them, those that were rewritten
	Bytes       int64       `json:"bytes"`       // of ciphertext that was written
	Stragglers  []Straggler `json:"stragglers"`
}

// A run is one re-encryption.
type run struct {
	ctx      context.Context
	v        *volume.Volume
	j        *journal.Journal
	o        Options
	layout   blockcrypt.Layout
	current  header.ID // data key ID that files are to have
	work     *os.File  // the directory of new files; nil in a dry run, and so is exchange
	exchange *exchange

	mu       sync.Mutex
	report   Report           // guarded by mu
	progress Progress         // guarded by mu
	told     time.Time        // when progress was told last; guarded by mu
	batch    []*replacement   // that wait to take their places; guarded by mu
	weight   int64            // bytes of them; guarded by mu
	groups   map[inode]*group // files not all of whose names have been met; guarded by mu
	late     [][]string       // names of files for which there was no space; guarded by mu
	ending   bool             // these are tried again; guarded by mu
}

// Run re-encrypts all files of an unlocked volume whose data key is not that of new files. Nobody else may use the volume: the caller holds its lock, and has nothing open through j, its
// journal. Cut off anywhere and run again, it goes on. The error says why it could not go on; a file that cannot be rewritten is a straggler.
func Run(ctx context.Context, v *volume.Volume, j *journal.Journal, o Options) (_ Report, err error) {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	r := &run{ctx: ctx, v: v, j: j, o: o, groups: make(map[inode]*group), report: Report{Stragglers: []Straggler{}}}
	if r.layout, err = v.Layout(); err != nil {
		return r.report, err
	}
	if v.Header().PerFile {
		return r.report, volume.ErrPerFile
	}
	if r.current = o.Key; !o.DryRun || o.Key == (header.ID{}) {
		current, err := v.Current()
		if err != nil {
			return r.report, err
		}
		r.current = current.KeyID
	}
	if !o.DryRun {
		if err := errors.Join(j.Checkpoint(), Recover(v)); err != nil {
			return r.report, err
		}
		if r.work, err = makeWork(v); err != nil {
			return r.report, err
		}
		defer r.work.Close()
		r.exchange = &exchange{root: v.RootFd(), work: r.work}
	}
	if o.Progress != nil {
		r.progress.Total = size(ctx, v)
	}
	err = r.files()
	if err == nil {
		err = r.rest()
	}
	if err == nil && o.Progress != nil {
		o.Progress(Progress{r.progress.Total, r.progress.Total})
	}
	if !o.DryRun {
		r.drop(r.take())
		// Also of a run that was cut off: without the directory, nobody knows that there is something to be made durable.
		if synced := syncAll(r.work); synced == nil {
			_ = unix.Unlinkat(v.MetaFd(), volume.WorkDir, unix.AT_REMOVEDIR)
		} else if err == nil {
			err = synced
		}
	}
	slices.SortFunc(r.report.Stragglers, func(a, b Straggler) int { return strings.Compare(a.Ciphertext, b.Ciphertext) })
	return r.report, err
}

// files walks the tree and looks at all files, several at once.
func (r *run) files() error {
	found := make(chan string)
	group, ctx := errgroup.WithContext(r.ctx)
	group.Go(func() error {
		defer close(found)
		return r.walk(ctx, found)
	})
	for range r.o.Workers {
		group.Go(func() error {
			for path := range found {
				if err := r.file(ctx, path); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// An original is a file as it is found.
type original struct {
	cipherdir.File
	st     *unix.Stat_t
	raw    []byte // the header
	header *header.Header
}

// open opens the file at a path.
func (r *run) open(path string) (*original, error) {
	f, st, err := openFile(r.v.RootFd(), path)
	if err != nil {
		return nil, err
	}
	return &original{File: f, st: st}, nil
}

// readHeader reads and authenticates the header.
func (o *original) readHeader(ctx context.Context, v *volume.Volume) error {
	raw := make([]byte, v.Header().Size)
	n, err := o.ReadAt(raw, 0)
	if err != nil && err != io.EOF {
		return err
	}
	o.raw = raw[:n]
	o.header, err = v.FileHeader(ctx, o.raw)
	return err
}

// file looks at the file at a path, and rewrites it if it has another data key and no name that is still to come.
func (r *run) file(ctx context.Context, path string) error {
	o, err := r.open(path)
	if err != nil {
		if !isGone(err) && !errors.Is(err, errNoFile) {
			r.straggler(path, err)
		}
		return ctx.Err()
	}
	defer o.Close()
	defer r.step(share(o.st))
	if o.st.Size == 0 {
		return nil
	}
	err = o.readHeader(ctx, r.v)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && r.j.Suspect(int(o.Fd())):
		return nil // what a crash tore before anybody synced it reads as empty
	}
	if !r.count(o, err == nil && o.header.KeyID != r.current) {
		if err != nil {
			r.straggler(path, err)
		}
		return nil
	}
	paths := []string{path}
	if o.st.Nlink > 1 {
		if paths = r.together(o.st, path); paths == nil {
			return nil
		}
	}
	return r.rewrite(ctx, o, paths)
}

// count counts a file, and reports whether it is to be rewritten.
func (r *run) count(o *original, old bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Files++
	if old && r.o.DryRun {
		r.report.Reencrypted++
		r.report.Bytes += share(o.st)
	}
	return old && !r.o.DryRun
}

// rewrite seals a file anew and lets it wait for its turn.
func (r *run) rewrite(ctx context.Context, o *original, paths []string) error {
	n, err := r.seal(ctx, o)
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		if !r.j.Suspect(int(o.Fd())) {
			r.kept(paths, err)
		}
		return nil
	}
	n.paths = paths
	return r.settle(r.add(n))
}

// kept notes that a file was not rewritten. If there was no space, it is put off to the end.
func (r *run) kept(paths []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ending && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		r.late = append(r.late, paths)
		return
	}
	r.stragglersLocked(paths, err)
}

// rest does what is left when the walk is over.
func (r *run) rest() error {
	for _, g := range r.groups {
		r.stragglers(g.paths, fmt.Errorf("it has %d names, of which %d are in the volume", g.links, len(g.paths)))
	}
	if err := r.settle(r.take()); err != nil {
		return err
	}
	r.ending = true
	for _, paths := range r.late {
		if err := r.lateOne(paths); err != nil {
			return err
		}
	}
	return nil
}

// lateOne rewrites a file for which there was no space before, alone.
func (r *run) lateOne(paths []string) error {
	// Space that was freed can be had once that is durable.
	if err := syncAll(r.work); err != nil {
		return err
	}
	o, err := r.open(paths[0])
	if err != nil {
		r.stragglers(paths, err)
		return nil
	}
	defer o.Close()
	if err := o.readHeader(r.ctx, r.v); err != nil {
		r.stragglers(paths, err)
		return r.ctx.Err()
	}
	if err := r.rewrite(r.ctx, o, paths); err != nil {
		return err
	}
	return r.settle(r.take())
}

func (r *run) stragglers(paths []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stragglersLocked(paths, err)
}

func (r *run) stragglersLocked(paths []string, err error) {
	for _, path := range paths {
		r.report.Stragglers = append(r.report.Stragglers, Straggler{path, err.Error()})
	}
}

func (r *run) straggler(path string, err error) { r.stragglers([]string{path}, err) }

// step tells that n more bytes were looked at.
func (r *run) step(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress.Done = min(r.progress.Done+n, r.progress.Total) // sizes change while files are written out
	if r.o.Progress != nil && time.Since(r.told) >= progressEvery {
		r.told = time.Now()
		r.o.Progress(r.progress)
	}
}
