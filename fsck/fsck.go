// Package fsck verifies a volume from end to end and copies out of a damaged file what still authenticates.
//
// It reads the ciphertext alone, through directory descriptors and never through a symbolic link, so that nothing that an attacker put there
// leads it elsewhere. Whatever is damaged is reported, and everything beside it is verified all the same.
package fsck

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/names"
	"github.com/kmsfs/kmsfs/volume"
)

// A Kind says what a fault is in.
type Kind string

// The kinds of faults.
const (
	VolumeHeader Kind = "volume header"
	CurrentKey   Kind = "current data key" // of new files
	Name         Kind = "name"
	SideLink     Kind = "side link"    // one of the two links that tell a long name
	DirectoryID  Kind = "directory id" // the links that hold a directory's ID
	LinkTarget   Kind = "link target"
	Attribute    Kind = "attribute"
	Header       Kind = "header"
	Content      Kind = "content"
	HoleMap      Kind = "hole map"
	Unreadable   Kind = "unreadable" // the storage below refuses: nothing is known
	Leftover     Kind = "leftover"   // what a crash leaves behind; nothing refers to it
)

// A Fault is one damaged thing. Off and Len are bytes of plaintext, SealedOff and SealedLen of ciphertext; only faults in files have them.
type Fault struct {
	Kind       Kind   `json:"kind"`
	Ciphertext string `json:"ciphertext"`          // absolute path
	Plaintext  string `json:"plaintext,omitempty"` // path within the volume, from /; "?" stands for a name that is lost
	Off        int64  `json:"offset"`
	Len        int64  `json:"length"`
	SealedOff  int64  `json:"sealed_offset"`
	SealedLen  int64  `json:"sealed_length"`
	Cause      string `json:"cause"` // what is wrong, and the likely cause
	Harmless   bool   `json:"harmless,omitempty"`
	Repairable bool   `json:"repairable"`
	Repaired   bool   `json:"repaired"`
	RepairErr  string `json:"repair_error,omitempty"`
}

// String describes the fault in one line.
func (f Fault) String() string {
	s := fmt.Sprintf("%s: %s", f.Ciphertext, f.Kind)
	if f.Plaintext != "" {
		s = fmt.Sprintf("%s (%s): %s", f.Ciphertext, f.Plaintext, f.Kind)
	}
	if f.Len > 0 {
		s += fmt.Sprintf(", bytes %d to %d", f.Off, f.Off+f.Len-1)
	}
	s += ": " + f.Cause
	switch {
	case f.Repaired:
		s += " (repaired)"
	case f.RepairErr != "":
		s += " (not repaired: " + f.RepairErr + ")"
	case f.Repairable:
		s += " (--repair mends it)"
	}
	return s
}

// Options say how to check. The zero value checks with a worker for each processor and changes nothing.
type Options struct {
	Repair   bool           // mend what can be mended without guessing
	Workers  int            // things verified at once; 0: as many as there are processors
	Fault    func(Fault)    // gets every fault, one at a time; nil: they are counted only
	Progress func(Progress) // gets the state of the check now and then, one at a time

	// Suspect reports whether an open file may be what a crash left of a first write that nobody synced (docs/format.md section 10.3): damage
	// to it is a leftover. nil: none may.
	Suspect func(fd int) bool
}

// A Progress is how far a check is. Bytes are of ciphertext.
type Progress struct{ Entries, Bytes int64 }

// A Report is what a check has found.
type Report struct {
	Directories int64 `json:"directories"`
	Files       int64 `json:"files"`
	Links       int64 `json:"links"`
	Others      int64 `json:"others"` // devices, FIFOs, sockets
	Bytes       int64 `json:"bytes"`  // of ciphertext
	Faults      int64 `json:"faults"` // those that were repaired included, the harmless not
	Repaired    int64 `json:"repaired"`
	Leftovers   int64 `json:"leftovers"` // harmless: what a crash left behind
}

