package journal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDeletedDuringCheckpoint deletes a closed file while a checkpoint is at another one. Its descriptor is closed then, and must not be used.
func TestDeletedDuringCheckpoint(t *testing.T) {
	p, s := newPlaceOn(t)
	files := []*File{p.durable("a"), p.durable("b"), p.durable("c")}
	for _, f := range files {
		if err := f.Release(); err != nil {
			t.Fatal(err)
		}
	}
	s.between = func(ino uint64) {
		for i, name := range []string{"a", "b", "c"} {
			if files[i].id.Ino != ino && ino != 0 && os.Remove(filepath.Join(p.dir, name)) == nil {
				p.j.Unlinked(files[i].id) // a call on its descriptor fails the test
			}
		}
	}
	if err := p.j.Checkpoint(); err != nil {
		t.Fatal(err)
	}
}

// TestRewrittenAfterCut cuts a file to nothing and writes it anew, with a record from in between that is in the younger log while a checkpoint empties the
// other one. Such a file, empty in place, is not one that was new.
func TestRewrittenAfterCut(t *testing.T) {
	p, s := newPlaceOn(t)
	f, g := p.durable("a"), p.durable("b")
	name := "a"
	if g.id.Ino > f.id.Ino {
		f, g, name = g, f, "b" // a checkpoint comes to it last
	}
	if err := p.j.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	p.cut(f, 0)
	if err := f.Sync(false); err != nil {
		t.Fatal(err)
	}
	g.Begin()
	if _, err := g.WriteAt([]byte{3}, 0); err != nil {
		t.Fatal(err)
	}
	g.End()
	if err := g.Save(); err != nil {
		t.Fatal(err)
	}
	touched := false
	s.between = func(ino uint64) {
		if ino == g.id.Ino && !touched {
			touched = true
			if err := p.j.Times(f.id, func() error { return s.setModified(f.fd, unix.Timespec{Sec: 5}) }); err != nil {
				t.Error(err)
			}
		}
	}
	if err := p.j.Checkpoint(); err != nil || !touched {
		t.Fatal(err, touched)
	}
	s.between = nil
	p.write(f, 2, 0, 5000)
	p.kill()
	p.open()
	p.halt()
	p.changed(name)
}

// TestCutBackDuringCheckpoint cuts a file back to what it is in place while a checkpoint is at another one, when both logs have changes of it. A crash that
// follows finds the younger ones only.
func TestCutBackDuringCheckpoint(t *testing.T) {
	for _, size := range []int64{0, 5000} {
		for _, saved := range []bool{false, true} {
			p, s := newPlaceOn(t)
			g, f := p.file("a"), p.file("b")
			name := "b"
			if f.id.Ino < g.id.Ino {
				g, f, name = f, g, "a" // a checkpoint comes to f last
			}
			p.write(g, 1, 0, 5000)
			p.write(f, 1, 0, 5000)
			p.cut(f, size)
			if err := errors.Join(f.Sync(false), p.j.Checkpoint()); err != nil {
				t.Fatal(err)
			}
			p.write(f, 2, size, 1000)
			p.j.mu.Lock()
			err := p.j.turn()
			p.j.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			p.write(f, 3, size+1000, 1000)
			p.write(g, 2, 0, 1000)
			whole := content(t, f)
			done := false
			s.between = func(ino uint64) {
				if ino != g.id.Ino || done {
					return
				}
				done = true
				if p.cut(f, size); saved {
					if err := f.Save(); err != nil {
						t.Error(err)
					}
				}
			}
			if err := p.j.Checkpoint(); err != nil || !done {
				t.Fatal(err, done)
			}
			s.between = nil
			cutOff := content(t, f)
			p.kill()
			paths, now := p.paths("a", "b"), s.now
			for seed := range uint64(20) {
				p.recover(s.cut(now, rand.New(rand.NewPCG(seed, 1))), paths)
				if b := content(t, p.file(name)); !bytes.Equal(b, whole) && !bytes.Equal(b, cutOff) {
					t.Errorf("size %d, saved %v, seed %d: the file, of %d bytes, is as it never was", size, saved, seed, len(b))
				}
				p.kill()
			}
			p.open() // for the cleanup
		}
	}
}

