package journal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// touch sets the modification time to one that no other call sets.
func (c *crashTest) touch(f *crashFile) {
	t := unix.Timespec{Sec: 1e8 + int64(c.disk.now), Nsec: 5}
	fd, err := unix.Open(c.paths[f.ino], unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer unix.Close(fd)
	f.states = append(f.states, crashState{c.disk.now, f.content(), stamp(t), stamp(t)})
	if err := c.p.j.Times(Inode{f.f.id.Dev, f.ino}, func() error { return c.disk.setModified(fd, t) }); err != nil {
		c.t.Fatal(err)
	}
	c.closed(f)
}

// random returns n bytes, none of which is 0.
func (c *crashTest) random(n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(c.rnd.Uint32()) | 1
	}
	return b
}

// headerSize is how many bytes stand for a header.
const headerSize = 64

// whole returns off or, where files are known by the ID in their headers, what of it is no part of one: headers change as a whole.
func (c *crashTest) whole(off int64) int64 {
	if c.disk.unnumbered {
		return max(off, headerSize)
	}
	return off
}

// change runs one operation of several changes, some of which the disk may refuse.
func (c *crashTest) change(f *crashFile) {
	m := bytes.Clone(f.content())
	f.states = append(f.states, crashState{at: c.disk.now, from: simTime(c.disk.now + 1)})
	done := func(err error) bool {
		if err != nil && !errors.Is(err, errRefused) {
			c.t.Fatal(err)
		}
		return err == nil
	}
	if c.rnd.IntN(8) == 0 {
		defer c.refuse()()
	}
	f.f.Begin()
	for range 1 + c.rnd.IntN(3) {
		off := c.rnd.Int64N(int64(len(m)) + 2000)
		n := 1 + c.rnd.Int64N(3000)
		if len(m) == 0 {
			off, n = 0, n+headerSize // it comes first
		}
		switch c.rnd.IntN(8) {
		default:
			if c.rnd.IntN(3) == 0 {
				off = int64(len(m)) // programs append
			}
			if c.rnd.IntN(12) == 0 {
				n += 24 << 10
			}
			if whole := c.whole(off); whole != off {
				off, n = 0, n+headerSize
			}
			data := c.random(n)
			written, err := f.f.WriteAt(data, off)
			if n = int64(written); !done(err) && n == 0 {
				continue
			}
			if int64(len(m)) < off+n {
				m = append(m, make([]byte, off+n-int64(len(m)))...)
			}
			copy(m[off:], data[:n])
		case 0:
			if c.rnd.IntN(3) == 0 || len(m) > 120<<10 {
				off = 0
			} else if c.rnd.IntN(3) == 0 {
				off = min(int64(len(m)), f.f.durable) // what it was once
			} else if off > 0 {
				off += 64
			}
			if off > 0 {
				off = c.whole(off)
			}
			if !done(f.f.Truncate(off)) {
				continue
			}
			if off <= int64(len(m)) {
				m = m[:off:off]
			} else {
				m = append(m, make([]byte, off-int64(len(m)))...)
			}
		case 1:
			off = c.whole(off)
			if n = min(n, int64(len(m))-off); n > 0 && done(f.f.PunchHole(off, n)) {
				clear(m[off : off+n])
			}
		}
	}
	s := &f.states[len(f.states)-1]
	s.content = m
	f.f.End()
	s.to = simTime(c.disk.now)
}

// patch replaces the header.
func (c *crashTest) patch(f *crashFile) {
	m := bytes.Clone(f.content())
	n := copy(m, c.random(min(headerSize, int64(len(m)))))
	if n == 0 {
		return
	}
	mtime := c.now(f).mtime
	f.states = append(f.states, crashState{c.disk.now, m, mtime, mtime})
	if err := f.f.Patch(n, func([]byte) ([]byte, error) { return m[:n:n], nil }); err != nil {
		c.t.Fatal(err)
	}
}

// look settles the doubt about a file as whoever opens it does.
func (c *crashTest) look(f *crashFile) {
	f.doubt = false
	if len(f.content()) > 0 {
		if err := c.p.j.Clear(f.f.fd); err != nil {
			c.t.Fatal(err)
		}
		return
	}
	mtime := c.now(f).mtime
	now := c.disk.now
	f.states = append(f.states, crashState{at: now, from: simTime(now + 1), to: simTime(now + 1)}, crashState{at: now, from: mtime, to: mtime})
	if err := f.f.Empty(); err != nil {
		c.t.Fatal(err)
	}
}

// release closes a file. One without a name is gone then.
func (c *crashTest) release(f *crashFile) {
	if err := f.f.Release(); err != nil {
		c.t.Fatal(err)
	}
	f.open = false
	if f.name != "" {
		c.closed(f)
	}
}

