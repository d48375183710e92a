package powercut

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestShutdown stops XFS dead, as its own crash tests do: what its log has not on the disk is gone.
func TestShutdown(t *testing.T) {
	const times = 20
	s, formatted := newStack(t, "xfs", "kmsfs")
	for i := range times {
		dir := workdir(t)
		image := filepath.Join(dir, "image")
		must(t, copySparse(formatted, image))
		m, err := s.mount(image, dir)
		must(t, err)
		log, err := os.Create(filepath.Join(dir, "operations"))
		must(t, err)
		now := 0 // the record's position is the number of operations begun or ended
		rng := rand.New(rand.NewPCG(seed(t), uint64(i)))
		w := newWorkload(m.top, m.lower, func() int { now++; return now }, rng, log)
		for range 20 + rng.IntN(100) {
			if err := w.step(); err != nil {
				t.Error(err)
				break
			}
		}
		must(t, run(nil, "xfs_io", "-x", "-c", "shutdown", m.lower))
		m.kill()
		must(t, m.unmount())
		rec := &recording{stack: s, history: w.history, log: log.Name()}
		faults, err := rec.check(image, dir, now+1)
		must(t, err)
		for _, f := range faults {
			t.Errorf("shutdown %d: %s", i, f)
		}
		must(t, log.Close())
		must(t, os.RemoveAll(dir))
	}
}
