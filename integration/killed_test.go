package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mountedChild mounts a new volume whose daemon a test may kill. It is closed when the test ends.
func mountedChild(t *testing.T) (c *child, plain string) {
	v, err := newChild(t)()
	must(t, err)
	c = v.(*child)
	t.Cleanup(func() { c.Close() })
	plain, err = c.Mount()
	must(t, err)
	return c, plain
}

// TestKilledUnderLoad kills the daemon at random instants while several programs write, append, create, replace and delete. Mounted again,
// the volume holds all that was closed or fsynced, and nobody has to mend it.
func TestKilledUnderLoad(t *testing.T) {
	kills := number(t, "KMSFS_KILLS", 20)
	c, plain := mountedChild(t)
	var all []load
	for round := range kills {
		rng := rand.New(rand.NewPCG(uint64(round), 1))
		dir := filepath.Join(plain, fmt.Sprint("round", round))
		must(t, os.Mkdir(dir, 0o755))
		loads := []load{
			&overwriter{path: filepath.Join(dir, "overwritten"), rng: rand.New(rand.NewPCG(uint64(round), 2))},
			&overwriter{path: filepath.Join(dir, "closed"), reopen: true, rng: rand.New(rand.NewPCG(uint64(round), 3))},
			&appender{path: filepath.Join(dir, "log")},
			&creator{dir: dir},
			&replacer{path: filepath.Join(dir, "replaced")},
		}
		for _, l := range loads {
			must(t, l.prepare())
		}
		// The daemon dies when so many steps have been done, whatever else is under way.
		left := atomic.Int64{}
		left.Store(int64(len(loads) + rng.IntN(2000)))
		now := make(chan struct{})
		var killing atomic.Bool
		failures := make([]error, len(loads))
		var workers sync.WaitGroup
		for i, l := range loads {
			workers.Go(func() {
				for failures[i] == nil {
					failures[i] = l.step()
					if failures[i] != nil && !killing.Load() {
						t.Errorf("before kill %d: %T: %v", round, l, failures[i])
					}
					if left.Add(-1) == 0 {
						close(now)
					}
				}
			})
		}
		<-now
		killing.Store(true)
		must(t, c.Kill())
		workers.Wait()
		// A request that is being handed over at that instant, or its answer, fails with EIO, or with ECANCELED over io_uring. The daemon would log its own.
		said := c.log.String()
		for i, err := range failures {
			handed := (errors.Is(err, unix.EIO) || errors.Is(err, unix.ECANCELED)) && !strings.Contains(said, "level=ERROR")
			if !handed && !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
				t.Errorf("kill %d: %T: %v\n%s", round, loads[i], err, said)
			}
			loads[i].abandon()
		}
		_, err := c.Mount()
		must(t, err)
		all = append(all, loads...)
		for _, l := range loads {
			if err := l.check(); err != nil {
				t.Errorf("kill %d: %T: %v", round, l, err)
			}
		}
	}
	must(t, c.Unmount())
	_, err := c.Mount()
	must(t, err)
	for _, l := range all {
		if err := l.check(); err != nil {
			t.Errorf("in the end: %T: %v", l, err)
		}
	}
	must(t, os.RemoveAll(plain+"/round0"))
	must(t, c.Unmount())
}

// TestKilledAfterTruncate changes the size of files by path while somebody reads them, who promises nothing by closing them.
func TestKilledAfterTruncate(t *testing.T) {
	c, plain := mountedChild(t)
	sizes := map[string]int64{"emptied": 0, "cut": 5000, "grown": 30000}
	for name, size := range sizes {
		path := filepath.Join(plain, name)
		f, err := os.Create(path)
		must(t, err)
		_, err = f.Write(make([]byte, 20000))
		must(t, errors.Join(err, f.Sync(), f.Close()))
		reader, err := os.Open(path)
		must(t, err)
		defer reader.Close()
		must(t, os.Truncate(path, size))
	}
	must(t, c.Kill())
	_, err := c.Mount()
	must(t, err)
	for name, size := range sizes {
		if b, err := os.ReadFile(filepath.Join(plain, name)); err != nil || !bytes.Equal(b, make([]byte, size)) {
			t.Errorf("%s: %d bytes, want %d zeros; %v", name, len(b), size, err)
		}
	}
	must(t, c.Unmount())
}

