package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/kmsfs/kmsfs/device/devicetest"
)

// compare prints every row on every system. Where the kernel can offer requests over io_uring(7), kmsfs is measured with them and without.
func (b *bench) compare(ctx context.Context) (err error) {
	restore, rings := offerRings()
	defer func() { err = errors.Join(err, restore()) }()
	ours, peers := []system{b.volume("kmsfs", "", "-o no_io_uring")}, []system(nil)
	if rings {
		ours = append(ours, b.volume("kmsfs, io_uring", "", "-o io_uring"))
	} else {
		note("requests over io_uring are not measured: this kernel does not offer them to us, or has faults there")
	}
	if !b.check {
		if peers, err = b.peers(ctx); err != nil {
			return err
		}
	}
	d, err := b.newDisk(ctx, "disk", 4, 0)
	if err != nil {
		return err
	}
	systems, rows, r := slices.Concat(peers, ours), append(dataRows(), treeRows()...), make(results)
	for run := range b.runs {
		for _, s := range systems {
			what := fmt.Sprintf("run %d of %d, %s", run+1, b.runs, s.name)
			if err := r.measure(ctx, d, s, rows, b.load, what); err != nil {
				return err
			}
		}
	}
	b.print(r.table("", rows, systems))
	if len(peers) > 0 {
		for _, s := range ours {
			b.print(r.ratios(rows, s, peers))
		}
	}
	return d.remove(ctx)
}

// measure runs rows on a new directory of a system. What a peer cannot do is noted, and is not a number; what kmsfs cannot do ends the run.
func (r results) measure(ctx context.Context, d *disk, s system, rows []row, l load, what string) error {
	m, err := newMounted(d, s)
	if err != nil {
		return err
	}
	for _, w := range rows {
		progress("%s: %s", what, w.name)
		v, err := m.time(ctx, w, l)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !s.peer {
			return fmt.Errorf("%s, %s: %w", s.name, w.name, err)
		}
		if err != nil {
			note("%s, %s: NaN: %s", s.name, w.name, strings.TrimSpace(err.Error()))
			v = math.NaN()
		}
		r.add(w.name, s.name, v)
	}
	return m.remove(ctx)
}

// offerRings has the kernel offer requests over io_uring(7) to who mounts from now on, until restore is called. ok is false where it cannot, where we may not change that, or where it had better not.
func offerRings() (restore func() error, ok bool) {
	was, err := os.ReadFile(devicetest.Setting)
	if err != nil || !devicetest.Mended() || os.WriteFile(devicetest.Setting, []byte("Y"), 0) != nil {
		return func() error { return nil }, false
	}
	return func() error { return os.WriteFile(devicetest.Setting, was, 0) }, true
}
