package journal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"testing"
)

// again begins with what a crash at time k has left, which the journal was opened on.
func (c *crashTest) again(s *sim, w wreck, k int) {
	var all []*crashFile
	c.files = make(map[string]*crashFile)
	for _, name := range slices.Sorted(maps.Keys(w.names)) {
		old := c.file(w, name)
		f := &crashFile{name: name, ino: old.ino}
		c.reopen(f)
		mtime := c.now(f).mtime
		state := crashState{content: content(c.t, f.f), from: mtime, to: mtime}
		f.doubt = c.p.j.Suspect(f.f.fd)
		if f.doubt && !slices.ContainsFunc(old.states, func(s crashState) bool { return s.at <= k && bytes.Equal(s.content, state.content) }) {
			state.content = nil // torn
		}
		f.states = []crashState{state}
		c.disk = s
		c.promised(f)
		c.files[name], all = f, append(all, f)
	}
	c.disk, c.all = s, all
	slices.SortFunc(c.all, func(a, b *crashFile) int { return cmp.Compare(a.ino, b.ino) })
}

// TestPowerCut cuts the power at many points of random work, and at points of the replays that follow: every file is as it was promised last, or as a
// later operation left it, whole, with the modification time of then. After a kill, so is what was closed. The work goes on after crashes.
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
	limits := crashLimits
	if seed%3 == 1 {
		limits.log, limits.save, limits.grow = 160<<10, 4<<10, 8<<10
	} else if seed%3 == 2 {
		limits.log, limits.save, limits.grow = 1<<20, 64<<10, 60<<10
	}
	c := newCrashTest(t, seed, limits)
	c.disk.unnumbered = seed%2 == 1
	for life := range powerLives {
		begin := c.disk.now
		c.run(160)
		c.p.kill()
		end := c.disk.now
		var (
			s *sim
			w wreck
			k int
		)
		fail := func(err error, format string, args ...any) {
			if err != nil {
				t.Fatalf("seed %d, life %d, %s: %v", seed, life, fmt.Sprintf(format, args...), err)
			}
		}
		for range cuts {
			k = begin + c.rnd.IntN(end-begin+1)
			if commits := c.disk.commits; c.rnd.IntN(2) == 0 {
				k = max(begin, commits[c.rnd.IntN(len(commits))].t-1) // most is under way just before a sync is over
			}
			w = c.disk.cut(k, nil)
			c.recover(w)
			fail(c.check(w, k, true), "killed at %d of %d", k, end)
			c.p.kill()
			w = c.disk.cut(k, c.rnd)
			s = c.recover(w)
			fail(errors.Join(c.checkNames(w, k), c.check(w, k, false)), "power cut at %d of %d", k, end)
			c.p.kill()
			did[1] += uint64(s.now)
			for range c.rnd.IntN(2) {
				again := c.rnd.IntN(s.now + 1)
				w = s.cut(again, c.rnd)
				s = c.recover(w)
				fail(c.check(w, k, false), "power cut at %d of %d and at %d of the replay", k, end, again)
				c.p.kill()
			}
		}
		did[0] += uint64(end)
		s = c.recover(w)
		c.again(s, w, k)
	}
	c.p.kill()
	did[2] = c.rnd.Uint64()
	return did
}

const (
	powerSeeds = 10
	powerLives = 3
	powerCuts  = 14
)
