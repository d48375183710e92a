package powercut

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// seed is what all of a run's randomness comes from, KMSFS_SEED or a fixed one.
func seed(t *testing.T) uint64 {
	n, err := strconv.ParseUint(cmp.Or(os.Getenv("KMSFS_SEED"), "1"), 10, 64)
	must(t, err)
	return n
}

// number is KMSFS_CUTS, or what is affordable every time.
func number(t *testing.T, affordable int) int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("KMSFS_CUTS"), fmt.Sprint(affordable)))
	must(t, err)
	return n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// workdir is a directory in memory, emptied afterwards.
func workdir(t testing.TB) string {
	dir, err := os.MkdirTemp(filepath.Join(os.Getenv(inside), "work"), "")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// newStack is a formatted stack and its image.
func newStack(t testing.TB, backing, crypt string) (s stack, image string) {
	t.Helper()
	s = stack{backing: backing, crypt: crypt}
	return s, build(t, &s)
}

// build formats a stack, and notes in it where its parts are.
func build(t testing.TB, s *stack) (image string) {
	t.Helper()
	dir := workdir(t)
	s.binary, s.secret = filepath.Join(os.Getenv(inside), "kmsfs"), filepath.Join(dir, "secret")
	must(t, os.Mkdir(s.secret, 0o700))
	image = filepath.Join(dir, "formatted")
	must(t, s.format(image, dir))
	return image
}

const (
	cutsPerRun = 40
	steps      = 150
)

// randomly cuts the power n times during random programs and returns the cuts that left faults.
func randomly(t *testing.T, kind stack, n int) (bad []cut) {
	t.Helper()
	s, image := newStack(t, kind.backing, kind.crypt)
	started := time.Now()
	seed := seed(t) * 1_000_000
	for done := 0; done < n; done += cutsPerRun {
		dir := workdir(t)
		rng := rand.New(rand.NewPCG(seed, uint64(done)))
		rec, err := s.record(image, dir, rng, func(w *workload) error {
			for range steps {
				if err := w.step(); err != nil {
					return err
				}
			}
			return nil
		})
		must(t, err)
		positions := make([]int, min(cutsPerRun, n-done))
		for i := range positions {
			positions[i] = rng.IntN(len(rec.records) + 1)
		}
		cuts, err := rec.cuts(dir, positions, seed+uint64(done))
		must(t, err)
		bad = append(bad, faulty(t, rec, cuts)...)
		must(t, os.RemoveAll(dir))
		if now := done + len(cuts); now == n || now/100 > done/100 {
			t.Logf("%s: %d cuts, %d with faults, %v", s, now, len(bad), time.Since(started).Round(time.Second))
		}
	}
	return bad
}

// cutRandomly cuts the power n times at places of a record from a position on and returns the cuts that left faults.
func cutRandomly(t *testing.T, rec *recording, dir string, rng *rand.Rand, from, n int) []cut {
	t.Helper()
	positions := make([]int, n)
	for i := range positions {
		positions[i] = from + rng.IntN(len(rec.records)+1-from)
	}
	started := time.Now()
	rec.progress = func(done int) {
		if done%100 == 0 {
			t.Logf("%s: %d of %d cuts, %v", rec.stack, done, n, time.Since(started).Round(time.Second))
		}
	}
	cuts, err := rec.cuts(dir, positions, seed(t))
	must(t, err)
	return faulty(t, rec, cuts)
}

// faulty picks the cuts with faults, and keeps their images in KMSFS_KEEP, if set.
func faulty(t *testing.T, rec *recording, cuts []cut) (bad []cut) {
	for _, c := range cuts {
		if len(c.faults) == 0 {
			continue
		}
		bad = append(bad, c)
		if dir := os.Getenv("KMSFS_KEEP"); dir != "" {
			must(t, rec.keep(dir, c))
		}
	}
	return bad
}

// none fails the test for each fault.
func none(t *testing.T, bad []cut) {
	t.Helper()
	for _, c := range bad {
		for _, f := range c.faults {
			t.Errorf("seed %d, cut at %d: %.300s", c.seed[0], c.position, f)
		}
	}
	if len(bad) > 0 {
		t.Errorf("%d cuts with faults: %s", len(bad), summary(bad))
	}
}

// TestBacking shows that the filesystems below lose nothing, so that what is lost above them is not theirs, nor the check's.
func TestBacking(t *testing.T) {
	for _, backing := range []string{"ext4", "xfs"} {
		t.Run(backing, func(t *testing.T) { none(t, randomly(t, stack{backing: backing}, number(t, 80))) })
	}
}

// TestGocryptfs shows that the check sees what a power cut destroys.
func TestGocryptfs(t *testing.T) {
	bad := randomly(t, stack{backing: "ext4", crypt: "gocryptfs"}, number(t, 80))
	t.Log(summary(bad))
	if !strings.Contains(summary(bad), string(lostBytes)) {
		t.Error("gocryptfs lost nothing: the check cannot see losses")
	}
}

// TestLyingDisk shows the same of the recorder: a disk that forgets flushes makes ext4 lose what it promised.
func TestLyingDisk(t *testing.T) {
	s, image := newStack(t, "ext4", "")
	dir := workdir(t)
	rec, err := s.record(image, dir, rand.New(rand.NewPCG(1, 1)), func(w *workload) error {
		n, err := w.create(w.root, "file", file)
		return errors.Join(err, w.write(n, 0, 10000, true))
	})
	must(t, err)
	flushes := 0
	for i, r := range rec.records {
		if r.data == nil {
			flushes++
			rec.records[i] = record{data: []byte{}}
		}
	}
	if flushes < 2 { // a commit of ext4 has one before and one after its last block
		t.Errorf("%d flushes reached the disk", flushes)
	}
	positions := make([]int, 40)
	for i := range positions {
		positions[i] = len(rec.records)
	}
	bad, err := rec.cuts(dir, positions, 1)
	must(t, err)
	if got := summary(bad); !strings.Contains(got, string(lostBytes)) && !strings.Contains(got, string(lostName)) {
		t.Error("nothing lost without flushes:", got)
	}
}
