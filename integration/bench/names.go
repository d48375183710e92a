package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// studyNames makes one directory with a million files, lists it, mounts its volume, and walks it.
func studyNames(ctx context.Context, b *bench) error {
	// Room for 1.5 times the names: side files and an empty volume are there, too.
	return b.on(ctx, 16, b.names*3/2+10_000, func(m *mounted) error {
		for _, step := range []func(context.Context, *mounted) error{b.createNames, b.listNames, b.mountNames, b.walkNames, b.weighNames} {
			if err := step(ctx, m); err != nil {
				return err
			}
			if err := m.mount(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

func (m *mounted) names() string { return filepath.Join(m.above, "names") }

func nameOf(i int) string { return fmt.Sprintf("file-%07d.txt", i) }

func (b *bench) createNames(ctx context.Context, m *mounted) error {
	t := newTable(fmt.Sprintf("Creating %d empty files in one directory", b.names), "files", "files/s", "memory of the daemon, MB")
	p, err := b.daemon(ctx, m.above)
	if err != nil {
		return err
	}
	if err := os.Mkdir(m.names(), 0o755); err != nil {
		return err
	}
	tenth := max(b.names/10, 1)
	for start, i := time.Now(), 0; i < b.names; {
		f, err := os.OpenFile(filepath.Join(m.names(), nameOf(i)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if i++; i%tenth == 0 {
			rate := float64(tenth) / time.Since(start).Seconds()
			resident, _, err := p.memory()
			if err != nil {
				return err
			}
			t.add(i, rate, resident/1e6)
			start = time.Now()
		}
		if i%1000 == 0 {
			progress("created %d of %d files", i, b.names)
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	b.print(t)
	return nil
}

func (b *bench) listNames(ctx context.Context, m *mounted) error {
	t := newTable(fmt.Sprintf("Listing %d names", b.names), "", "s", "times the backing's")
	backing, err := onlyDirectory(m.below)
	if err != nil {
		return err
	}
	var times [3][]float64 // backing, mount when it is new, and then
	for run := range 3 {
		progress("listing, run %d of 3", run+1)
		if err := m.unmount(ctx); err != nil {
			return err
		}
		if err := m.mount(ctx); err != nil {
			return err
		}
		for i, dir := range []string{backing, m.names(), m.names()} {
			start := time.Now()
			n, err := list(ctx, dir)
			if err != nil {
				return err
			}
			if n < b.names {
				return fmt.Errorf("%s: %d of %d names are listed", dir, n, b.names)
			}
			times[i] = append(times[i], time.Since(start).Seconds())
		}
	}
	for i, name := range []string{"backing directory", "newly mounted", "again"} {
		t.add(name, median(times[i]), median(times[i])/median(times[0]))
	}
	b.print(t)
	return nil
}

// onlyDirectory finds where the names are stored: the directory that is not the volume's own.
func onlyDirectory(below string) (string, error) {
	entries, err := os.ReadDir(below)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if e.IsDir() && e.Name() != ".kmsfs" {
			return filepath.Join(below, e.Name()), nil
		}
	}
	return "", fmt.Errorf("%s has no directory", below)
}

// list counts the entries of a directory, as the kernel gives them.
func list(ctx context.Context, dir string) (n int, err error) {
	err = names(ctx, dir, func(page []string) error {
		n += len(page)
		return nil
	})
	return n, err
}

// names hands over the names of a directory a thousand at a time.
func names(ctx context.Context, dir string, do func(page []string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		page, err := d.Readdirnames(1000)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := errors.Join(ctx.Err(), do(page)); err != nil {
			return err
		}
	}
}

// mountNames compares how long a mount takes with an empty volume's.
func (b *bench) mountNames(ctx context.Context, m *mounted) error {
	const mounts = 9
	t := newTable("Mounting", "volume", "ms")
	empty, err := newMounted(m.disk, b.volume("empty", "", ""))
	if err != nil {
		return err
	}
	if err := empty.mount(ctx); err != nil { // makes the volume
		return err
	}
	volumes, times := []*mounted{empty, m}, [2][]float64{}
	for range mounts {
		for i, v := range volumes {
			if err := v.unmount(ctx); err != nil {
				return err
			}
			start := time.Now()
			if err := v.mount(ctx); err != nil {
				return err
			}
			times[i] = append(times[i], float64(time.Since(start).Microseconds())/1000)
		}
	}
	t.add("empty", median(times[0]))
	t.add(fmt.Sprint(b.names, " files"), median(times[1]))
	b.print(t)
	return empty.unmount(ctx)
}

// walkNames shows the daemon's memory before and after a walk, when the kernel has forgotten the names, and after another walk.
func (b *bench) walkNames(ctx context.Context, m *mounted) error {
	t := newTable(fmt.Sprintf("Memory of the daemon, %d names in one directory", b.names), "", "resident, MB", "of it anonymous, MB", "s")
	if err := m.unmount(ctx); err != nil {
		return err
	}
	if err := m.mount(ctx); err != nil {
		return err
	}
	p, err := b.daemon(ctx, m.above)
	if err != nil {
		return err
	}
	walk := func() error {
		_, err := walk(ctx, m.names(), b.names)
		return err
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"newly mounted", func() error { return nil }},
		{"names listed", func() error { _, err := list(ctx, m.names()); return err }},
		{"files walked", walk},
		{"files forgotten", b.forget},
		{"files walked again", walk},
	} {
		progress("memory: %s", step.name)
		start := time.Now()
		if err := step.do(); err != nil {
			return err
		}
		took := time.Since(start).Seconds()
		resident, anonymous, err := p.memory()
		if err != nil {
			return err
		}
		t.add(step.name, resident/1e6, anonymous/1e6, took)
	}
	b.print(t)
	return nil
}

// walk asks for the attributes of at least so many files, as ls -l does, and returns of how many.
func walk(ctx context.Context, dir string, atLeast int) (n int, err error) {
	err = names(ctx, dir, func(page []string) error {
		if n >= atLeast {
			return nil
		}
		for _, name := range page {
			if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		n += len(page)
		return nil
	})
	return n, err
}

// forget has the kernel drop what it remembers of names and files and does not use, here and everywhere: too much for a check.
func (b *bench) forget() error {
	if b.check {
		return nil
	}
	unix.Sync()
	for range 2 { // inodes go when their names have gone
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
			return err
		}
	}
	return nil
}

// weighNames tells what a file that only the kernel remembers takes of the daemon's heap: with a collector that leaves 5 % of garbage at
// most, what a walk adds to the anonymous memory is the heap.
func (b *bench) weighNames(ctx context.Context, m *mounted) error {
	if err := m.unmount(ctx); err != nil {
		return err
	}
	os.Setenv("GOGC", "5")
	err := m.mount(ctx)
	os.Unsetenv("GOGC")
	if err != nil {
		return err
	}
	p, err := b.daemon(ctx, m.above)
	if err != nil {
		return err
	}
	if _, err := list(ctx, m.names()); err != nil {
		return err
	}
	_, before, err := p.memory()
	if err != nil {
		return err
	}
	progress("weighing a file in the daemon")
	n, err := walk(ctx, m.names(), b.names/10) // enough, and walks take their time
	if err != nil {
		return err
	}
	_, after, err := p.memory()
	if err != nil {
		return err
	}
	t := newTable("Heap of the daemon for a file that only the kernel remembers", "files", "B/file")
	t.add(n, (after-before)/float64(n))
	b.print(t)
	return m.unmount(ctx)
}
