package rewrap_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/local"
	"github.com/kmsfs/kmsfs/rewrap"
	"github.com/kmsfs/kmsfs/volume"
)

// A cmk is a local CMK that counts its wraps, or fails.
type cmk struct {
	*local.Keyring
	wraps      atomic.Int64
	fails      error
	failsAfter atomic.Int64 // so many wraps; 0: never
}

func newCMK(t *testing.T) *cmk {
	t.Helper()
	k, err := local.Generate(filepath.Join(t.TempDir(), "cmk"))
	if err != nil {
		t.Fatal(err)
	}
	return &cmk{Keyring: k}
}

func (c *cmk) EncryptDataKey(ctx context.Context, dk keyring.DataKey, ec keyring.EncryptionContext) ([]keyring.EncryptedDataKey, error) {
	n := c.wraps.Add(1)
	if c.fails != nil {
		return nil, c.fails
	}
	if after := c.failsAfter.Load(); after > 0 && n > after {
		return nil, keyring.ErrUnavailable
	}
	return c.Keyring.EncryptDataKey(ctx, dk, ec)
}

// A place is an unlocked volume with its journal.
type place struct {
	t *testing.T
	v *volume.Volume
	j *journal.Journal
}

func newPlace(t *testing.T, k keyring.Keyring) *place {
	t.Helper()
	return newPlaceOf(t, k, volume.Params{Algorithm: header.AES256GCM, SegmentSize: 4096})
}

func newPlaceOf(t *testing.T, k keyring.Keyring, params volume.Params) *place {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "volume")
	if _, err := volume.Create(t.Context(), dir, params, k); err != nil {
		t.Fatal(err)
	}
	v, err := volume.Open(dir)
	if err == nil {
		err = v.Unlock(t.Context(), k)
	}
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(v.RootFd(), v.MetaFd(), journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(j.Close(), v.Close()); err != nil {
			t.Error(err)
		}
	})
	return &place{t, v, j}
}

func (p *place) path(name string) string { return filepath.Join(p.v.Dir(), name) }

// create makes a file as the daemon does: its header comes with its first bytes, within one operation.
func (p *place) create(name string) {
	fd, err := unix.Open(p.path(name), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		p.t.Error(err)
		return
	}
	f, err := p.j.Enter(fd, name)
	if err != nil {
		p.t.Error(err)
		return
	}
	f.Begin()
	raw, _, err := p.v.NewFile()
	if err == nil {
		_, err = f.WriteAt(append(raw, make([]byte, 600)...), 0)
	}
	f.End()
	if err := errors.Join(err, f.Release()); err != nil {
		p.t.Error(err)
	}
}