// move gives a file a name, or takes its name away. Whoever had the name before is deleted.
func (c *crashTest) move(f *crashFile, to string) {
	from, gone := f.name, c.files[to]
	var err error
	entries := []entry{{name: from}}
	if to == "" {
		err, gone = os.Remove(filepath.Join(c.p.dir, from)), f
	} else {
		err = os.Rename(filepath.Join(c.p.dir, from), filepath.Join(c.p.dir, to))
		entries = append(entries, entry{name: to, ino: f.ino})
		c.files[to] = f
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.disk.enter(entries...)
	delete(c.files, from)
	if gone != nil {
		gone.name = ""
	}
	if f.name = to; to != "" {
		c.p.j.Renamed()
		c.p.j.Changed(f.f.id)
	}
	if gone != nil {
		c.p.j.Unlinked(gone.f.id)
	}
}

// rename changes the name of f, which no operation may be on. ino is the file that a checkpoint is at.
func (c *crashTest) rename(f *crashFile, ino uint64) {
	to := string(rune('a' + c.rnd.IntN(6)))
	if c.rnd.IntN(3) == 0 || c.disk.unnumbered { // a file without an ID, since it is empty just now, is known by its path alone
		to = ""
	}
	if gone := c.files[to]; gone == f || gone != nil && (gone.busy || gone.ino == ino) || f.name == "" || to == "" && len(c.files) < 3 {
		return
	}
	c.move(f, to)
}

// step does something with one file; a checkpoint is at the file ino.
func (c *crashTest) step(f *crashFile, ino uint64) {
	if f.busy {
		return
	}
	f.busy = true
	defer func() { f.busy = false }()
	if c.rnd.IntN(16) == 0 {
		c.rename(f, ino)
		return
	}
	if !f.open {
		c.reopen(f)
	}
	if f.doubt {
		c.look(f)
	}
	switch c.rnd.IntN(24) {
	default:
		c.change(f)
	case 0, 1:
		c.touch(f)
	case 2:
		c.patch(f)
	case 3, 4, 5, 6:
		dataOnly := c.rnd.IntN(2) == 0
		named := c.disk.files[f.ino].named
		if err := f.f.Sync(dataOnly); err != nil {
			c.t.Fatal(err)
		}
		p := c.now(f)
		if dataOnly {
			f.promises, f.held = append(f.promises, p), append(f.held, p)
			return
		}
		p.named = named
		c.keep(f, p)
	case 7, 8:
		if err := f.f.Save(); err != nil {
			c.t.Fatal(err)
		}
		c.closed(f)
	case 9, 10, 11:
		c.release(f)
	}
}

// any is a file to do something with; sometimes a new one.
func (c *crashTest) any() *crashFile {
	name := string(rune('a' + c.rnd.IntN(6)))
	if len(c.files) == 0 || c.files[name] == nil && len(c.spare) > powerLives && c.rnd.IntN(8) == 0 {
		c.create(name)
	}
	var usable []*crashFile
	for _, f := range c.all {
		if f.name != "" || f.open {
			usable = append(usable, f)
		}
	}
	return usable[c.rnd.IntN(len(usable))]
}

// between goes on changing other files while a checkpoint is at the file ino, or while an epoch begins.
func (c *crashTest) between(ino uint64) {
	for range c.rnd.IntN(3) {
		if c.inside > 0 || !c.p.j.marks.TryRLock() {
			return
		}
		c.p.j.marks.RUnlock()
		if !c.p.j.mu.TryLock() {
			return
		}
		room := c.p.j.logs[c.p.j.active].pos.Load() < c.p.j.limits.log-112<<10          // nobody would make any
		atLog := ino == 0 || strings.HasPrefix(filepath.Base(c.paths[ino]), "journal.") // no file is locked
		c.p.j.mu.Unlock()
		c.inside++
		switch n := c.rnd.IntN(12); {
		case n == 0 && atLog && !c.inEpoch:
			c.epoch()
		case n == 1 && ino == 0 && !c.inCheckpoint:
			c.checkpoint()
		case room:
			if f := c.any(); f.ino != ino {
				c.step(f, ino)
			}
		}
		c.inside--
	}
}

// errRefused is why the disk does not change a file.
var errRefused = errors.New("refused")

// refuse lets the disk refuse a third of the changes of files until allow is called, but for what goes on in between.
func (c *crashTest) refuse() (allow func()) {
	inside, before := c.inside, c.disk.refuse
	c.disk.refuse = func(ino uint64) error {
		if c.inside == inside && slices.ContainsFunc(c.all, func(f *crashFile) bool { return f.ino == ino }) && c.rnd.IntN(3) == 0 {
			return errRefused
		}
		return nil
	}
	return func() { c.disk.refuse = before }
}

// checkpoint runs a checkpoint, some of whose changes the disk may refuse at first.
func (c *crashTest) checkpoint() {
	c.inCheckpoint = true
	allow := func() {}
	if c.rnd.IntN(4) == 0 {
		allow = c.refuse()
	}
	err := c.p.j.Checkpoint()
	if allow(); errors.Is(err, errRefused) {
		err = c.p.j.Checkpoint()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.inCheckpoint = false
}

// epoch begins an epoch, which makes new files durable.
func (c *crashTest) epoch() {
	c.inEpoch = true
	var direct []*crashFile // without a mark, an epoch has nothing to make durable
	var as []promise
	for _, f := range c.all {
		if f.f.direct && f.open && c.p.j.marked.Load() {
			direct, as = append(direct, f), append(as, c.now(f))
		}
	}
	if err := c.p.j.NextEpoch(); err != nil {
		c.t.Fatal(err)
	}
	for i, f := range direct {
		c.keep(f, as[i])
	}
	c.inEpoch = false
}

// run makes the changes. Other files go on changing while a checkpoint or the beginning of an epoch is under way.
func (c *crashTest) run(steps int) {
	for range steps {
		c.disk.between = nil
		n := c.rnd.IntN(24)
		if n > 2 {
			c.step(c.any(), 0)
		}
		c.disk.between = c.between
		if n == 2 {
			c.epoch()
		}
		select {
		case <-c.p.j.wake:
			n = 0
		default:
		}
		if n < 2 {
			c.checkpoint()
		}
	}
	c.disk.between = nil
}
