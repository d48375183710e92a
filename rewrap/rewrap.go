// Package rewrap puts data keys wrapped by other CMKs into the headers of a volume and of its files.
//
// The data keys stay, and so does every segment. A data key is wrapped once for each new CMK, before anything is changed; then come the volume header and its
// copy, so that new files have the new EDKs, and then the headers of files, each through the journal, which makes the change atomic and syncs many at once. Cut off
// anywhere and run again, it goes on: what a header lists already is kept.
package rewrap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/volume"
)

// ErrLast says that no trusted CMK would be left that opens the volume.
var ErrLast = errors.New("rewrap: no trusted CMK would be left")

// A CMK is a keyring on one CMK.
type CMK interface {
	keyring.Keyring
	CMK() string // the URI, as EDKs name it
}

// A Change says which CMKs are to wrap the data keys. Without any, headers that a run left behind get what the volume header lists.
type Change struct {
	Add     []CMK
	Remove  []string // URIs, as EDKs name them
	Trusted []string // URIs of the CMKs that the machine can ask afterwards: one of them must be left
}

// Options say how to rewrap. The zero value does it with two workers for each processor.
type Options struct {
	DryRun   bool           // wrap, and tell what would be changed, but change nothing
	Workers  int            // headers changed at once
	Before   func() error   // called once all is known to be possible, before the first change; an error stops the run; may be nil
	Progress func(Progress) // gets the state now and then, one at a time; nil: the files are not counted beforehand
}

// A Progress is how many files have been looked at.
type Progress struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"` // of those that were there at the start
}

// A Straggler is a file whose header was not changed.
type Straggler struct {
	Ciphertext string `json:"ciphertext"` // path below the ciphertext directory; "" if the file has none
	Cause      string `json:"cause"`
}

// A Report is what a run did or, of a dry run, would do.
type Report struct {
	CMKs       []string    `json:"cmks"`      // that the volume header lists now
	Added      []string    `json:"added"`     // that had not wrapped the volume's data key before
	Removed    []string    `json:"removed"`   // that some header listed
	Unlisted   []string    `json:"unlisted"`  // that were to be removed and no header listed
	Files      int64       `json:"files"`     // looked at, those without a header apart
	Rewrapped  int64       `json:"rewrapped"` // of them, those whose header was changed
	Wraps      int64       `json:"wraps"`     // made by CMKs
	Stragglers []Straggler `json:"stragglers"`
}

// A run is one rewrap.
type run struct {
	ctx     context.Context
	v       *volume.Volume
	j       *journal.Journal
	change  Change
	o       Options
	target  []keyring.EncryptedDataKey // of headers under the volume's data key
	workers chan struct{}

	files, rewrapped atomic.Int64

	planning sync.Mutex                        // held over the calls at CMKs
	wrapped  map[wrap]keyring.EncryptedDataKey // guarded by planning
	wraps    int64                             // guarded by planning

	mu       sync.Mutex
	moved    map[journal.Inode]*os.File // directories that were moved during the walk; guarded by mu
	listed   map[string]bool            // CMKs to be removed that a header listed; guarded by mu
	bad      map[string]string          // stragglers: cause by path; guarded by mu
	progress Progress                   // guarded by mu
	told     time.Time                  // when progress was told last; guarded by mu
}

// A wrap names an EDK.
type wrap struct {
	key header.ID
	cmk string
}

// Run rewraps an unlocked volume whose journal is j, whether somebody uses it or not. Nothing is changed if a CMK fails to wrap the volume's data key, or the EDKs do not fit.
func Run(ctx context.Context, v *volume.Volume, j *journal.Journal, c Change, o Options) (Report, error) {
	if o.Workers <= 0 {
		o.Workers = 2 * runtime.GOMAXPROCS(0)
	}
	r := &run{
		ctx: ctx, v: v, j: j, change: c, o: o, workers: make(chan struct{}, o.Workers),
		wrapped: make(map[wrap]keyring.EncryptedDataKey), listed: make(map[string]bool), moved: make(map[journal.Inode]*os.File), bad: make(map[string]string),
	}
	before := v.Header().EDKs
	var err error
	if r.target, err = r.plan(v.Header()); err != nil {
		return Report{}, err
	}
	if err := r.check(); err != nil {
		return Report{}, err
	}
	if !o.DryRun && o.Before != nil {
		if err := o.Before(); err != nil {
			return Report{}, err
		}
	}
	if !o.DryRun && (!equal(before, r.target) || len(v.CheckHeaders()) > 0) {
		if err := v.SetEDKs(r.target); err != nil {
			return Report{}, err
		}
	}
	err = r.walkAll()
	if err == nil && !o.DryRun {
		err = j.Checkpoint()
	}
	return r.report(before), err
}

