package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/keyring/keyringtest"
)

// counting is a CMK that counts its calls, and refuses when it is told to.
type counting struct {
	*keyringtest.Fake
	wraps, unwraps atomic.Int64
	down           atomic.Bool
}

func (c *counting) EncryptDataKey(ctx context.Context, dk keyring.DataKey, ec keyring.EncryptionContext) ([]keyring.EncryptedDataKey, error) {
	c.wraps.Add(1)
	if c.down.Load() {
		return nil, keyring.ErrDenied
	}
	return c.Fake.EncryptDataKey(ctx, dk, ec)
}

func (c *counting) DecryptDataKey(ctx context.Context, edks []keyring.EncryptedDataKey, ec keyring.EncryptionContext) (keyring.DataKey, error) {
	c.unwraps.Add(1)
	if c.down.Load() {
		return nil, keyring.ErrDenied
	}
	return c.Fake.DecryptDataKey(ctx, edks, ec)
}

// calls returns and forgets the counts.
func (c *counting) calls() (wraps, unwraps int64) { return c.wraps.Swap(0), c.unwraps.Swap(0) }

// A site is a volume of two CMKs.
type site struct {
	t    *testing.T
	dir  string
	a, b *counting
	ring *failover.Keyring
}

func newSite(t *testing.T, p Params) *site {
	t.Helper()
	s := &site{t: t, dir: filepath.Join(t.TempDir(), "cipher"), a: &counting{Fake: keyringtest.NewFake("fake:a")}, b: &counting{Fake: keyringtest.NewFake("fake:b")}}
	s.ring = failover.New([]failover.CMK{s.a, s.b}, failover.Options{})
	if p.Algorithm == 0 {
		p.Algorithm, p.SegmentSize = header.AES256GCM, 4096
	}
	if _, err := Create(t.Context(), s.dir, p, s.ring); err != nil {
		t.Fatal(err)
	}
	s.a.calls()
	s.b.calls()
	return s
}

func (s *site) open() *Volume {
	s.t.Helper()
	return unlock(s.t, s.dir, s.ring)
}

