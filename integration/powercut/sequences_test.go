package powercut

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// An act is a letter of the alphabet of short programs, which work in a directory of their own on a durable file.
type act struct {
	name string
	do   func(w *workload, dir, n *node) error
}

// contents is what matters to the durability of content, one of each.
func contents() []act {
	return []act{
		{"append", func(w *workload, _, n *node) error { return w.write(n, int64(len(n.data)), 3000, false) }},
		{"overwrite", func(w *workload, _, n *node) error { return w.write(n, 2000, 5000, false) }},
		{"truncate", func(w *workload, _, n *node) error { return w.truncate(n, 3000) }},
		{"extend", func(w *workload, _, n *node) error { return w.truncate(n, 20000) }},
		{"fsync", func(w *workload, _, n *node) error { return w.sync(n) }},
		{"replace", func(w *workload, dir, n *node) error {
			temp, err := w.create(dir, fmt.Sprint("temp", w.seq), file)
			if err != nil {
				return err
			}
			if err := w.write(temp, 0, 5000, true); err != nil {
				return err
			}
			return w.rename(temp, dir, n.name)
		}},
		{"mkdir", func(w *workload, dir, _ *node) error {
			_, err := w.create(dir, fmt.Sprint("dir", w.seq), directory)
			return err
		}},
		{"fsyncdir", func(w *workload, dir, _ *node) error { return w.syncDir(dir) }},
	}
}

// times is what matters to that of modification times.
func times() []act {
	return []act{
		{"overwrite", func(w *workload, _, n *node) error { return w.write(n, 2000, 5000, false) }},
		{"commit", func(w *workload, _, n *node) error { return w.commit(n, 2000, 5000) }},
		{"touch", func(w *workload, _, n *node) error { return w.touch(n, false) }},
		{"fsync", func(w *workload, _, n *node) error { return w.sync(n) }},
	}
}

// sequences lists the programs of up to n acts.
func sequences(alphabet []act, n int) (list [][]act) {
	list = [][]act{nil}
	for from := 0; n > 0; n-- {
		to := len(list)
		for _, s := range list[from:to] {
			for _, a := range alphabet {
				list = append(list, append(append([]act(nil), s...), a))
			}
		}
		from = to
	}
	return list[1:]
}

// TestSequences runs all programs of up to 3 acts, each followed by a power cut while the kernel writes back some of what it did.
func TestSequences(t *testing.T) {
	const programsPerRun = 20
	s, image := newStack(t, "ext4", "kmsfs")
	programs := slices.Concat(sequences(contents(), 3), sequences(times(), 3))
	if len(programs) != 8+64+512+4+16+64 {
		t.Fatalf("%d programs", len(programs))
	}
	for run := 0; len(programs) > 0; run++ {
		batch := programs[:min(programsPerRun, len(programs))]
		programs = programs[len(batch):]
		dir := workdir(t)
		var positions []int
		rec, err := s.record(image, dir, rand.New(rand.NewPCG(seed(t), uint64(run))), func(w *workload) error {
			for i, program := range batch {
				parent, err := w.create(w.root, fmt.Sprint("program", i), directory)
				if err != nil {
					return err
				}
				n, err := w.create(parent, "file", file)
				if err != nil {
					return err
				}
				if err := w.write(n, 0, 9000, true); err != nil {
					return err
				}
				for _, a := range program {
					n = parent.names["file"]
					if err := a.do(w, parent, n); err != nil {
						return fmt.Errorf("%s: %w", a.name, err)
					}
				}
				ended := w.position()
				if err := w.nudge(); err != nil {
					return err
				}
				positions = append(positions, ended+w.rng.IntN(w.position()-ended+1))
			}
			return nil
		})
		must(t, err)
		cuts, err := rec.cuts(dir, positions, uint64(run))
		must(t, err)
		none(t, faulty(t, rec, cuts))
		must(t, os.RemoveAll(dir))
	}
}
