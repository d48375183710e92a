package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A region of a file, in bytes: where random access goes.
type region struct{ start, length int64 }

// offset picks one of 4 KiB.
func (r region) offset(random *rand.Rand) int64 { return r.start + random.Int64N(r.length/4096)*4096 }

// syncing says when writes are synced.
type syncing int

const (
	syncAtEnd syncing = iota
	syncEach
)

// writeFile writes size bytes in steps and syncs; it returns megabytes.
func writeFile(ctx context.Context, path string, size int64, step int) (float64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666) // as dd and cp do
	if err != nil {
		return 0, err
	}
	defer f.Close()
	p := make([]byte, step)
	for i := range p {
		p[i] = byte(i)
	}
	for done := int64(0); done < size; done += int64(step) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if _, err := f.Write(p); err != nil {
			return 0, err
		}
	}
	return float64(size) / 1e6, f.Sync()
}

// readFile reads a file to its end; it returns megabytes.
func readFile(ctx context.Context, path string) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	p, total := make([]byte, 1<<20), 0
	for {
		n, err := f.Read(p)
		total += n
		if errors.Is(err, io.EOF) {
			return float64(total) / 1e6, ctx.Err()
		}
		if err != nil {
			return 0, err
		}
	}
}

// randomReads reads 4 KiB n times, past the page cache, in several threads; it returns megabytes.
func randomReads(ctx context.Context, path string, in region, n, threads int) (float64, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open with O_DIRECT: %w", err)
	}
	defer unix.Close(fd)
	group, ctx := errgroup.WithContext(ctx)
	for t := range threads {
		group.Go(func() error {
			random := rand.New(rand.NewPCG(uint64(t), 1))
			p := make([]byte, 2*4096)
			p = p[4096-int(uintptr(unsafe.Pointer(&p[0]))%4096):][:4096] // aligned, as O_DIRECT wants it
			for range n / threads {
				if _, err := unix.Pread(fd, p, in.offset(random)); err != nil {
					return fmt.Errorf("read with O_DIRECT: %w", err)
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
			return nil
		})
	}
	return float64(n/threads*threads) * 4096 / 1e6, group.Wait()
}

// randomWrites writes 4 KiB n times; it returns megabytes.
func randomWrites(ctx context.Context, path string, in region, n int, when syncing) (float64, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	random := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 4096)
	for range n {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if _, err := f.WriteAt(p, in.offset(random)); err != nil {
			return 0, err
		}
		if when == syncEach {
			if err := f.Sync(); err != nil {
				return 0, err
			}
		}
	}
	return float64(n) * 4096 / 1e6, f.Sync()
}

// createFiles creates files in a directory.
func createFiles(ctx context.Context, dir string, n, size int) error {
	p := make([]byte, size)
	for i := range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), p, 0o644); err != nil {
			return err
		}
	}
	return nil
}
