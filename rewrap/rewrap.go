// Package rewrap puts data keys wrapped by other CMKs into the headers of a volume and of its files.
//
// The data keys stay, and so does every segment. A data key is wrapped once for each new CMK, the volume's own before anything is changed; then come the volume header and its
// copy, and the data key of new files, so that those have the new EDKs, and then the headers of files, each through the journal, which makes the change atomic and syncs many at once. Cut off
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

	"github.com/kmsfs/kmsfs/cipherdir"
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
	Have    []CMK    // others that can be asked: they wrap the data keys that the volume header's CMKs have not wrapped yet
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
	target  []keyring.EncryptedDataKey               // of the volume header; those of all others are from the same CMKs
	own     map[header.ID][]keyring.EncryptedDataKey // of headers under the volume's own data keys
	workers chan struct{}

	files, rewrapped, wraps atomic.Int64

	turns    [64]sync.Mutex                    // by data key ID, where every file has its own: held while its header is changed
	planning sync.Mutex                        // held over the calls at CMKs, for data keys that files share
	wrapped  map[wrap]keyring.EncryptedDataKey // guarded by planning

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
		own: make(map[header.ID][]keyring.EncryptedDataKey), wrapped: make(map[wrap]keyring.EncryptedDataKey), listed: make(map[string]bool), moved: make(map[journal.Inode]*os.File), bad: make(map[string]string),
	}
	before := v.Header().EDKs
	current, err := v.Current()
	if err == nil {
		r.target, err = r.plan(v.Header())
	}
	if err == nil {
		r.own[v.Header().KeyID] = r.target
		if current.Kind == header.Current {
			r.own[current.KeyID], err = r.inLine(current)
		}
	}
	if err != nil {
		return Report{}, err
	}
	if err := r.check(current); err != nil {
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
	if !o.DryRun && current.Kind == header.Current && (!equal(current.EDKs, r.own[current.KeyID]) || len(v.CheckCurrent()) > 0) {
		if err := v.SetCurrentEDKs(r.own[current.KeyID]); err != nil {
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
		r.progress.Total = count(r.ctx, r.v)
	}
	defer r.j.Watch(r.entryMoved)()
	defer r.dropMoved()
	d, err := cipherdir.OpenDir(r.v.RootFd(), ".")
	for err == nil && d != nil {
		err = r.directory(d, d.Name())
		d = r.nextMoved()
	}
	if err == nil && !r.o.DryRun { // files that are open may have no name
		r.j.Each(func(f *journal.File) { r.file(f, "") })
	}
	return err
}

// check refuses a change after which the volume could not be opened, or that does not fit.
func (r *run) check(current *header.Header) error {
	trusted := slices.ContainsFunc(r.target, func(e keyring.EncryptedDataKey) bool { return slices.Contains(r.change.Trusted, e.CMK) })
	if !trusted {
		left := "none at all"
		if len(r.target) > 0 {
			left = strings.Join(keyring.CMKs(r.target), ", ")
		}
		return fmt.Errorf("%w that opens the volume (left: %s); add another in the same command, or trust one of those that are left", ErrLast, left)
	}
	for _, h := range []*header.Header{r.v.Header(), current} {
		if _, err := r.v.Reseal(h, r.own[h.KeyID]); err != nil {
			return fmt.Errorf("%w; the header length of a volume is fixed at init: remove a CMK in the same command", err)
		}
	}
	return nil
}

// plan returns the EDKs that the volume header is to list: what it has, but for CMKs to be removed, and then those to be added.
func (r *run) plan(h *header.Header) ([]keyring.EncryptedDataKey, error) {
	r.note(h)
	var edks []keyring.EncryptedDataKey
	for _, e := range h.EDKs {
		if !slices.Contains(r.change.Remove, e.CMK) {
			edks = append(edks, e)
		}
	}
	for _, k := range r.change.Add {
		if slices.Contains(keyring.CMKs(edks), k.CMK()) {
			continue
		}
		e, err := r.wrap(h.KeyID, k)
		if err != nil {
			return nil, err
		}
		edks = append(edks, e)
	}
	return edks, nil
}

// inLine returns the EDKs of h's data key from the CMKs that the volume header is to list.
func (r *run) inLine(h *header.Header) ([]keyring.EncryptedDataKey, error) {
	var edks []keyring.EncryptedDataKey
	for _, cmk := range keyring.CMKs(r.target) {
		if i := slices.Index(keyring.CMKs(h.EDKs), cmk); i >= 0 {
			edks = append(edks, h.EDKs[i])
			continue
		}
		can := slices.Concat(r.change.Add, r.change.Have)
		i := slices.IndexFunc(can, func(k CMK) bool { return k.CMK() == cmk })
		if i < 0 {
			return nil, fmt.Errorf("%w: %s, which has not wrapped the data key %s yet", keyring.ErrUntrusted, cmk, h.KeyID)
		}
		e, err := r.wrap(h.KeyID, can[i])
		if err != nil {
			return nil, err
		}
		edks = append(edks, e)
	}
	return edks, nil
}

// wrap has a CMK wrap a data key, once for all headers that have it. Where every file has a data key of its own, there is nothing to be remembered.
func (r *run) wrap(key header.ID, k CMK) (keyring.EncryptedDataKey, error) {
	id := wrap{key, k.CMK()}
	if shared := !r.v.Header().PerFile; shared {
		r.planning.Lock()
		defer r.planning.Unlock()
		if e, ok := r.wrapped[id]; ok {
			return e, nil
		}
	}
	made, err := r.v.Wrap(r.ctx, key, k)
	if err == nil && len(made) != 1 {
		err = fmt.Errorf("%d wrapped keys", len(made))
	}
	if err != nil {
		return keyring.EncryptedDataKey{}, fmt.Errorf("wrap the data key under %s: %w", k.CMK(), err)
	}
	r.wraps.Add(1)
	if !r.v.Header().PerFile {
		r.wrapped[id] = made[0]
	}
	return made[0], nil
}

// edks returns the EDKs that the header of a file is to list.
func (r *run) edks(h *header.Header) ([]keyring.EncryptedDataKey, error) {
	r.note(h)
	if own := r.own[h.KeyID]; own != nil {
		return own, nil
	}
	return r.inLine(h)
}

// note notes which of the CMKs to be removed a header lists.
func (r *run) note(h *header.Header) {
	for _, e := range h.EDKs {
		if slices.Contains(r.change.Remove, e.CMK) {
			r.mu.Lock()
			r.listed[e.CMK] = true
			r.mu.Unlock()
		}
	}
}

func (r *run) report(before []keyring.EncryptedDataKey) Report {
	p := Report{
		CMKs: keyring.CMKs(r.target), Added: []string{}, Removed: []string{}, Unlisted: []string{}, Stragglers: []Straggler{},
		Files: r.files.Load(), Rewrapped: r.rewrapped.Load(), Wraps: r.wraps.Load(),
	}
	for _, e := range r.target {
		if !slices.Contains(keyring.CMKs(before), e.CMK) {
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

// equal reports whether two lists of EDKs are the same.
func equal(a, b []keyring.EncryptedDataKey) bool {
	return slices.EqualFunc(a, b, func(x, y keyring.EncryptedDataKey) bool {
		return x.CMK == y.CMK && slices.Equal(x.Wrapped, y.Wrapped)
	})
}
