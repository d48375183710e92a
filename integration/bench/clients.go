package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

// studyClients has clients create and read small files side by side, each in a directory of its own, the same number in all.
func studyClients(ctx context.Context, b *bench) error {
	t := newTable("Parallel clients, files of 300 B", "clients", "create, files/s", "read cold, files/s", "read warm, files/s")
	return b.on(ctx, 4, 0, func(m *mounted) error {
		for _, clients := range []int{1, 4, 16, 64} {
			creates, colds, warms := []float64(nil), []float64(nil), []float64(nil)
			for run := range b.runs {
				progress("%d clients, run %d of %d", clients, run+1, b.runs)
				c := crowd{filepath.Join(m.above, "files"), clients, 4 * b.load.files / clients}
				create, err := c.each(ctx, func(dir string) error {
					return createFiles(ctx, dir, c.files, 300)
				})
				if err != nil {
					return err
				}
				if err := m.cool(ctx); err != nil {
					return err
				}
				cold, err := c.each(ctx, func(dir string) error { return readFiles(ctx, dir, c.files) })
				if err != nil {
					return err
				}
				warm, err := c.each(ctx, func(dir string) error { return readFiles(ctx, dir, c.files) })
				if err != nil {
					return err
				}
				creates, colds, warms = append(creates, create), append(colds, cold), append(warms, warm)
				if err := os.RemoveAll(c.dir); err != nil {
					return err
				}
			}
			t.add(clients, median(creates), median(colds), median(warms))
		}
		b.print(t)
		return nil
	})
}

// A crowd is a number of clients, with a number of files each.
type crowd struct {
	dir            string
	clients, files int
}

// each has every client do something in its directory, and returns how many files a second that is.
func (c crowd) each(ctx context.Context, do func(dir string) error) (float64, error) {
	dirs := make([]string, c.clients)
	for i := range dirs {
		dirs[i] = filepath.Join(c.dir, fmt.Sprint(i))
		if err := os.MkdirAll(dirs[i], 0o755); err != nil {
			return 0, err
		}
	}
	var group errgroup.Group
	start := time.Now()
	for _, dir := range dirs {
		group.Go(func() error { return do(dir) })
	}
	err := group.Wait()
	return float64(c.clients*c.files) / time.Since(start).Seconds(), err
}

// readFiles reads what createFiles has made.
func readFiles(ctx context.Context, dir string, n int) error {
	for i := range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("file", i))); err != nil {
			return err
		}
	}
	return nil
}