// A checker is one check of a volume.
type checker struct {
	ctx    context.Context
	v      *volume.Volume
	names  *names.Keys
	layout blockcrypt.Layout
	plain  bool // names are stored as they are
	o      Options
	group  errgroup.Group

	entries, bytes atomic.Int64

	mu      sync.Mutex
	report  Report
	inodes  map[inode]bool     // files with several names that were verified; guarded by mu
	ids     map[header.ID]bool // directory IDs; guarded by mu
	targets map[header.ID]bool // long targets that links refer to; guarded by mu
	blind   bool               // something could not be read, which may refer to anything; guarded by mu
	lost    bool               // a link's target was lost, which may have been any; guarded by mu
}

// Check verifies everything in an unlocked volume that nobody else uses. The error says why the check itself could not be done; damage is no error.
func Check(ctx context.Context, v *volume.Volume, o Options) (Report, error) {
	layout, err := v.Layout()
	if err != nil {
		return Report{}, err
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	c := &checker{
		ctx: ctx, v: v, names: v.Names(), layout: layout, plain: v.Header().PlaintextNames, o: o,
		inodes: make(map[inode]bool), ids: make(map[header.ID]bool), targets: make(map[header.ID]bool),
	}
	c.group.SetLimit(o.Workers)
	defer c.watch()()

	c.volumeHeaders()
	root, err := cipherdir.OpenDir(v.RootFd(), ".")
	if err != nil {
		return Report{}, fmt.Errorf("open %s: %w", v.Dir(), err)
	}
	id := v.Header().FileID
	c.ids[id] = true
	c.attributes(root, ".", place{sealed: v.Dir(), plain: "/"})
	c.directory(&directory{f: root, id: id, known: true, root: true, at: place{sealed: v.Dir(), plain: "/"}})
	_ = c.group.Wait() // its functions return nil
	c.longTargets()
	c.newFiles()

	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Bytes = c.bytes.Load()
	return c.report, ctx.Err()
}

// watch calls the progress function now and then until the function that it returns is called.
func (c *checker) watch() (stop func()) {
	if c.o.Progress == nil {
		return func() {}
	}
	done, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				c.o.Progress(Progress{c.entries.Load(), c.bytes.Load()})
				return
			case <-tick.C:
				c.o.Progress(Progress{c.entries.Load(), c.bytes.Load()})
			}
		}
	}()
	return func() { close(done); <-gone }
}

// fault counts and reports a fault; repair, if there is one, mends it.
func (c *checker) fault(f Fault, repair func() error) {
	f.Repairable = repair != nil
	if repair != nil && c.o.Repair {
		if err := repair(); err != nil {
			f.RepairErr = err.Error()
		} else {
			f.Repaired = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case f.Harmless:
		c.report.Leftovers++
	case f.Repaired:
		c.report.Repaired++
		fallthrough
	default:
		c.report.Faults++
	}
	if f.Kind == Unreadable {
		c.blind = true
	}
	if c.o.Fault != nil {
		c.o.Fault(f)
	}
}

// count adds to one of the report's numbers.
func (c *checker) count(n *int64) {
	c.entries.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	*n++
}

// volumeHeaders checks the files that hold the volume header, and those that hold the data key of new files.
func (c *checker) volumeHeaders() {
	for _, h := range c.v.CheckHeaders() {
		f := Fault{Kind: VolumeHeader, Ciphertext: filepath.Join(c.v.Dir(), h.Path), Cause: h.Err.Error() + "; the other one is sound"}
		c.fault(f, c.v.MendHeaders)
	}
	_, err := c.v.Current()
	for _, h := range c.v.CheckCurrent() {
		f := Fault{Kind: CurrentKey, Ciphertext: filepath.Join(c.v.Dir(), h.Path), Cause: h.Err.Error()}
		if err == nil {
			c.fault(f, c.v.MendCurrent)
			continue
		}
		f.Cause += "; no file is lost, but there can be no new ones until kmsfs rotate makes another data key"
		c.fault(f, nil)
	}
}

// Size returns how many bytes of ciphertext a check of the volume has to read, about: what Bytes of its [Progress] ends at.
func Size(ctx context.Context, v *volume.Volume) (total int64) {
	_ = cipherdir.EachFile(ctx, v, func(dir *os.File, name, _ string) error {
		if st, err := lstat(dir, name); err == nil {
			total += min(st.Size, st.Blocks*512) // holes have not to be read
		}
		return nil
	}, func(string, error) {})
	return total
}
