package powercut

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// A recording is a program's run on a stack, with all that reached the disk.
type recording struct {
	stack   stack
	base    string // the image before the run
	records []record
	history *history
	log     string // path of the list of operations

	// examine looks for faults after a cut, with a directory of its own for what it needs; by default, it compares with the history, then
	// sees that all can be used.
	examine  func(top, dir string, cut int) []fault
	recovery func(top, dir string) // what runs when power fails again, if anything
	progress func(done int)        // hears how many cuts are done, if not nil
}

// record runs a program on a copy of the formatted image, in dir.
func (s stack) record(formatted, dir string, rng *rand.Rand, program func(*workload) error) (rec *recording, err error) {
	rec = &recording{stack: s, base: formatted, log: filepath.Join(dir, "operations")}
	live, served := filepath.Join(dir, "live"), filepath.Join(dir, "recorder")
	if err := errors.Join(os.MkdirAll(served, 0o700), copySparse(formatted, live)); err != nil {
		return nil, err
	}
	defer os.Remove(live)
	r, err := NewRecorder(live, served)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	m, err := s.mount(r.Path(), dir)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(rec.log)
	if err != nil {
		return nil, errors.Join(err, m.unmount())
	}
	defer log.Close()
	w := newWorkload(m.top, m.lower, r.Position, rng, log)
	err = program(w)
	if e := m.unmount(); e != nil {
		err = errors.Join(err, e)
	}
	rec.history = w.history
	records, e := r.Records()
	rec.records = records
	return rec, errors.Join(err, e)
}

// A cut is a power cut and what came of it.
type cut struct {
	position int
	seed     [2]uint64 // of what was kept of the writes after the last flush
	faults   []fault
}

// make makes the cut's image.
func (c cut) make(cutter *Cutter, image string) error {
	return cutter.Cut(c.position, image, rand.New(rand.NewPCG(c.seed[0], c.seed[1])))
}

// cuts cuts the power at each of the positions and checks what is left, two cuts at a time.
func (rec *recording) cuts(dir string, positions []int, seed uint64) ([]cut, error) {
	cutter, err := NewCutter(rec.base, filepath.Join(dir, "durable"), rec.records)
	if err != nil {
		return nil, err
	}
	defer cutter.Close()
	cuts := make([]cut, len(positions))
	for i, position := range slices.Sorted(slices.Values(positions)) {
		cuts[i] = cut{position: position, seed: [2]uint64{seed, uint64(i)}}
	}
	group, ctx := errgroup.WithContext(context.Background())
	var mu sync.Mutex // guards next, done and cutter
	next, done := 0, 0
	for i := range 2 {
		place := filepath.Join(dir, fmt.Sprint("cut", i))
		if err := os.MkdirAll(place, 0o711); err != nil {
			return nil, err
		}
		take := func(image string) (*cut, error) {
			mu.Lock()
			defer mu.Unlock()
			if next == len(cuts) || ctx.Err() != nil {
				return nil, nil
			}
			next++
			return &cuts[next-1], cuts[next-1].make(cutter, image)
		}
		finished := func() {
			mu.Lock()
			defer mu.Unlock()
			if done++; rec.progress != nil {
				rec.progress(done)
			}
		}
		group.Go(func() error {
			image := filepath.Join(place, "image")
			defer os.Remove(image)
			for {
				c, err := take(image)
				if c == nil || err != nil {
					return err
				}
				if c.seed[1]%4 == 0 { // power fails again while what it left is recovered
					if err := rec.cutAgain(image, place, c.seed); err != nil {
						return err
					}
				}
				if c.faults, err = rec.check(image, place, c.position); err != nil {
					return err
				}
				finished()
			}
		})
	}
	return cuts, group.Wait()
}

// cutAgain mounts the image and leaves in its place what a power cut at some moment of the recovery leaves.
func (rec *recording) cutAgain(image, dir string, seed [2]uint64) error {
	live, served := filepath.Join(dir, "live"), filepath.Join(dir, "recorder")
	if err := errors.Join(os.MkdirAll(served, 0o700), copySparse(image, live)); err != nil {
		return err
	}
	defer os.Remove(live)
	r, err := NewRecorder(live, served)
	if err != nil {
		return err
	}
	m, err := rec.stack.mount(r.Path(), dir)
	if err == nil {
		if rec.recovery != nil {
			rec.recovery(m.top, dir)
		}
		err = m.unmount()
	} else {
		err = nil // the check will say so
	}
	records, e := r.Records()
	if err = errors.Join(err, e, r.Close()); err != nil {
		return err
	}
	cutter, err := NewCutter(image, filepath.Join(dir, "again"), records)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed[1], seed[0]))
	return errors.Join(cutter.Cut(rng.IntN(len(records)+1), image, rng), cutter.Close())
}

// check mounts the image and compares it with what was promised.
func (rec *recording) check(image, dir string, position int) ([]fault, error) {
	m, err := rec.stack.mount(image, dir)
	if err != nil {
		return []fault{{Kind: lostName, Path: "/", Detail: "does not mount: " + err.Error()}}, nil
	}
	if rec.examine != nil {
		return rec.examine(m.top, dir, position), m.unmount()
	}
	faults := rec.history.check(m.top, position)
	if len(faults) == 0 {
		faults = usable(m.top)
	}
	return faults, m.unmount()
}

// keep writes to dir what it takes to look into a cut: the image, the operations with their places in the record, and the faults.
func (rec *recording) keep(dir string, c cut) error {
	name := filepath.Join(dir, fmt.Sprintf("%s-%d-%d", strings.ReplaceAll(rec.stack.String(), " ", "-"), c.seed[0], c.position))
	if err := os.MkdirAll(name, 0o700); err != nil {
		return err
	}
	cutter, err := NewCutter(rec.base, filepath.Join(name, "durable"), rec.records)
	if err != nil {
		return err
	}
	defer cutter.Close()
	operations, err := os.ReadFile(rec.log)
	if err != nil {
		return err
	}
	var faults strings.Builder
	fmt.Fprintf(&faults, "%s, cut at %d of %d records, seed %d\n", rec.stack, c.position, len(rec.records), c.seed[0])
	for _, f := range c.faults {
		fmt.Fprintln(&faults, f)
	}
	return errors.Join(c.make(cutter, filepath.Join(name, "image")),
		os.WriteFile(filepath.Join(name, "operations"), operations, 0o600),
		os.WriteFile(filepath.Join(name, "faults"), []byte(faults.String()), 0o600),
		run(nil, "cp", "-a", rec.stack.secret+"/.", filepath.Join(name, "secret")))
}
