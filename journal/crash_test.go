package journal

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A crashTest makes random changes to files on a [sim], remembering what their users were promised.
type crashTest struct {
	t     *testing.T
	rnd   *rand.Rand
	p     *volume
	disk  *sim
	files map[string]*crashFile // by the names that they have now
	all   []*crashFile          // those whose last name is gone, too
	spare []string              // paths of empty files that have no name yet
	paths map[uint64]string     // where all files can be reached, beside the volume

	inCheckpoint, inEpoch bool // one is under way
	inside                int  // operations within it
}

type crashFile struct {
	name     string // "" if it has none
	ino      uint64
	f        *File
	states   []crashState // one after each operation
	promises []promise    // by syncs, of content
	times    []promise    // likewise, of the modification time
	held     []promise    // of both, by whatever a killed daemon must not lose
	open     bool
	busy     bool // an operation is under way
	doubt    bool // it may be torn, and nobody has looked
}

// A crashState is what a file was from a time on; the operation that made it so began then.
type crashState struct {
	at       int
	content  []byte
	from, to uint64 // modification times that it had
}

// A promise says that from a time on the file is as in a state, or a later one.
type promise struct {
	at, state int
	mtime     uint64 // in that state
	named     int    // when it got its name, if that is durable, too
}

// latest returns what is promised at time k; ok is false if nothing is.
func latest(promises []promise, k int) (last promise, ok bool) {
	for _, p := range promises {
		if p.at <= k && p.state >= last.state {
			last, ok = p, true
		}
	}
	return last, ok
}

// crashLimits are small enough that everything happens in a few operations.
var crashLimits = limits{log: 192 << 10, save: 12 << 10, grow: 20 << 10}

