package model

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"
)

// Config says what to run. The zero value of all fields but New is useful.
type Config struct {
	New      func() (Volume, error) // makes an empty volume
	Ops      int                    // how many operations; default: 1,000
	Seed     uint64                 // which ones
	Kills    bool                   // kill the daemon now and then
	Buffered bool                   // no O_DIRECT, which some file systems want aligned
	Shrink   time.Duration          // how long to look for a shorter script that fails; default: a minute
	Progress func(done int)         // called after each thousandth operation, if set
}

// A Failure is a script that a volume did not run as predicted.
type Failure struct {
	Script Script
	Err    error // what happened at its last operation
	Shrunk bool  // whether Script fails when run again, and is as short as the time allowed
}

// Error implements [error]: it ends with the script.
func (f *Failure) Error() string {
	how := "run again, it passes"
	if f.Shrunk {
		how = "shrunk"
	}
	return fmt.Sprintf("%v\nscript (%s, %d operations):\n%s", f.Err, how, len(f.Script), f.Script)
}

// Unwrap returns what happened.
func (f *Failure) Unwrap() error { return f.Err }

// Random runs random operations on a new volume. What it returns is a [*Failure], unless the volume could not be made.
func Random(c Config) error {
	ops := c.Ops
	if ops == 0 {
		ops = 1000
	}
	g := &generator{rand.New(rand.NewPCG(c.Seed, 0)), c.Kills, c.Buffered}
	var done Script
	err := with(c.New, func(r *runner) error {
		for i := range ops {
			o := g.next(r.w)
			done = append(done, o)
			if err := r.do(o); err != nil {
				return fmt.Errorf("operation %d, %v: %w", i+1, o, err)
			}
			if c.Progress != nil && (i+1)%1000 == 0 {
				c.Progress(i + 1)
			}
		}
		return r.remount()
	})
	if err == nil || len(done) == 0 {
		return err
	}
	return shrink(c, done, err)
}

// Run runs a script on a new volume.
func Run(c Config, s Script) error {
	return with(c.New, func(r *runner) error {
		for i, o := range s {
			if err := r.do(o); err != nil {
				return fmt.Errorf("operation %d, %v: %w", i+1, o, err)
			}
		}
		return r.remount()
	})
}

// with calls fn with a new volume, mounted.
func with(make func() (Volume, error), fn func(r *runner) error) error {
	v, err := make()
	if err != nil {
		return err
	}
	defer v.Close()
	r, err := newRunner(v)
	if err != nil {
		return err
	}
	defer r.abandon()
	return fn(r)
}

// shrink drops operations from a script that failed while it still fails: of a long one first all but the last, then halves, then quarters, down to
// single ones.
func shrink(c Config, s Script, err error) error {
	limit := c.Shrink
	if limit == 0 {
		limit = time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	best := &Failure{Script: s, Err: err}
	fails := func(s Script) bool {
		err := Run(c, s)
		if err != nil {
			best = &Failure{Script: s, Err: err, Shrunk: true}
		}
		return err != nil
	}
	for last := 1000; last < len(s) && !best.Shrunk; last *= 10 {
		fails(s[len(s)-last:])
	}
	if !best.Shrunk && !fails(s) {
		return best
	}
	for size := (len(s) + 1) / 2; size > 0; size /= 2 {
		for again := true; again; {
			again = false
			for at := 0; at < len(best.Script); {
				if ctx.Err() != nil {
					return best
				}
				now := best.Script
				if fails(append(append(Script(nil), now[:at]...), now[min(at+size, len(now)):]...)) {
					again = size == 1
				} else {
					at += size
				}
			}
		}
	}
	return best
}

// Sequences runs every sequence of up to depth operations of an alphabet, each in a directory of its own after the same beginning, and
// kills the daemon after each. It returns how many there were.
func Sequences(c Config, beginning, alphabet Script, depth int) (count int, err error) {
	err = with(c.New, func(r *runner) error {
		var extend func(s Script) error
		extend = func(s Script) error {
			count++
			full := append(append(append(Script(nil), beginning...), s...), op{verb: "kill"})
			for _, o := range full {
				if err := r.do(o); err != nil {
					return &Failure{Script: full, Err: fmt.Errorf("sequence %d, %v: %w", count, o, err)}
				}
			}
			if err := r.empty(); err != nil {
				return err
			}
			if len(s) == depth {
				return nil
			}
			for _, o := range alphabet {
				if err := extend(append(s[:len(s):len(s)], o)); err != nil {
					return err
				}
			}
			return nil
		}
		return extend(nil)
	})
	return count, err
}

// empty removes everything.
func (r *runner) empty() error {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(r.dir + "/" + e.Name()); err != nil {
			return err
		}
	}
	r.w = newWorld()
	return nil
}