// walkAll changes the headers of all files. An entry that is moved while the tree is walked may escape, or be met twice, so it is looked at when it moves.
func (r *run) walkAll() error {
	if r.o.Progress != nil {
		r.progress.Total = count(r.ctx, r.v.RootFd())
	}
	defer r.j.Watch(r.entryMoved)()
	defer r.dropMoved()
	root, err := openDir(r.v.RootFd(), ".")
	for err == nil && root != nil {
		err = r.directory(root, "")
		root = r.nextMoved()
	}
	if err == nil && !r.o.DryRun { // files that are open may have no name
		r.j.Each(func(f *journal.File) { r.file(f, "") })
	}
	return err
}

// check refuses a change after which the volume could not be opened, or that does not fit.
func (r *run) check() error {
	trusted := slices.ContainsFunc(r.target, func(e keyring.EncryptedDataKey) bool { return slices.Contains(r.change.Trusted, e.CMK) })
	if !trusted {
		left := "none at all"
		if len(r.target) > 0 {
			left = strings.Join(uris(r.target), ", ")
		}
		return fmt.Errorf("%w that opens the volume (left: %s); add another in the same command, or trust one of those that are left", ErrLast, left)
	}
	if _, err := r.v.Reseal(r.v.Header(), r.target); err != nil {
		return fmt.Errorf("%w; the header length of a volume is fixed at init: remove a CMK in the same command", err)
	}
	return nil
}

// plan returns the EDKs that h is to list. CMKs are asked where nobody has wrapped its data key for them yet.
func (r *run) plan(h *header.Header) ([]keyring.EncryptedDataKey, error) {
	r.planning.Lock()
	defer r.planning.Unlock()
	var edks []keyring.EncryptedDataKey
	have := make(map[string]bool)
	for _, e := range h.EDKs {
		if slices.Contains(r.change.Remove, e.CMK) {
			r.mu.Lock()
			r.listed[e.CMK] = true
			r.mu.Unlock()
			continue
		}
		have[e.CMK] = true
		edks = append(edks, e)
	}
	for _, k := range r.change.Add {
		if have[k.CMK()] {
			continue
		}
		id := wrap{h.KeyID, k.CMK()}
		e, ok := r.wrapped[id]
		if !ok {
			made, err := r.v.Wrap(r.ctx, h.KeyID, k)
			if err != nil {
				return nil, fmt.Errorf("wrap the data key under %s: %w", k.CMK(), err)
			}
			if len(made) != 1 {
				return nil, fmt.Errorf("wrap the data key under %s: %d wrapped keys", k.CMK(), len(made))
			}
			e = made[0]
			r.wrapped[id], r.wraps = e, r.wraps+1
		}
		edks = append(edks, e)
	}
	return edks, nil
}

// edks returns the EDKs that the header of a file is to list.
func (r *run) edks(h *header.Header) ([]keyring.EncryptedDataKey, error) {
	if h.KeyID == r.v.Header().KeyID {
		for _, e := range h.EDKs {
			if slices.Contains(r.change.Remove, e.CMK) {
				r.mu.Lock()
				r.listed[e.CMK] = true
				r.mu.Unlock()
			}
		}
		return r.target, nil
	}
	edks, err := r.plan(h)
	if err == nil && len(edks) == 0 {
		err = fmt.Errorf("%w: the file has a data key of its own, wrapped by those to be removed alone", ErrLast)
	}
	return edks, err
}

func (r *run) report(before []keyring.EncryptedDataKey) Report {
	p := Report{
		CMKs: uris(r.target), Added: []string{}, Removed: []string{}, Unlisted: []string{}, Stragglers: []Straggler{},
		Files: r.files.Load(), Rewrapped: r.rewrapped.Load(), Wraps: r.wraps,
	}
	for _, e := range r.target {
		if !slices.Contains(uris(before), e.CMK) {
			p.Added = append(p.Added, e.CMK)
		}
	}
	for _, cmk := range r.change.Remove {
		if r.listed[cmk] {
			p.Removed = append(p.Removed, cmk)
		} else {
			p.Unlisted = append(p.Unlisted, cmk)
		}
	}
	for path, cause := range r.bad {
		p.Stragglers = append(p.Stragglers, Straggler{path, cause})
	}
	slices.SortFunc(p.Stragglers, func(a, b Straggler) int { return strings.Compare(a.Ciphertext, b.Ciphertext) })
	return p
}

func uris(edks []keyring.EncryptedDataKey) []string {
	list := []string{}
	for _, e := range edks {
		list = append(list, e.CMK)
	}
	return list
}

// equal reports whether two lists of EDKs are the same.
func equal(a, b []keyring.EncryptedDataKey) bool {
	return slices.EqualFunc(a, b, func(x, y keyring.EncryptedDataKey) bool {
		return x.CMK == y.CMK && slices.Equal(x.Wrapped, y.Wrapped)
	})
}