func (p *place) run(c rewrap.Change, o rewrap.Options) rewrap.Report {
	p.t.Helper()
	r, err := rewrap.Run(p.t.Context(), p.v, p.j, c, o)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// listed returns the CMKs that the header in a file lists.
func (p *place) listed(name string) (cmks []string) {
	p.t.Helper()
	b, err := os.ReadFile(p.path(name))
	if err != nil {
		p.t.Fatal(err)
	}
	h, err := header.Parse(b)
	if err != nil {
		p.t.Fatalf("%s: %v", name, err)
	}
	for _, e := range h.EDKs {
		cmks = append(cmks, e.CMK)
	}
	return cmks
}

// TestBesideWriters rewraps while files are created and moved: none escapes.
func TestBesideWriters(t *testing.T) {
	a, b := newCMK(t), newCMK(t)
	p := newPlace(t, a)
	for _, d := range []string{"1", "2"} {
		if err := os.Mkdir(p.path(d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 300 {
		p.create(fmt.Sprintf("%d/old%d", 1+i%2, i))
	}
	var stop atomic.Bool
	var writers sync.WaitGroup
	made := 0
	writers.Go(func() {
		for ; !stop.Load() && made < 500; made++ {
			p.create(fmt.Sprint("1/new", made))
		}
	})
	writers.Go(func() {
		for i := 0; !stop.Load(); i++ {
			from, to := fmt.Sprintf("%d/old0", 1+i%2), fmt.Sprintf("%d/old0", 2-i%2)
			done := p.j.Moving()
			if err := os.Rename(p.path(from), p.path(to)); err != nil {
				t.Error(err)
			}
			p.j.Moved(p.v.RootFd(), to)
			done()
		}
	})
	var progress []rewrap.Progress
	p.run(rewrap.Change{Add: []rewrap.CMK{b}, Trusted: []string{b.CMK()}}, rewrap.Options{Progress: func(p rewrap.Progress) { progress = append(progress, p) }})
	r := p.run(rewrap.Change{Remove: []string{a.CMK()}, Trusted: []string{b.CMK()}}, rewrap.Options{})
	stop.Store(true)
	writers.Wait()
	if err := p.j.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if len(r.Stragglers) > 0 || !slices.Equal(r.CMKs, []string{b.CMK()}) || !slices.Equal(r.Removed, []string{a.CMK()}) || b.wraps.Load() != 1 {
		t.Errorf("%+v, %d wraps", r, b.wraps.Load())
	}
	if len(progress) == 0 || progress[0].Total < 300 {
		t.Errorf("%+v", progress)
	}
	files, err := filepath.Glob(p.path("?/*"))
	if err != nil || len(files) < 300+made {
		t.Fatalf("%d files of %d, %v", len(files), 300+made, err)
	}
	for _, f := range append(files, p.path(".kmsfs/volume"), p.path(".kmsfs/volume.copy")) {
		rel, _ := filepath.Rel(p.v.Dir(), f)
		if got := p.listed(rel); !slices.Equal(got, []string{b.CMK()}) {
			t.Errorf("%s lists %v", rel, got)
		}
	}
}

// TestOtherDataKey rewraps files with a data key of their own, too: one wrap for each key.
func TestOtherDataKey(t *testing.T) {
	a, b := newCMK(t), newCMK(t)
	p, other := newPlace(t, a), newPlace(t, a)
	p.create("own")
	for _, name := range []string{"x", "y"} {
		raw, _, err := other.v.NewFile()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p.path(name), append(raw, make([]byte, 600)...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := p.run(rewrap.Change{Add: []rewrap.CMK{b}, Trusted: []string{b.CMK()}}, rewrap.Options{})
	if r.Rewrapped != 3 || r.Wraps != 2 || b.wraps.Load() != 2 {
		t.Errorf("%+v", r)
	}
	for _, name := range []string{"own", "x", "y"} {
		if got := p.listed(name); !slices.Equal(got, []string{a.CMK(), b.CMK()}) {
			t.Errorf("%s lists %v", name, got)
		}
	}
	if r := p.run(rewrap.Change{Add: []rewrap.CMK{b}, Trusted: []string{b.CMK()}}, rewrap.Options{}); r.Rewrapped != 0 || r.Wraps != 0 {
		t.Errorf("again: %+v", r)
	}
}

// TestFinishesOtherDataKeys brings files with data keys of their own in line with the volume header, as a run that was cut off left them.
func TestFinishesOtherDataKeys(t *testing.T) {
	a, b := newCMK(t), newCMK(t)
	p, other := newPlace(t, a), newPlace(t, a)
	raw, _, err := other.v.NewFile()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.path("x"), append(raw, make([]byte, 600)...), 0o600); err != nil {
		t.Fatal(err)
	}
	edks, err := p.v.Wrap(t.Context(), p.v.Header().KeyID, b)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.v.SetEDKs(append(slices.Clone(p.v.Header().EDKs), edks...)); err != nil {
		t.Fatal(err)
	}
	trusted := []string{a.CMK(), b.CMK()}
	if r := p.run(rewrap.Change{Trusted: trusted}, rewrap.Options{}); len(r.Stragglers) != 1 || !strings.Contains(r.Stragglers[0].Cause, b.CMK()) {
		t.Errorf("nobody to ask: %+v", r)
	}
	if r := p.run(rewrap.Change{Have: []rewrap.CMK{a, b}, Trusted: trusted}, rewrap.Options{}); r.Rewrapped != 1 || r.Wraps != 1 || len(r.Stragglers) > 0 {
		t.Errorf("%+v", r)
	}
	if got := p.listed("x"); !slices.Equal(got, trusted) {
		t.Errorf("lists %v", got)
	}
	if err := p.v.SetEDKs(edks); err != nil { // a was removed
		t.Fatal(err)
	}
	if r := p.run(rewrap.Change{Have: []rewrap.CMK{b}, Trusted: trusted}, rewrap.Options{}); r.Rewrapped != 1 || r.Wraps != 0 {
		t.Errorf("%+v", r)
	}
	if got := p.listed("x"); !slices.Equal(got, trusted[1:]) {
		t.Errorf("lists %v", got)
	}
}

// TestRotated rewraps a volume whose data key was rotated: one wrap for each of its data keys, and the EDKs of new files are in line.
func TestRotated(t *testing.T) {
	a, b, c := newCMK(t), newCMK(t), newCMK(t)
	p := newPlace(t, a)
	for i := range 3 {
		p.create(fmt.Sprint("file", i))
		next, err := p.v.NextKey(t.Context(), a)
		if err == nil {
			err = p.v.Rotate(next)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r := p.run(rewrap.Change{Add: []rewrap.CMK{b}, Remove: []string{a.CMK()}, Trusted: []string{b.CMK()}}, rewrap.Options{})
	if r.Rewrapped != 3 || b.wraps.Load() != 4 || r.Wraps != 4 || len(r.Stragglers) > 0 {
		t.Errorf("%+v, %d wraps", r, b.wraps.Load())
	}
	p.create("new")
	for _, name := range []string{"file0", "file1", "file2", "new", ".kmsfs/volume", ".kmsfs/current", ".kmsfs/current.copy"} {
		if got := p.listed(name); !slices.Equal(got, []string{b.CMK()}) {
			t.Errorf("%s lists %v", name, got)
		}
	}
	if p.v.Generation() != 3 || len(p.v.CheckCurrent()) > 0 {
		t.Errorf("generation %d, %v", p.v.Generation(), p.v.CheckCurrent())
	}
	// All or nothing holds for the data key of new files, too.
	c.failsAfter.Store(1)
	before := p.listed(".kmsfs/volume")
	if _, err := rewrap.Run(t.Context(), p.v, p.j, rewrap.Change{Add: []rewrap.CMK{c}, Trusted: []string{b.CMK()}}, rewrap.Options{}); !errors.Is(err, keyring.ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	if got := p.listed(".kmsfs/volume"); !slices.Equal(got, before) {
		t.Errorf("the volume header lists %v", got)
	}
}

// TestRefused changes nothing where a CMK fails, none is left, or the caller says no.
func TestRefused(t *testing.T) {
	a, b, broken := newCMK(t), newCMK(t), newCMK(t)
	broken.fails = keyring.ErrDenied
	no := errors.New("no")
	p := newPlace(t, a)
	p.create("file")
	for _, tt := range []struct {
		change rewrap.Change
		before func() error
		want   error
	}{
		{change: rewrap.Change{Add: []rewrap.CMK{b, broken}, Trusted: []string{a.CMK()}}, want: keyring.ErrDenied},
		{change: rewrap.Change{Remove: []string{a.CMK()}}, want: rewrap.ErrLast},
		{change: rewrap.Change{Add: []rewrap.CMK{b}}, want: rewrap.ErrLast},
		{change: rewrap.Change{Add: []rewrap.CMK{b}, Trusted: []string{b.CMK()}}, before: func() error { return no }, want: no},
	} {
		if _, err := rewrap.Run(t.Context(), p.v, p.j, tt.change, rewrap.Options{Before: tt.before}); !errors.Is(err, tt.want) {
			t.Errorf("%v, want %v", err, tt.want)
		}
		for _, name := range []string{"file", ".kmsfs/volume", ".kmsfs/volume.copy"} {
			if got := p.listed(name); !slices.Equal(got, []string{a.CMK()}) {
				t.Errorf("%v: %s lists %v", tt.want, name, got)
			}
		}
	}
}

// TestManyNames meets a file that has a data key of its own under many names at once: the data key is wrapped once.
func TestManyNames(t *testing.T) {
	a, b := newCMK(t), newCMK(t)
	p := newPlaceOf(t, a, volume.Params{Algorithm: header.AES256GCM, SegmentSize: 4096, PerFile: true})
	p.create("file")
	for i := range 200 {
		if err := os.Link(p.path("file"), p.path(fmt.Sprint("name", i))); err != nil {
			t.Fatal(err)
		}
	}
	r := p.run(rewrap.Change{Add: []rewrap.CMK{b}, Trusted: []string{a.CMK(), b.CMK()}}, rewrap.Options{Workers: 16})
	if n := b.wraps.Load(); n != 2 || r.Wraps != 2 || r.Rewrapped != 1 || len(r.Stragglers) > 0 { // the volume's and the file's
		t.Errorf("%d wraps, %+v", n, r)
	}
	if got := p.listed("name7"); len(got) != 2 {
		t.Errorf("the header lists %v", got)
	}
}

// TestFirstBytesMeanwhile gives a file its first bytes while a rewrap passes it: with the header that was made before, it does not escape.
func TestFirstBytesMeanwhile(t *testing.T) {
	a, b := newCMK(t), newCMK(t)
	p := newPlace(t, a)
	fd, err := unix.Open(p.path("f"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.j.Enter(fd, "f")
	if err != nil {
		t.Fatal(err)
	}
	f.Begin()
	raw, _, err := p.v.NewFile()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := rewrap.Run(t.Context(), p.v, p.j, rewrap.Change{Add: []rewrap.CMK{b}, Trusted: []string{a.CMK(), b.CMK()}}, rewrap.Options{})
		done <- err
	}()
	// It waits for the operation: at the file or, if it passes that by, in the end.
	stacks := make([]byte, 1<<20)
	for waits := false; !waits; time.Sleep(time.Millisecond) {
		for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			waits = waits || strings.Contains(stack, "[sync.Mutex.Lock") && strings.Contains(stack, "/journal.(*")
		}
	}
	_, err = f.WriteAt(append(raw, make([]byte, 600)...), 0)
	f.End()
	if err := errors.Join(err, f.Release(), <-done); err != nil {
		t.Fatal(err)
	}
	if got := p.listed("f"); !slices.Equal(got, []string{a.CMK(), b.CMK()}) {
		t.Errorf("the file lists %v", got)
	}
}

// A moving CMK runs move when it wraps.
type moving struct {
	*cmk
	move func()
}

func (m moving) EncryptDataKey(ctx context.Context, dk keyring.DataKey, ec keyring.EncryptionContext) ([]keyring.EncryptedDataKey, error) {
	m.move()
	return m.cmk.EncryptDataKey(ctx, dk, ec)
}

// TestMovedDirectory moves a directory in while the tree is walked. What is in it may be called as the volume's own files are in the root.
func TestMovedDirectory(t *testing.T) {
	a, b := newCMK(t), newCMK(t)
	p := newPlaceOf(t, a, volume.Params{Algorithm: header.AES256GCM, SegmentSize: 4096, PerFile: true, PlaintextNames: true})
	p.create("file")
	if err := os.MkdirAll(p.path(".kmsfs/moved/.kmsfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.create(".kmsfs/moved/.kmsfs/file")
	from := moving{b, func() {
		defer p.j.Moving()()
		p.j.Moved(p.v.MetaFd(), "moved") // where the walk does not come
	}}
	p.run(rewrap.Change{Add: []rewrap.CMK{from}, Trusted: []string{a.CMK(), b.CMK()}}, rewrap.Options{})
	for _, name := range []string{"file", ".kmsfs/moved/.kmsfs/file"} {
		if got := p.listed(name); !slices.Equal(got, []string{a.CMK(), b.CMK()}) {
			t.Errorf("%s lists %v", name, got)
		}
	}
}
