package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// studySparse writes and reads at the start, in the middle and at the end of a file of 100 GiB that is one hole.
func studySparse(ctx context.Context, b *bench) error {
	const gib, part = int64(1) << 30, int64(64) << 20
	t := newTable("", "at", "first write, fsync at end", "write again", "write + fsync each", "read, O_DIRECT")
	return b.on(ctx, 4, 0, func(m *mounted) error {
		path := filepath.Join(m.above, "sparse")
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		start := time.Now()
		err = f.Truncate(100 * gib)
		truncated := time.Since(start)
		if err := f.Close(); err != nil {
			return err
		}
		if err != nil {
			return err
		}
		for _, at := range []struct {
			name  string
			start int64
		}{{"0", 0}, {"50 GiB", 50 * gib}, {"100 GiB", 100*gib - part}} {
			progress("a sparse file, at %s", at.name)
			in := region{at.start, part}
			cells := []any{at.name}
			for _, do := range []func() (float64, error){
				func() (float64, error) { return randomWrites(ctx, path, in, 4*b.load.ops, syncAtEnd) },
				func() (float64, error) { return randomWrites(ctx, path, in, 4*b.load.ops, syncAtEnd) },
				func() (float64, error) { return randomWrites(ctx, path, in, b.load.ops, syncEach) },
				func() (float64, error) { return randomReads(ctx, path, in, 4*b.load.ops, 1) },
			} {
				start := time.Now()
				megabytes, err := do()
				if err != nil {
					return err
				}
				cells = append(cells, float64(time.Since(start).Microseconds())/(megabytes*1e6/4096))
			}
			t.add(cells...)
		}
		t.title = fmt.Sprintf("A sparse file of 100 GiB, made in %.1f ms; 4 KiB at random places in 64 MiB, µs an operation", float64(truncated.Microseconds())/1000)
		b.print(t)
		return nil
	})
}