// newCrashTest begins with four files that are empty; there can be more.
func newCrashTest(t *testing.T, seed uint64, limits limits) *crashTest {
	dir := t.TempDir()
	c := &crashTest{
		t: t, rnd: rand.New(rand.NewPCG(seed, 7)), disk: newSim(t, wreck{names: map[string]uint64{}}, nil),
		files: make(map[string]*crashFile), p: &volume{t: t, dir: filepath.Join(dir, "volume")},
	}
	c.p.options = Options{kernel: c.disk, limits: limits}
	if err := os.MkdirAll(filepath.Join(c.p.dir, ".kmsfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	for n := range 24 {
		path := filepath.Join(dir, fmt.Sprint(n))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		c.spare = append(c.spare, path)
	}
	// In the order of checkpoints, so that a seed does the same everywhere.
	slices.SortFunc(c.spare, func(a, b string) int { return cmp.Compare(inode(t, a), inode(t, b)) })
	c.p.open()
	c.p.halt()
	c.paths = c.p.paths()
	for _, name := range []string{"a", "b", "c", "d"} {
		c.create(name)
	}
	return c
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// create gives a name to an empty file.
func (c *crashTest) create(name string) {
	path := c.spare[0]
	c.spare = c.spare[1:]
	if err := os.Link(path, filepath.Join(c.p.dir, name)); err != nil {
		c.t.Fatal(err)
	}
	f := &crashFile{name: name, ino: inode(c.t, path), states: []crashState{{at: c.disk.now, from: simTime(0), to: simTime(0)}}}
	c.paths[f.ino] = path
	c.reopen(f)
	c.disk.file(f.f.fd)
	c.disk.enter(entry{name: name, ino: f.ino})
	c.files[name], c.all = f, append(c.all, f)
}

// reopen opens a file that is closed.
func (c *crashTest) reopen(f *crashFile) {
	fd, err := unix.Open(c.paths[f.ino], unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		c.t.Fatal(err)
	}
	if f.f, err = c.p.j.Open(fd, Inode{uint64(st.Dev), st.Ino}, true, func() string { return f.name }); err != nil {
		c.t.Fatal(err)
	}
	f.open = true
}

func (f *crashFile) content() []byte { return f.states[len(f.states)-1].content }

// now is a promise that f stays as it is.
func (c *crashTest) now(f *crashFile) promise {
	var st unix.Stat_t
	if err := unix.Stat(c.paths[f.ino], &st); err != nil {
		c.t.Fatal(err)
	}
	return promise{at: c.disk.now, state: len(f.states) - 1, mtime: stamp(st.Mtim)}
}

// promised notes that all of f is durable now.
func (c *crashTest) promised(f *crashFile) { c.keep(f, c.now(f)) }

// keep notes that what p says of f is durable now.
func (c *crashTest) keep(f *crashFile, p promise) {
	p.at = c.disk.now
	f.promises, f.times, f.held = append(f.promises, p), append(f.times, p), append(f.held, p)
}

// closed notes that f survives a kill.
func (c *crashTest) closed(f *crashFile) { f.held = append(f.held, c.now(f)) }

// paths are the files that a power cut may change, by inode number.
func (p *volume) paths(names ...string) map[uint64]string {
	p.t.Helper()
	all := make(map[uint64]string)
	for _, name := range append([]string{".kmsfs/journal.0", ".kmsfs/journal.1", ".kmsfs/epochs"}, names...) {
		path := filepath.Join(p.dir, name)
		all[inode(p.t, path)] = path
	}
	return all
}

// recover opens the journal on a wreck and returns the disk under it.
func (p *volume) recover(w wreck, paths map[uint64]string) *sim {
	p.t.Helper()
	for ino, path := range paths {
		w.files[ino].restore(p.t, path)
	}
	if w.names != nil {
		p.rename(w.names, paths)
	}
	before := p.options.kernel.(*sim)
	s := newSim(p.t, w, before.order)
	s.unnumbered = before.unnumbered
	p.options.kernel = s
	p.open()
	p.halt()
	return s
}

// rename gives files the names that they have in a wreck.
func (p *volume) rename(names map[string]uint64, paths map[uint64]string) {
	p.t.Helper()
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		if err := os.Remove(filepath.Join(p.dir, e.Name())); err != nil {
			p.t.Fatal(err)
		}
	}
	for name, ino := range names {
		if err := os.Link(paths[ino], filepath.Join(p.dir, name)); err != nil {
			p.t.Fatal(err)
		}
	}
}

// recover is that of the volume.
func (c *crashTest) recover(w wreck) *sim { return c.p.recover(w, c.paths) }

// file returns the file that has a name in a wreck.
func (c *crashTest) file(w wreck, name string) *crashFile {
	return c.all[slices.IndexFunc(c.all, func(f *crashFile) bool { return f.ino == w.names[name] })]
}

// check compares every file with what it may be after a power cut at time k, or a kill, that left w.
func (c *crashTest) check(w wreck, k int, killed bool) error {
	for _, name := range slices.Sorted(maps.Keys(w.names)) {
		f := c.file(w, name)
		file := c.p.file(name)
		got, ok := content(c.t, file), false
		suspect := c.p.j.Suspect(file.fd)
		promises, times := f.promises, f.times
		if killed {
			times = f.held
			if !suspect { // what is new may be torn by the next write to it
				promises = f.held
			}
		}
		promised, _ := latest(promises, k)
		from := promised.state
		may := 0
		for _, s := range f.states[from:] {
			if s.at > k {
				break
			}
			may++
			if bytes.Equal(got, s.content) || suspect && len(s.content) == 0 {
				ok = true
				break
			}
		}
		if !ok {
			return fmt.Errorf("%s has %d bytes, which is none of the %d states that it may have from %d on (%d bytes promised); in doubt: %v", name, len(got), may, from, len(f.states[from].content), suspect)
		}
		if err := f.checkTime(file.modified(), times, k); err != nil {
			return fmt.Errorf("%s %w", name, err)
		}
	}
	return nil
}

// checkNames finds in w, which a power cut at time k left, the names that were promised.
func (c *crashTest) checkNames(w wreck, k int) error {
	for _, f := range c.all {
		if promised, _ := latest(f.promises, k); promised.named > w.committed {
			return fmt.Errorf("file %d has not the name that was promised", f.ino)
		}
	}
	return nil
}

// checkTime compares a modification time with what was promised.
func (f *crashFile) checkTime(got uint64, promises []promise, k int) error {
	later := f.states
	p, ok := latest(promises, k)
	if ok {
		later = f.states[p.state+1:]
	}
	if ok && got == p.mtime {
		return nil
	}
	for _, s := range later {
		if s.at <= k && s.from <= got && got <= s.to {
			return nil
		}
	}
	return fmt.Errorf("was modified at %v, which is neither the time promised, %v, nor a later one", unstamp(got), unstamp(p.mtime))
}