func (s *site) rotate(v *Volume) {
	s.t.Helper()
	next, err := v.NextKey(s.t.Context(), s.ring)
	if err == nil {
		err = v.Rotate(next)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) path(name string) string { return filepath.Join(s.dir, MetaDir, name) }

// state returns the files that hold headers of the volume's own.
func (s *site) state() map[string][]byte {
	s.t.Helper()
	files := make(map[string][]byte)
	for _, name := range []string{currentCopy, currentFile, headerCopy, headerFile} {
		b, err := os.ReadFile(s.path(name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			s.t.Fatal(err)
		}
		files[name] = b
	}
	return files
}

// restore puts files back; nil takes one away.
func (s *site) restore(files map[string][]byte) {
	s.t.Helper()
	for name, b := range files {
		err := os.Remove(s.path(name))
		if b != nil {
			err = os.WriteFile(s.path(name), b, 0o600)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			s.t.Fatal(err)
		}
	}
}

func newFile(t *testing.T, v *Volume) ([]byte, *header.Header) {
	t.Helper()
	raw, _, err := v.NewFile()
	if err != nil {
		t.Fatal(err)
	}
	h, err := header.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return raw, h
}

// TestRotate rotates the data keys of volumes of all kinds: files under all of them open, names stay what they are, and every call is counted.
func TestRotate(t *testing.T) {
	for _, p := range []Params{{}, {Algorithm: header.SM4128GCM, SegmentSize: 65536, Context: keyring.EncryptionContext{"k": "v"}}, {Algorithm: header.AES128GCM, SegmentSize: 4096, PlaintextNames: true}} {
		s := newSite(t, p)
		v := s.open()
		s.a.calls()
		if v.CurrentKey() != v.Header().KeyID || v.Generation() != 0 || len(v.CheckCurrent()) != 0 {
			t.Errorf("before: %s, generation %d, %v", v.CurrentKey(), v.Generation(), v.CheckCurrent())
		}
		name, err := v.Names().Name(v.Header().FileID, "name")
		if err != nil {
			t.Fatal(err)
		}
		var files [][]byte
		keys := map[header.ID]bool{}
		for generation := uint64(1); generation <= 3; generation++ {
			raw, h := newFile(t, v)
			files, keys[h.KeyID] = append(files, raw), true
			s.rotate(v)
			if v.Generation() != generation || v.CurrentKey() == h.KeyID || len(v.OwnKeys()) != 2 || len(v.CheckCurrent()) != 0 || len(v.CheckHeaders()) != 0 {
				t.Errorf("generation %d: %d, %v %v", generation, v.Generation(), v.CheckCurrent(), v.CheckHeaders())
			}
			if wraps, unwraps := s.a.calls(); wraps != 1 || unwraps != 0 {
				t.Errorf("rotation: %d wraps, %d unwraps", wraps, unwraps)
			}
			if wraps, _ := s.b.calls(); wraps != 1 {
				t.Errorf("rotation: %d wraps of the second", wraps)
			}
		}
		raw, h := newFile(t, v)
		files, keys[h.KeyID] = append(files, raw), true
		if len(keys) != 4 || !slices.Equal(keyring.CMKs(h.EDKs), []string{"fake:a", "fake:b"}) || h.FormatVersion() != header.Version {
			t.Errorf("%d data keys; %+v", len(keys), h)
		}
		v = s.open()
		if _, unwraps := s.a.calls(); unwraps != 2 {
			t.Errorf("mount: %d unwraps, want 2", unwraps)
		}
		if again, err := v.Names().Name(v.Header().FileID, "name"); err != nil || again.Disk != name.Disk {
			t.Errorf("names changed: %v", err)
		}
		for range 2 {
			for i, raw := range files {
				if _, err := v.OpenFile(t.Context(), raw); err != nil {
					t.Errorf("file of generation %d: %v", i, err)
				}
			}
		}
		if _, unwraps := s.a.calls(); unwraps != 2 { // two older data keys
			t.Errorf("opens: %d unwraps, want 2", unwraps)
		}
		if err := v.Ask(t.Context()); err != nil {
			t.Error(err)
		}
		if _, unwraps := s.a.calls(); unwraps != 2 {
			t.Errorf("ask: %d unwraps, want 2", unwraps)
		}
	}
}

// TestRotateRefused changes nothing where a CMK fails or is not trusted, or every file has a data key of its own.
func TestRotateRefused(t *testing.T) {
	s := newSite(t, Params{})
	v := s.open()
	before := s.state()
	s.b.down.Store(true)
	if _, err := v.NextKey(t.Context(), s.ring); !errors.Is(err, keyring.ErrDenied) {
		t.Errorf("a CMK refuses: %v", err)
	}
	if _, err := v.NextKey(t.Context(), failover.New([]failover.CMK{s.a}, failover.Options{})); !errors.Is(err, keyring.ErrUntrusted) {
		t.Errorf("a CMK is missing: %v", err)
	}
	if _, err := v.NextKey(t.Context(), s.a); !errors.Is(err, keyring.ErrUntrusted) {
		t.Errorf("a keyring of one CMK: %v", err)
	}
	s.b.down.Store(false)
	if _, err := v.NextKey(t.Context(), s.ring); err != nil { // and nobody uses it
		t.Error(err)
	}
	for name, b := range s.state() {
		if !bytes.Equal(b, before[name]) {
			t.Errorf("%s has changed", name)
		}
	}
	per := newSite(t, Params{PerFile: true, Algorithm: header.AES256GCM, SegmentSize: 4096})
	if _, err := per.open().NextKey(t.Context(), per.ring); !errors.Is(err, ErrPerFile) {
		t.Errorf("%v, want ErrPerFile", err)
	}
}

// TestRotateCutOff cuts rotations off between any two of the files that they replace, one by one: the volume opens with the one key or the other, can be mended, and can be rotated again.
func TestRotateCutOff(t *testing.T) {
	steps := []string{currentCopy, currentFile, headerCopy, headerFile}
	for round := range 2 { // the first rotation of the volume, and the second
		s := newSite(t, Params{})
		v := s.open()
		for range round {
			s.rotate(v)
		}
		before := s.state()
		old := v.CurrentKey()
		s.rotate(v)
		after := s.state()
		for n := range len(steps) + 1 {
			for _, how := range []string{"mend", "rotate", "rewrap"} {
				state := make(map[string][]byte)
				for i, name := range steps {
					state[name] = before[name]
					if i < n {
						state[name] = after[name]
					}
				}
				s.restore(state)
				what := fmt.Sprintf("round %d, %d of %d files, %s", round, n, len(steps), how)
				cut := s.open()
				want := uint64(round)
				if n > 0 {
					want++
				}
				if _, err := cut.Current(); err != nil || cut.Generation() != want || (cut.CurrentKey() == old) != (n == 0) {
					t.Errorf("%s: generation %d, %v", what, cut.Generation(), err)
				}
				if cut.Expect(uint64(round)); cut.Generation() != want { // what the machine had noted before
					t.Errorf("%s: refused", what)
				}
				newFile(t, cut)
				var err error
				switch how {
				case "mend":
					err = errors.Join(cut.MendHeaders(), cut.MendCurrent())
				case "rewrap":
					err = errors.Join(cut.SetEDKs(cut.Header().EDKs))
					if h, _ := cut.Current(); err == nil && h.Kind == header.Current {
						err = cut.SetCurrentEDKs(h.EDKs)
					}
				case "rotate":
					s.rotate(cut)
					want++
				}
				again := s.open()
				if faults := slices.Concat(again.CheckHeaders(), again.CheckCurrent()); err != nil || len(faults) > 0 || again.Generation() != want || again.Header().Generation != want {
					t.Errorf("%s: afterwards generation %d, %v, %v", what, again.Generation(), faults, err)
				}
			}
		}
	}
}

// TestRotateBesideNewFiles makes files while the data key is rotated: each has EDKs of its own data key.
func TestRotateBesideNewFiles(t *testing.T) {
	s := newSite(t, Params{})
	v := s.open()
	var stop atomic.Bool
	var workers sync.WaitGroup
	files := make([][][]byte, 4)
	for i := range files {
		workers.Go(func() {
			for !stop.Load() {
				raw, _, err := v.NewFile()
				if err != nil {
					t.Error(err)
					return
				}
				if files[i] = append(files[i], raw); len(files[i]) > 2000 {
					return
				}
			}
		})
	}
	for range 20 {
		s.rotate(v)
		if h, err := v.Current(); err != nil || v.SetCurrentEDKs(h.EDKs) != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	workers.Wait()
	fresh := s.open()
	keys := map[string]bool{}
	for _, list := range files {
		for _, raw := range list {
			h, err := fresh.FileHeader(t.Context(), raw)
			if err != nil {
				t.Fatal(err)
			}
			keys[h.KeyID.String()] = true
		}
	}
	if newest, _ := newFile(t, v); len(newest) == 0 || len(keys) == 0 {
		t.Error("no file")
	}
}

// TestSealFileOfEither seals headers anew under each of the volume's own data keys, and under no other.
func TestSealFileOfEither(t *testing.T) {
	s := newSite(t, Params{})
	v := s.open()
	s.rotate(v)
	for _, key := range v.OwnKeys() {
		raw, _, err := v.SealFile(header.NewID(), key)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := v.FileHeader(t.Context(), raw); err != nil || h.KeyID != key {
			t.Errorf("%v", err)
		}
	}
	if _, _, err := v.SealFile(header.NewID(), header.NewID()); !errors.Is(err, ErrForgotten) {
		t.Errorf("%v, want ErrForgotten", err)
	}
}
