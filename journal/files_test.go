package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// durable makes a file with content that is in place, and a change of it that is in the log only.
func (p *volume) durable(name string) *File {
	p.t.Helper()
	f := p.file(name)
	for _, b := range []byte{1, 2} {
		p.write(f, b, 0, 5000)
	}
	return f
}

// changed fails the test if the file lacks the change that durable made.
func (p *volume) changed(name string) {
	p.t.Helper()
	if b, err := os.ReadFile(filepath.Join(p.dir, name)); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{2}, 5000)) {
		p.t.Errorf("%s: its change is lost (%d bytes, %v)", name, len(b), err)
	}
}

// newPlaceOn is newPlace on a simulated disk, with nothing in the background.
func newPlaceOn(t *testing.T) (*volume, *sim) {
	s := newSim(t, wreck{}, nil)
	p := &volume{t: t, dir: t.TempDir(), options: Options{kernel: s}}
	if err := os.Mkdir(filepath.Join(p.dir, ".kmsfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.open()
	p.halt()
	t.Cleanup(p.kill)
	return p, s
}

// TestEmptyKeepsTime empties a file that a crash tore.
func TestEmptyKeepsTime(t *testing.T) {
	p := newPlace(t)
	f := p.file("a")
	f.Begin()
	_, err := f.WriteAt([]byte("torn"), 0)
	f.End()
	when := unix.Timespec{Sec: 1e9, Nsec: 123456789}
	path := filepath.Join(p.dir, "a")
	if err = errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{when, when}, 0), f.Empty()); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Size != 0 || st.Mtim != when {
		t.Errorf("%d bytes, modified at %v, %v; want 0, %v", st.Size, st.Mtim, err, when)
	}
	if err := f.Release(); err != nil {
		t.Fatal(err)
	}
}

// TestEmptyAfterPatch empties a file that a crash tore, and whose header a rewrap has changed before anybody looked: what is written and synced then must not get that header, nor that size.
func TestEmptyAfterPatch(t *testing.T) {
	for _, saved := range []bool{false, true} {
		p := newPlace(t)
		f := p.file("a")
		f.Begin()
		_, err := f.WriteAt(bytes.Repeat([]byte{1}, 5000), 0)
		f.End()
		if err = errors.Join(err, f.Release()); err != nil {
			t.Fatal(err)
		}
		p.kill()
		p.open()
		p.halt()
		f = p.file("a")
		patch := func([]byte) ([]byte, error) { return bytes.Repeat([]byte{2}, 64), nil }
		if err := f.Patch(64, patch); err != nil {
			t.Fatal(err)
		}
		if saved {
			if err := f.Save(); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Empty(); err != nil {
			t.Fatal(err)
		}
		p.write(f, 3, 0, 3000)
		p.kill()
		p.open()
		p.kill()
		if b, err := os.ReadFile(filepath.Join(p.dir, "a")); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{3}, 3000)) {
			t.Errorf("saved %v: what was synced is lost: %d bytes, %v", saved, len(b), err)
		}
	}
}

