// Command bench measures kmsfs on a RAM-backed ext4: beside gocryptfs, securefs, an unencrypted go-fuse loopback and plain ext4, in one
// run, as a table of medians with ratios; or, with -scale, alone, at sizes where a cost that grows would show. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// options are the command line.
type options struct {
	runs  int
	quick bool
	check bool
	scale string
	names int
}

func main() {
	var o options
	flag.IntVar(&o.runs, "n", 3, "how often to run each row; the median counts")
	flag.BoolVar(&o.quick, "quick", false, "run each row once, on a quarter of the data")
	flag.BoolVar(&o.check, "check", false, "run each row once on kmsfs only, on little data, for errors")
	flag.StringVar(&o.scale, "scale", "", "run these `STUDIES`, comma-separated, of: all, "+strings.Join(allStudies(), ", "))
	flag.IntVar(&o.names, "names", 1_000_000, "how many names the study of names makes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if flag.NArg() > 0 {
		return fmt.Errorf("what is %q? see -help", flag.Args())
	}
	if err := o.checkStudies(); err != nil {
		return err
	}
	w, err := newWorkplace()
	if err != nil {
		return err
	}
	// Whatever ends the run, a signal included, takes the mounts and the memory back.
	defer func() { err = errors.Join(err, w.close()) }()
	err = measure(ctx, w, o)
	if ctx.Err() != nil {
		return errors.New("stopped by a signal")
	}
	return err
}

// A bench is what all measurements share.
type bench struct {
	*workplace
	*kmsfs
	options
	load load
}

func measure(ctx context.Context, w *workplace, o options) error {
	if o.quick || o.check {
		o.runs = 1
	}
	if o.check {
		o.names = min(o.names, 2000)
	}
	l, err := w.newLoad(ctx, o.quick, o.check)
	if err != nil {
		return err
	}
	k, err := w.newKmsfs(ctx)
	if err != nil {
		return err
	}
	b := &bench{w, k, o, l}
	fmt.Printf("%s. Medians of %d.\n\n", versions(ctx), o.runs)
	if o.scale == "" {
		err = b.compare(ctx)
	}
	if err == nil && (o.scale != "" || o.check) {
		err = b.study(ctx)
	}
	return err
}

// print prints a table on standard output.
func (b *bench) print(t *table) {
	progress("")
	t.print(os.Stdout)
}