// TestCreatorKilled changes files that are durable by the handles that created them, which are closed without a word to the daemon: each change is saved when it is made.
func TestCreatorKilled(t *testing.T) {
	c, plain := mountedChild(t)
	first, copied := bytes.Repeat([]byte("first "), 5000), bytes.Repeat([]byte("copied "), 1000)
	must(t, os.WriteFile(filepath.Join(plain, "source"), copied, 0o644))
	source, err := os.Open(filepath.Join(plain, "source"))
	must(t, err)
	defer source.Close()
	changes := map[string]struct {
		change func(f *os.File) error
		want   []byte
	}{
		"overwritten": {
			func(f *os.File) error { _, err := f.WriteAt(copied, 100); return err },
			slices.Concat(first[:100], copied, first[100+len(copied):]),
		},
		"appended": {func(f *os.File) error { _, err := f.Write(copied); return err }, slices.Concat(first, copied)},
		"cut":      {func(f *os.File) error { return f.Truncate(20000) }, first[:20000]},
		"punched": {
			func(f *os.File) error {
				return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5000, 4000)
			},
			slices.Concat(first[:5000], make([]byte, 4000), first[9000:]),
		},
		"copied": {
			func(f *os.File) error {
				from, to := int64(0), int64(10000)
				n, err := unix.CopyFileRange(int(source.Fd()), &from, int(f.Fd()), &to, len(copied), 0)
				if err == nil && n != len(copied) {
					err = fmt.Errorf("%d bytes were copied", n)
				}
				return err
			},
			slices.Concat(first[:10000], copied, first[10000+len(copied):]),
		},
	}
	for name, c := range changes {
		f, err := os.OpenFile(filepath.Join(plain, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		must(t, err)
		defer f.Close()
		_, err = f.Write(first)
		if err := errors.Join(err, f.Sync(), c.change(f)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !linux(t, 6, 16) {
			must(t, f.Close()) // an older kernel tells of it, and what is written goes through the page cache until then
		}
	}
	must(t, c.Kill())
	_, err = c.Mount()
	must(t, err)
	for name, c := range changes {
		if b, err := os.ReadFile(filepath.Join(plain, name)); err != nil || !bytes.Equal(b, c.want) {
			t.Errorf("%s: %d bytes, want %d; %v", name, len(b), len(c.want), err)
		}
	}
	must(t, c.Unmount())
}

// runKilled runs a command and kills it after a time; done says that it was faster.
func (v *volume) runKilled(t testing.TB, patience time.Duration, args ...string) (done bool) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "KMSFS_CONFIG_DIR="+v.config)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	must(t, cmd.Start())
	kill := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	kill.Stop()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.Sys().(interface{ Signaled() bool }).Signaled()) {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	return err == nil
}

// A load is a program that notes what it has been promised.
type load interface {
	prepare() error
	step() error
	abandon() // the mount is gone
	check() error
}

// An overwriter writes slots of a file over and over, each time filled with the next generation of the slot.
type overwriter struct {
	path   string
	reopen bool // close and open instead of fsync
	rng    *rand.Rand
	f      *os.File

	written [slots]int // the last generation that may be there
	safe    [slots]int // the last generation that must be there, or a later one
}

const (
	slots       = 24
	slotSize    = 1500 // slots lie across the boundaries of segments
	generations = 251
)

func (o *overwriter) prepare() (err error) {
	if err := os.WriteFile(o.path, make([]byte, slots*slotSize), 0o644); err != nil {
		return err
	}
	o.f, err = os.OpenFile(o.path, os.O_RDWR, 0)
	return err
}

func (o *overwriter) step() (err error) {
	i := o.rng.IntN(slots)
	if o.rng.IntN(8) != 0 && o.written[i]-o.safe[i] < generations-1 {
		o.written[i]++
		_, err := o.f.WriteAt(bytes.Repeat([]byte{byte(o.written[i] % generations)}, slotSize), int64(i*slotSize))
		return err
	}
	if o.reopen {
		if err = o.f.Close(); err == nil {
			o.safe = o.written
			o.f, err = os.OpenFile(o.path, os.O_RDWR, 0)
		}
	} else if err = o.f.Sync(); err == nil {
		o.safe = o.written
	}
	return err
}

func (o *overwriter) abandon() { o.f.Close() }

