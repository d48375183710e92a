package powercut

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A cost is what a program had to pay.
type cost struct {
	above, below int // bytes
	took         time.Duration
	calls        int // of fsync, or commits
}

// price measures what reaches the disk, the filesystem's own metadata and log included, for what a program writes.
func price(t *testing.T, s stack, image string, prepare, work func(*workload) (above, calls int, err error)) (c cost) {
	t.Helper()
	dir := workdir(t)
	var begin, end int
	rec, err := s.record(image, dir, rand.New(rand.NewPCG(1, 1)), func(w *workload) error {
		if err := settle(w); err != nil {
			return err
		}
		if _, _, err := prepare(w); err != nil {
			return err
		}
		started := time.Now()
		begin = w.position()
		var err error
		c.above, c.calls, err = work(w)
		c.took = time.Since(started)
		return err
	})
	must(t, err)
	end = len(rec.records) // unmounted: all is written
	for _, r := range rec.records[begin:end] {
		c.below += len(r.data)
	}
	must(t, os.RemoveAll(dir))
	return c
}

// settle changes a durable file and writes everything back: what a volume writes once, however long it lives, is then over (8 MiB for
// the logs of kmsfs).
func settle(w *workload) error {
	n, err := w.create(w.root, "settled", file)
	if err != nil {
		return err
	}
	for range 2 {
		if err := w.write(n, 0, blockSize, true); err != nil {
			return err
		}
	}
	f, err := os.Open(w.lower)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// TestPrice prints what docs/durability-price.md tells, and sees that bulk data is written once.
func TestPrice(t *testing.T) {
	const n, unit = 200, 4096
	var f *node
	prepare := func(size int64) func(*workload) (int, int, error) {
		return func(w *workload) (_, _ int, err error) {
			if f, err = w.create(w.root, "file", file); err == nil {
				err = w.write(f, 0, size, true)
			}
			return 0, 0, err
		}
	}
	each := func(size int64, place func(*workload) int64) func(*workload) (int, int, error) {
		return func(w *workload) (int, int, error) {
			for range n {
				if err := w.write(f, place(w), size, true); err != nil {
					return 0, 0, err
				}
				w.objects[f.object].changes = nil // nothing is checked, and each sync would keep a copy of the file
			}
			return n * int(size), n, nil
		}
	}
	end := func(*workload) int64 { return int64(len(f.data)) }
	rows := []struct {
		name          string
		prepare, work func(*workload) (int, int, error)
	}{
		{"append 4 KiB + fsync", prepare(100), each(unit, end)},
		{"append 100 B + fsync", prepare(100), each(100, end)},
		{"overwrite 4 KiB + fsync", prepare(2 << 20), each(unit, func(w *workload) int64 { return w.rng.Int64N(511) * unit })},
		{"bulk copy 16 MiB + fsync", prepare(0), func(w *workload) (int, int, error) {
			return 16 << 20, 1, w.write(f, 0, 16<<20, true)
		}},
		{"SQLite WAL, 60 commits", prepare(0), func(w *workload) (int, int, error) {
			committed, err := transactions(w, "wal", "FULL")
			return 0, len(committed), err
		}},
	}
	for _, crypt := range []string{"", "gocryptfs", "kmsfs"} {
		s, image := newStack(t, "ext4", crypt)
		for _, r := range rows {
			c := price(t, s, image, r.prepare, r.work)
			ratio := 0.0 // unknown where the program is a database
			if c.above > 0 {
				ratio = float64(c.below) / float64(c.above)
			}
			t.Logf("%-18s %-26s %8d KiB below %6.2f per byte above %8.0f syncs/s", s, r.name, c.below>>10, ratio, float64(c.calls)/c.took.Seconds())
			if r.name == "bulk copy 16 MiB + fsync" && ratio > 1.2 {
				t.Errorf("%s writes bulk data %.2f times", s, ratio)
			}
		}
	}
}
