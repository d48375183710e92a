package journal

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// A crashTest makes random changes to files on a [sim], remembering what their users were promised.
type crashTest struct {
	t     *testing.T
	rnd   *rand.Rand
	p     *volume
	disk  *sim
	names []string
	files map[string]*crashFile
}

type crashFile struct {
	name     string
	ino      uint64
	f        *File
	states   []crashState // one after each operation
	promises []promise    // by syncs, of content
	times    []promise    // likewise, of the modification time
	held     []promise    // of that, by whatever a killed daemon must not lose
	open     bool
	busy     bool // an operation is under way
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

func newCrashTest(t *testing.T, seed uint64) *crashTest {
	c := &crashTest{t: t, rnd: rand.New(rand.NewPCG(seed, 7)), disk: newSim(t, nil, nil), names: []string{"a", "b", "c", "d"}, files: make(map[string]*crashFile)}
	c.p = &volume{t: t, dir: t.TempDir(), options: Options{kernel: c.disk, limits: limits{log: 192 << 10, save: 12 << 10, grow: 20 << 10}}}
	if err := os.Mkdir(filepath.Join(c.p.dir, ".kmsfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	c.p.open()
	c.p.halt()
	for _, name := range c.names {
		f := &crashFile{name: name, f: c.p.file(name), open: true, states: []crashState{{from: simTime(0), to: simTime(0)}}}
		f.ino = f.f.id.Ino
		c.files[name] = f
	}
	// In the order of checkpoints, so that a seed does the same everywhere.
	slices.SortFunc(c.names, func(a, b string) int { return cmp.Compare(c.files[a].ino, c.files[b].ino) })
	for _, name := range c.names {
		c.disk.file(c.files[name].f.fd) // it is there from the beginning
	}
	return c
}

func (f *crashFile) content() []byte { return f.states[len(f.states)-1].content }

// now is a promise that f stays as it is.
func (c *crashTest) now(f *crashFile) promise {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(c.p.dir, f.name), &st); err != nil {
		c.t.Fatal(err)
	}
	return promise{c.disk.now, len(f.states) - 1, stamp(st.Mtim)}
}

// promised notes that all of f is durable now.
func (c *crashTest) promised(f *crashFile) {
	p := c.now(f)
	f.promises, f.times, f.held = append(f.promises, p), append(f.times, p), append(f.held, p)
}

// closed notes that f survives a kill.
func (c *crashTest) closed(f *crashFile) { f.held = append(f.held, c.now(f)) }

// touch sets the modification time to one that no other call sets.
func (c *crashTest) touch(f *crashFile) {
	t := unix.Timespec{Sec: 1e8 + int64(c.disk.now), Nsec: 5}
	fd, err := unix.Open(filepath.Join(c.p.dir, f.name), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer unix.Close(fd)
	f.states = append(f.states, crashState{c.disk.now, f.content(), stamp(t), stamp(t)})
	if err := c.p.j.Times(f.f.id, func() error { return c.disk.setModified(fd, t) }); err != nil {
		c.t.Fatal(err)
	}
	c.closed(f)
}

// change runs one operation of several changes.
func (c *crashTest) change(f *crashFile) {
	m := bytes.Clone(f.content())
	f.states = append(f.states, crashState{at: c.disk.now, from: simTime(c.disk.now + 1)})
	must := func(err error) {
		if err != nil {
			c.t.Fatal(err)
		}
	}
	f.f.Begin()
	for range 1 + c.rnd.IntN(3) {
		off := c.rnd.Int64N(int64(len(m)) + 2000)
		n := 1 + c.rnd.Int64N(3000)
		if len(m) == 0 {
			off, n = 0, n+64 // a header comes first
		}
		switch c.rnd.IntN(8) {
		default:
			if c.rnd.IntN(3) == 0 {
				off = int64(len(m)) // programs append
			}
			if c.rnd.IntN(12) == 0 {
				n += 24 << 10
			}
			data := make([]byte, n)
			for i := range data {
				data[i] = byte(c.rnd.Uint32()) | 1
			}
			_, err := f.f.WriteAt(data, off)
			must(err)
			if int64(len(m)) < off+n {
				m = append(m, make([]byte, off+n-int64(len(m)))...)
			}
			copy(m[off:], data)
		case 0:
			if c.rnd.IntN(3) == 0 || len(m) > 120<<10 {
				off = 0
			}
			if off > 0 {
				off += 64
			}
			must(f.f.Truncate(off))
			if off <= int64(len(m)) {
				m = m[:off:off]
			} else {
				m = append(m, make([]byte, off-int64(len(m)))...)
			}
		case 1:
			if n = min(n, int64(len(m))-off); n > 0 {
				must(f.f.PunchHole(off, n))
				clear(m[off : off+n])
			}
		}
	}
	s := &f.states[len(f.states)-1]
	s.content = m
	f.f.End()
	s.to = simTime(c.disk.now)
}

// step does something with one file.
func (c *crashTest) step(f *crashFile) {
	if f.busy {
		return
	}
	f.busy = true
	defer func() { f.busy = false }()
	if c.rnd.IntN(10) == 0 {
		c.touch(f)
		return
	}
	if !f.open {
		f.f, f.open = c.p.file(f.name), true
	}
	switch c.rnd.IntN(9) {
	default:
		c.change(f)
	case 0, 1:
		dataOnly := c.rnd.IntN(2) == 0
		if err := f.f.Sync(dataOnly); err != nil {
			c.t.Fatal(err)
		}
		if !dataOnly {
			c.promised(f)
			return
		}
		f.promises = append(f.promises, c.now(f))
		c.closed(f)
	case 2:
		if err := f.f.Save(); err != nil {
			c.t.Fatal(err)
		}
		c.closed(f)
	case 3:
		if err := f.f.Release(); err != nil {
			c.t.Fatal(err)
		}
		f.open = false
		c.closed(f)
	}
}

// run makes the changes. Other files go on changing while a checkpoint or the beginning of an epoch is under way.
func (c *crashTest) run(steps int) {
	inside := 0
	checkpoint := func() {
		c.disk.between = func(ino uint64) {
			for range c.rnd.IntN(3) {
				f := c.files[c.names[c.rnd.IntN(len(c.names))]]
				if inside > 0 || f.ino == ino || !c.p.j.mu.TryLock() {
					continue
				}
				room := c.p.j.logs[c.p.j.active].pos.Load() < 80<<10 // nobody would make any
				c.p.j.mu.Unlock()
				if !room {
					continue
				}
				inside++
				c.step(f)
				inside--
			}
		}
		if err := c.p.j.Checkpoint(); err != nil {
			c.t.Fatal(err)
		}
		c.disk.between = nil
	}
	for range steps {
		switch c.rnd.IntN(24) {
		default:
			c.step(c.files[c.names[c.rnd.IntN(len(c.names))]])
		case 0, 1:
			checkpoint()
		case 2:
			var direct []*crashFile // without a mark, an epoch has nothing to make durable
			for _, name := range c.names {
				if f := c.files[name]; f.f.direct && c.p.j.marked.Load() {
					direct = append(direct, f)
				}
			}
			if err := c.p.j.NextEpoch(); err != nil {
				c.t.Fatal(err)
			}
			for _, f := range direct {
				c.promised(f)
			}
		}
		select {
		case <-c.p.j.wake:
			checkpoint()
		default:
		}
	}
}

// paths are the files that a power cut may change, by inode number.
func (p *volume) paths(names ...string) map[uint64]string {
	p.t.Helper()
	all := make(map[uint64]string)
	for _, name := range append([]string{".kmsfs/journal.0", ".kmsfs/journal.1", ".kmsfs/epochs"}, names...) {
		path := filepath.Join(p.dir, name)
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			p.t.Fatal(err)
		}
		all[st.Ino] = path
	}
	return all
}

// recover opens the journal on the images and returns the disk under it.
func (p *volume) recover(images map[uint64]image, paths map[uint64]string) *sim {
	p.t.Helper()
	for ino, path := range paths {
		images[ino].restore(p.t, path)
	}
	s := newSim(p.t, images, p.options.kernel.(*sim).order)
	p.options.kernel = s
	p.open()
	p.halt()
	return s
}

// check compares every file with what it may be after a power cut at time k, or a kill.
func (c *crashTest) check(k int, killed bool) error {
	for _, name := range c.names {
		f := c.files[name]
		promised, _ := latest(f.promises, k)
		from := promised.state
		file := c.p.file(name)
		got, ok := content(c.t, file), false
		suspect := c.p.j.Suspect(file.fd)
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
		times := f.times
		if killed {
			times = f.held
		}
		if err := f.checkTime(file.modified(), times, k); err != nil {
			return err
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
	return fmt.Errorf("%s was modified at %v, which is neither the time promised, %v, nor a later one", f.name, unstamp(got), unstamp(p.mtime))
}

// TestPowerCut cuts the power at many points of random work, and at points of the replays that follow: every file is as it was promised last, or as a
// later operation left it, whole, with the modification time of then. After a kill, so is the time of what was closed.
//
// KMSFS_CUTS is the number of seeds, KMSFS_SEED the first of them.
func TestPowerCut(t *testing.T) {
	first, seeds := number(t, "KMSFS_SEED", 0), number(t, "KMSFS_CUTS", powerSeeds)
	for seed := first; seed < first+seeds; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { powerCut(t, seed, powerCuts) })
	}
}

// number returns what an environment variable is set to, or without that.
func number(t *testing.T, variable string, without uint64) uint64 {
	n, err := strconv.ParseUint(cmp.Or(os.Getenv(variable), fmt.Sprint(without)), 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// TestSameSeed finds that a seed of TestPowerCut does the same whenever it is run, whatever numbers the files have.
func TestSameSeed(t *testing.T) {
	for seed := range uint64(3) {
		if once, again := powerCut(t, seed, 2), powerCut(t, seed, 2); once != again {
			t.Errorf("seed %d did %v and then %v", seed, once, again)
		}
	}
}

// powerCut is TestPowerCut with one seed. It returns what tells whether two runs were the same: the calls at the end of the work and of the
// replays, and the next number drawn.
func powerCut(t *testing.T, seed uint64, cuts int) (did [3]uint64) {
	c := newCrashTest(t, seed)
	c.run(160)
	c.p.kill()
	paths, end := c.p.paths(c.names...), c.disk.now
	replayed := 0
	for range cuts {
		k := c.rnd.IntN(end + 1)
		if commits := c.disk.commits; c.rnd.IntN(2) == 0 {
			k = commits[c.rnd.IntN(len(commits))].t - 1 // most is under way just before a sync is over
		}
		images := c.disk.cut(k, c.rnd)
		s := c.p.recover(images, paths)
		err := c.check(k, false)
		c.p.kill()
		if err != nil {
			t.Fatalf("seed %d, power cut at %d of %d: %v", seed, k, end, err)
		}
		for range c.rnd.IntN(2) {
			again := c.rnd.IntN(s.now + 1)
			c.p.recover(s.cut(again, c.rnd), paths)
			err := c.check(k, false)
			c.p.kill()
			if err != nil {
				t.Fatalf("seed %d, power cut at %d of %d and at %d of %d of the replay: %v", seed, k, end, again, s.now, err)
			}
		}
		replayed += s.now
		c.p.recover(c.disk.cut(k, nil), paths)
		err = c.check(k, true)
		c.p.kill()
		if err != nil {
			t.Fatalf("seed %d, killed at %d of %d: %v", seed, k, end, err)
		}
	}
	return [3]uint64{uint64(end), uint64(replayed), c.rnd.Uint64()}
}

const (
	powerSeeds = 10
	powerCuts  = 40
)