func (o *overwriter) check() error {
	b, err := os.ReadFile(o.path)
	if err != nil {
		return err
	}
	if len(b) != slots*slotSize {
		return fmt.Errorf("%d bytes", len(b))
	}
	for at, got := range b {
		i := at / slotSize
		newer := (int(got) + generations - o.safe[i]%generations) % generations
		if newer > o.written[i]-o.safe[i] {
			return fmt.Errorf("byte %d is of generation %d; %d to %d were possible", at, got, o.safe[i]%generations, o.written[i]%generations)
		}
	}
	return nil
}

// An appender writes a log of numbered records.
type appender struct {
	path          string
	f             *os.File
	written, safe int // records
}

const recordSize = 700

func record(n int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("%07d", n)), recordSize/7)
}

func (a *appender) prepare() (err error) {
	a.f, err = os.OpenFile(a.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	return err
}

func (a *appender) step() error {
	if a.written%5 == 4 {
		if err := a.f.Sync(); err != nil {
			return err
		}
		a.safe = a.written
	}
	a.written++
	_, err := a.f.Write(record(a.written - 1))
	return err
}

func (a *appender) abandon() { a.f.Close() }

func (a *appender) check() error {
	b, err := os.ReadFile(a.path)
	if err != nil {
		return err
	}
	if len(b) < a.safe*recordSize || len(b) > a.written*recordSize {
		return fmt.Errorf("%d bytes; %d to %d records were possible", len(b), a.safe, a.written)
	}
	for n := 0; n*recordSize < len(b); n++ {
		got := b[n*recordSize : min((n+1)*recordSize, len(b))]
		want := record(n)[:len(got)]
		for i := range got {
			if got[i] != want[i] && (n < a.safe || got[i] != 0) {
				return fmt.Errorf("byte %d of record %d of %d is %#02x", i, n, a.safe, got[i])
			}
		}
	}
	return nil
}

// A creator makes and closes files, and deletes those made long before.
type creator struct {
	dir            string
	made, closed   int
	deleting, gone int
}

const kept = 20

func (c *creator) name(n int) string {
	return filepath.Join(c.dir, fmt.Sprintf("file%0*d", 3+n%2*200, n))
}

func (c *creator) content(n int) []byte { return bytes.Repeat(record(n), 1+n%13) }

func (c *creator) prepare() error { return nil }

func (c *creator) step() error {
	if c.closed-c.gone > kept {
		c.deleting++
		if err := os.Remove(c.name(c.deleting - 1)); err != nil {
			return err
		}
		c.gone++
	}
	c.made++
	if err := os.WriteFile(c.name(c.made-1), c.content(c.made-1), 0o644); err != nil {
		return err
	}
	c.closed++
	return nil
}

func (c *creator) abandon() {}

func (c *creator) check() error {
	for n := range c.made {
		b, err := os.ReadFile(c.name(n))
		var problem string
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if n < c.closed && n >= c.deleting {
				problem = "is missing"
			}
		case err != nil:
			return err
		case n < c.gone:
			problem = "is back"
		case n < c.closed && !bytes.Equal(b, c.content(n)):
			problem = "has other content"
		case n >= c.closed && !bytes.HasPrefix(c.content(n), bytes.TrimRight(b, "\x00")):
			problem = "has content that was never written"
		}
		if problem != "" {
			return fmt.Errorf("file %d %s (%d made, %d closed, %d deleted)", n, problem, c.made, c.closed, c.gone)
		}
	}
	return nil
}

// A replacer puts new versions of a file in its place, as editors do.
type replacer struct {
	path          string
	written, safe int
}

func (r *replacer) prepare() error { return os.WriteFile(r.path, r.content(0), 0o644) }

func (r *replacer) content(n int) []byte { return bytes.Repeat(record(n), 1+n%17) }

func (r *replacer) step() error {
	r.written++
	if err := os.WriteFile(r.path+".new", r.content(r.written), 0o644); err != nil {
		return err
	}
	if err := os.Rename(r.path+".new", r.path); err != nil {
		return err
	}
	r.safe = r.written
	return nil
}

func (r *replacer) abandon() {}

func (r *replacer) check() error {
	b, err := os.ReadFile(r.path)
	if err == nil && !bytes.Equal(b, r.content(r.safe)) && !bytes.Equal(b, r.content(r.written)) {
		err = fmt.Errorf("neither version %d nor %d: %d bytes", r.safe, r.written, len(b))
	}
	return err
}

// linux reports whether the kernel is of this version, or a later one.
func linux(t *testing.T, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	must(t, unix.Uname(&u))
	var ma, mi int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &ma, &mi)
	must(t, err)
	return ma > major || ma == major && mi >= minor
}
