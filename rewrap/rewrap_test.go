package rewrap_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

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
	wraps atomic.Int64
	fails error
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
	c.wraps.Add(1)
	if c.fails != nil {
		return nil, c.fails
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
	dir := filepath.Join(t.TempDir(), "volume")
	if _, err := volume.Create(t.Context(), dir, volume.Params{Algorithm: header.AES256GCM, SegmentSize: 4096}, k); err != nil {
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