// TestFailedSyncKeepsLog fails the sync of what a checkpoint has put in place. Nobody can tell what the kernel has dropped, so the next mount takes it
// from the log.
func TestFailedSyncKeepsLog(t *testing.T) {
	broken := &brokenSync{}
	p := &volume{t: t, dir: t.TempDir(), options: Options{kernel: broken}}
	if err := os.Mkdir(filepath.Join(p.dir, ".kmsfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.open()
	p.halt()
	f := p.durable("a")
	broken.fd = f.fd
	for range 2 {
		if err := p.j.Checkpoint(); err == nil {
			t.Error("a checkpoint that cannot sync a file succeeds")
		}
		broken.fd = -1 // another try succeeds, and says nothing
	}
	f.Begin()
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("a change is accepted")
	}
	f.End()
	p.kill()
	if err := os.WriteFile(filepath.Join(p.dir, "a"), make([]byte, 5000), 0); err != nil { // what the kernel has dropped
		t.Fatal(err)
	}
	p.open()
	p.changed("a")
	p.kill()
}

// TestOneFileCannotBeChanged fails every write to one file: its neighbours do not notice, and it loses nothing.
func TestOneFileCannotBeChanged(t *testing.T) {
	broken := &brokenWrite{fd: -1}
	p := &volume{t: t, dir: t.TempDir(), options: Options{kernel: broken, limits: limits{log: 64 << 10, save: 16 << 10, grow: 1 << 20}}}
	if err := os.Mkdir(filepath.Join(p.dir, ".kmsfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.open()
	p.halt()
	a := p.durable("a")
	p.durable("b")
	broken.fd = a.fd
	for range 3 {
		if err := p.j.Checkpoint(); !errors.Is(err, unix.EPERM) {
			t.Errorf("checkpoint: %v", err)
		}
		if _, l, draining := p.logs(); !l.empty() || draining {
			t.Error("the log is not empty")
		}
	}
	p.changed("b")
	if b := content(t, a); !bytes.Equal(b, bytes.Repeat([]byte{2}, 5000)) {
		t.Error("a does not read as it should")
	}
	for n, off := 0, int64(5000); ; n++ { // memory is bounded
		if n == 100 {
			t.Fatal("changes of a file that refuses them are accepted for ever")
		}
		a.Begin()
		_, err := a.WriteAt(make([]byte, 5000), off)
		a.End()
		if errors.Is(err, unix.EPERM) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		off += 5000
		if err := p.j.Checkpoint(); !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
	}
	a.Begin()
	if err := a.Truncate(5000); !errors.Is(err, unix.EPERM) {
		t.Error(err)
	}
	a.End()
	broken.fd = -1
	if err := p.j.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	a.Begin()
	if err := a.Truncate(5000); err != nil {
		t.Fatal(err)
	}
	a.End()
	if err := a.Sync(false); err != nil {
		t.Fatal(err)
	}
	p.kill()
	p.open()
	p.changed("a")
	p.kill()
}

// TestRefusedWrite fails a write in place past the end of a new file: the file ends where it did.
func TestRefusedWrite(t *testing.T) {
	broken := &brokenWrite{fd: -1}
	p := newPlaceOf(t, broken)
	f := p.file("a")
	f.Begin()
	if _, err := f.WriteAt(make([]byte, 100), 0); err != nil {
		t.Fatal(err)
	}
	broken.fd = f.fd
	if n, err := f.WriteAt(make([]byte, 100), 500); n != 0 || !errors.Is(err, unix.EPERM) {
		t.Errorf("wrote %d bytes, %v", n, err)
	}
	f.End()
	if size, err := f.Size(); size != 100 || err != nil {
		t.Errorf("%d bytes, %v", size, err)
	}
	if err := errors.Join(f.Release(), p.j.Close()); err != nil {
		t.Fatal(err)
	}
}

// brokenWrite fails writes to one descriptor.
type brokenWrite struct {
	linux
	fd int
}

func (b *brokenWrite) pwrite(fd int, p []byte, off int64) (int, error) {
	if fd == b.fd {
		return 0, unix.EPERM
	}
	return b.linux.pwrite(fd, p, off)
}

// TestGrowthEndsWithItsRecord lets a file begin to grow in place, and a checkpoint forget the record that allows it to. Then no power cut during
// the next append may leave anything of that behind.
func TestGrowthEndsWithItsRecord(t *testing.T) {
	c := newCrashTest(t, 0, crashLimits)
	f := c.files["a"]
	write := func(n int) {
		off := len(f.content())
		f.states = append(f.states, crashState{at: c.disk.now, content: bytes.Repeat([]byte{7}, off+n), from: simTime(c.disk.now)})
		f.f.Begin()
		if _, err := f.f.WriteAt(bytes.Repeat([]byte{7}, n), int64(off)); err != nil {
			t.Fatal(err)
		}
		f.f.End()
		f.states[len(f.states)-1].to = simTime(c.disk.now)
	}
	write(5000)
	if err := f.f.Sync(false); err != nil {
		t.Fatal(err)
	}
	c.promised(f)
	write(30 << 10)
	if !f.f.growing {
		t.Fatal("the file does not grow in place")
	}
	if err := c.p.j.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	c.promised(f)
	write(30 << 10)
	write(30 << 10)
	if err := f.f.Sync(false); err != nil {
		t.Fatal(err)
	}
	c.promised(f)
	c.p.kill()
	end := c.disk.now
	for k := range end + 1 {
		for range 2 {
			w := c.disk.cut(k, c.rnd)
			c.recover(w)
			err := c.check(w, k, false)
			c.p.kill()
			if err != nil {
				t.Fatalf("power cut at %d of %d: %v", k, end, err)
			}
		}
	}
}

// TestRecordWithoutFile loses a new file but for its name, while a record of a change to it has reached the disk: what is left is an empty file.
func TestRecordWithoutFile(t *testing.T) {
	c := newCrashTest(t, 0, crashLimits)
	write := func(f *crashFile, off int) {
		b := append(bytes.Clone(f.content()[:off]), bytes.Repeat([]byte{byte(off + 1)}, 5000)...)
		f.states = append(f.states, crashState{at: c.disk.now, content: b, from: simTime(c.disk.now)})
		f.f.Begin()
		if _, err := f.f.WriteAt(b[off:], int64(off)); err != nil {
			t.Fatal(err)
		}
		f.f.End()
		f.states[len(f.states)-1].to = simTime(c.disk.now)
	}
	lost, other := c.files["a"], c.files["b"]
	write(other, 0)
	if err := other.f.Sync(true); err != nil {
		t.Fatal(err)
	}
	write(other, 100)
	write(lost, 0)
	if err := lost.f.Release(); err != nil {
		t.Fatal(err)
	}
	lost.f = c.p.file("a")
	write(lost, 100)
	if err := lost.f.Save(); err != nil {
		t.Fatal(err)
	}
	if err := other.f.Sync(true); err != nil { // the log with both
		t.Fatal(err)
	}
	c.p.kill()
	empty := 0
	for range 100 {
		w := c.disk.cut(c.disk.now, c.rnd)
		if w.files[lost.ino].size == 0 {
			empty++
		}
		c.recover(w)
		err := c.check(w, c.disk.now, false)
		c.p.kill()
		if err != nil {
			t.Fatal(err)
		}
	}
	if empty == 0 {
		t.Error("no power cut left nothing of the file")
	}
}

// unmarkable is a disk that has no room for marks.
type unmarkable struct{ *sim }

func (unmarkable) setMark(int, []byte) error { return unix.ENOSPC }

// TestSyncWithoutMark syncs a file that could not be marked, after it was closed and opened again.
func TestSyncWithoutMark(t *testing.T) {
	s := newSim(t, wreck{}, nil)
	p := newPlaceOf(t, unmarkable{s})
	p.halt()
	f := p.file("a")
	f.Begin()
	if _, err := f.WriteAt(make([]byte, 100), 0); err != nil {
		t.Fatal(err)
	}
	f.End()
	if err := f.Release(); err != nil {
		t.Fatal(err)
	}
	f = p.file("a")
	if err := f.Sync(true); err != nil {
		t.Fatal(err)
	}
	if len(s.files[f.id.Ino].synced) == 0 {
		t.Error("the content is not durable")
	}
	p.kill()
}

// TestMarkIsRenewed writes the first bytes of a file a second time, in another epoch.
func TestMarkIsRenewed(t *testing.T) {
	p, _ := newPlaceOn(t)
	f := p.file("a")
	write := func() {
		f.Begin()
		if _, err := f.WriteAt([]byte("x"), 0); err != nil {
			t.Fatal(err)
		}
		f.End()
		p.j.marks.RLock()
		want := p.j.epoch
		p.j.marks.RUnlock()
		if epoch, ok := readMark(f.fd); !ok || epoch != want {
			t.Errorf("the mark is of epoch %d (%v), not %d", epoch, ok, want)
		}
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
	}
	write()
	if err := p.j.NextEpoch(); err != nil {
		t.Fatal(err)
	}
	write()
	if err := f.Sync(false); err != nil {
		t.Fatal(err)
	}
	write()
}

// brokenSync fails fdatasync and fsync of one descriptor.
type brokenSync struct {
	linux
	fd int
}

func (b *brokenSync) fdatasync(fd int) error {
	if fd == b.fd {
		return unix.EIO
	}
	return b.linux.fdatasync(fd)
}

func (b *brokenSync) fsync(fd int) error {
	if fd == b.fd {
		return unix.EIO
	}
	return b.linux.fsync(fd)
}

// A syncing is linux that notes what was made durable.
type syncing struct {
	linux
	all int
	of  map[int]bool
}

func (s *syncing) syncfs(fd int) error    { s.all++; return s.linux.syncfs(fd) }
func (s *syncing) fsync(fd int) error     { s.of[fd] = true; return s.linux.fsync(fd) }
func (s *syncing) fdatasync(fd int) error { s.of[fd] = true; return s.linux.fdatasync(fd) }

// TestSyncAfterKill syncs a file that a killed process has written: where it is in the page cache only, that must make it durable, although the mark went before.
func TestSyncAfterKill(t *testing.T) {
	for _, dataOnly := range []bool{true, false} {
		p := newPlace(t)
		f := p.file("a")
		f.Begin()
		_, err := f.WriteAt([]byte("closed, and not synced"), 0)
		f.End()
		if err = errors.Join(err, f.Release()); err != nil {
			t.Fatal(err)
		}
		p.kill()
		k := &syncing{of: make(map[int]bool)}
		p.options.kernel = k
		p.open()
		p.halt()
		f = p.file("a")
		if !p.j.Suspect(f.fd) {
			t.Error("there is no doubt about the file")
		}
		if err := errors.Join(p.j.Clear(f.fd), f.Sync(dataOnly)); err != nil {
			t.Fatal(err)
		}
		if k.all == 0 && !k.of[f.fd] {
			t.Errorf("data only %v: the file was not synced", dataOnly)
		}
		p.kill()
	}
}

// TestFailedSyncOfGrowth fails the sync of what a file has grown by in place, in a checkpoint that nobody waits for. The next sync, of who was promised nothing yet, must not succeed.
func TestFailedSyncOfGrowth(t *testing.T) {
	broken := &brokenSync{fd: -1}
	p := &volume{t: t, dir: t.TempDir(), options: Options{kernel: broken, limits: limits{log: logLimit, save: saveAt, grow: 8 << 10}}}
	if err := os.Mkdir(filepath.Join(p.dir, ".kmsfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.open()
	p.halt()
	f := p.durable("a")
	write := func(off, n int64) {
		t.Helper()
		f.Begin()
		_, err := f.WriteAt(make([]byte, n), off)
		f.End()
		if err != nil {
			t.Fatal(err)
		}
	}
	write(5000, 9<<10)
	write(5000+9<<10, 1000)
	if !f.growing {
		t.Fatal("the file does not grow in place")
	}
	broken.fd = f.fd
	if err := p.j.Checkpoint(); err == nil {
		t.Error("a checkpoint that cannot sync a file succeeds")
	}
	broken.fd = -1 // another try succeeds, and says nothing
	if err := f.Sync(true); err == nil {
		t.Error("what the kernel may have dropped is promised")
	}
	p.kill()
	p.open() // and what was promised before is there
	p.kill()
	if b, err := os.ReadFile(filepath.Join(p.dir, "a")); err != nil || !bytes.HasPrefix(b, bytes.Repeat([]byte{2}, 5000)) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// TestReplayManyFiles replays the changes of more files than the process may have open.
func TestReplayManyFiles(t *testing.T) {
	p := newPlace(t)
	const n = 200
	for i := range n {
		p.durable(fmt.Sprint(i))
	}
	p.kill()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	few := limit
	few.Cur = 100
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	p.open()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		p.changed(fmt.Sprint(i))
	}
	p.kill()
}

// unnumbered is linux where inode numbers have no generation.
type unnumbered struct{ linux }

func (unnumbered) version(int) (uint32, error) { return 0, unix.ENOTTY }

// TestReplayMovedFile moves a file whose last record has its old name, on such a file system.
func TestReplayMovedFile(t *testing.T) {
	p := newPlaceOf(t, unnumbered{})
	p.durable("a")
	p.kill()
	if err := os.Rename(filepath.Join(p.dir, "a"), filepath.Join(p.dir, "b")); err != nil {
		t.Fatal(err)
	}
	p.open()
	p.changed("b")
	if err := p.j.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestReplayProtectedFile replays the change of a file that its owner may not write to any more.
func TestReplayProtectedFile(t *testing.T) {
	p := newPlace(t)
	p.durable("a")
	p.kill()
	if err := os.Chmod(filepath.Join(p.dir, "a"), 0o400); err != nil {
		t.Fatal(err)
	}
	p.replayAsNobody("a")
	p.changed("a")
	if st, err := os.Stat(filepath.Join(p.dir, "a")); err != nil || st.Mode() != 0o400 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

// TestHugeRecord replays a log whose only record claims to have 4 GiB, which a sparse file even has.
func TestHugeRecord(t *testing.T) {
	p := newPlace(t)
	p.kill()
	path := filepath.Join(p.dir, ".kmsfs/journal.1")
	head, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := record{kind: kindChange}
	b := r.append(nil, binary.BigEndian.Uint64(head[8:]), 0)
	binary.BigEndian.PutUint32(b[4:], 1<<32-8)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, logStart); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 33); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	p.open()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
		t.Errorf("replay allocates %d bytes", n)
	}
	p.kill()
}

// TestIdleFiles closes many changed files while nothing is put in place in the background.
func TestIdleFiles(t *testing.T) {
	p, _ := newPlaceOn(t)
	for i := range 2*crowd + 10 {
		if err := p.durable(fmt.Sprint(i)).Release(); err != nil {
			t.Fatal(err)
		}
		if n := len(p.j.all()); n > crowd+1 {
			t.Fatalf("%d closed files wait", n)
		}
	}
}

func openDir(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// BenchmarkPut changes 4 KiB at a time, at random, in an overlay that has as many extents as two logs hold.
func BenchmarkPut(b *testing.B) {
	const n = 16 << 10
	data := make([]byte, 4124)
	var o overlay
	x := uint64(1)
	for b.Loop() {
		if len(o) == n {
			o = o[:0]
		}
		x = x*6364136223846793005 + 1442695040888963407
		o.put(extent{off: int64(x>>33) * 4124, n: 4124, data: data, dirty: true})
	}
}