// TestLogsInOrder changes a file in one log and again in the other, in mounts that find generations of every order.
func TestLogsInOrder(t *testing.T) {
	p, _ := newPlaceOn(t)
	var orders [2]bool
	for mount := range 6 {
		if mount > 0 {
			p.open()
			p.halt()
		}
		f := p.durable("a")
		if mount%2 == 0 { // one reset more than the other log
			if err := p.j.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		for i := range byte(2) {
			p.write(f, 2*i, 0, 5000)
			if i == 0 {
				p.j.mu.Lock()
				if err := p.j.turn(); err != nil {
					t.Fatal(err)
				}
				p.j.mu.Unlock()
			}
		}
		if p.j.logs[0].generation.Load() < p.j.logs[1].generation.Load() {
			orders[0] = true
		} else {
			orders[1] = true
		}
		p.kill()
		p.open()
		p.halt()
		p.changed("a")
		p.kill()
	}
	p.open() // for the cleanup
	if orders != [2]bool{true, true} {
		t.Error("the logs were in one order only")
	}
}

// TestDeletionIsDurable deletes a file with changes that are in the log only. The log is emptied after the deletion has become durable: else a power cut
// would bring the file back without them.
func TestDeletionIsDurable(t *testing.T) {
	p, s := newPlaceOn(t)
	f := p.durable("a")
	if err := f.Release(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(p.dir, "a")); err != nil {
		t.Fatal(err)
	}
	deleted := s.now
	p.j.Unlinked(f.id)
	log, _, _ := p.logs()
	if err := p.j.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	l, _ := s.file(log.fd)
	reset := l.events[len(l.events)-1]
	if reset.off != 0 || reset.at <= deleted {
		t.Fatalf("the log was not emptied: %+v", reset.at)
	}
	for _, c := range s.commits {
		if c.t > deleted && c.t < reset.at && c.upTo >= deleted {
			return
		}
	}
	t.Errorf("the log was emptied at %d; the deletion at %d was not durable", reset.at, deleted)
}

// TestDeletionOfRecords deletes a file that is in place as its last change left it, which is not durable in the log. A power cut that brings the file back
// brings it as it was promised.
func TestDeletionOfRecords(t *testing.T) {
	p, s := newPlaceOn(t)
	f := p.durable("a")
	if err := p.j.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	p.write(f, 9, 5000, 5000)
	p.cut(f, 5000)
	if err := f.Release(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(p.dir, "a")); err != nil {
		t.Fatal(err)
	}
	deleted := s.now
	p.j.Unlinked(f.id)
	if err := p.j.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(s.commits, func(c commit) bool { return c.upTo >= deleted && c.t > deleted }) {
		t.Error("the log was emptied before the deletion was durable")
	}
}

// TestPlacedInPart cuts a file after a checkpoint that had put the beginning of its changes in place. That checkpoint shows in no modification time, and what
// it wrote goes, be the file as it was before, or have a gap there.
func TestPlacedInPart(t *testing.T) {
	for _, gap := range []bool{false, true} {
		broken := &brokenCut{fd: -1}
		p := newPlaceOf(t, broken)
		p.halt()
		f := p.durable("a")
		if err := p.j.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		p.write(f, 3, 5000, 5000)
		modified := f.modified()
		broken.fd = f.fd
		if err := p.j.Checkpoint(); !errors.Is(err, unix.EIO) {
			t.Errorf("checkpoint: %v", err)
		}
		broken.fd = -1
		if got := f.modified(); got != modified {
			t.Errorf("modified at %v, not %v", unstamp(got), unstamp(modified))
		}
		p.cut(f, 5000)
		if err := f.Sync(false); err != nil {
			t.Fatal(err)
		}
		if gap {
			p.write(f, 4, 9000, 1)
		}
		want := content(t, f)
		for range 2 { // both logs
			if err := p.j.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(filepath.Join(p.dir, "a")); err != nil || !bytes.Equal(got, want) {
			t.Errorf("gap %v: %d bytes in place are not the %d of the file, %v", gap, len(got), len(want), err)
		}
		if err := f.Release(); err != nil {
			t.Fatal(err)
		}
		p.kill()
	}
}

// brokenCut fails to cut one descriptor.
type brokenCut struct {
	linux
	fd int
}

func (b *brokenCut) ftruncate(fd int, size int64) error {
	if fd == b.fd {
		return unix.EIO
	}
	return b.linux.ftruncate(fd, size)
}
