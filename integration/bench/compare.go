package main

import (
	"context"
	"fmt"
	"math"
	"strings"
)

// compare prints every row on every system.
func (b *bench) compare(ctx context.Context) (err error) {
	ours, peers := b.volume("kmsfs", ""), []system(nil)
	if !b.check {
		if peers, err = b.peers(ctx); err != nil {
			return err
		}
	}
	d, err := b.newDisk(ctx, "disk", 4, 0)
	if err != nil {
		return err
	}
	systems, rows, r := append(peers, ours), append(dataRows(), treeRows()...), make(results)
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
		b.print(r.ratios(rows, ours, peers))
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
