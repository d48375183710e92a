package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
)

// A mounted is a directory of a system on a disk.
type mounted struct {
	disk         *disk
	system       system
	below, above string
}

// newMounted makes its directories, but does not mount it.
func newMounted(d *disk, s system) (*mounted, error) {
	dir := filepath.Join(d.dir, strings.ReplaceAll(s.name, " ", "-")) // as a word of a shell script
	m := &mounted{d, s, filepath.Join(dir, "below"), filepath.Join(dir, "above")}
	for _, p := range []string{m.below, m.above} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// mount mounts it, unless it is.
func (m *mounted) mount(ctx context.Context) error {
	if is, err := mountinfo.Mounted(m.above); is || err != nil {
		return err
	}
	return m.system.mount(ctx, m.below, m.above)
}

func (m *mounted) unmount(ctx context.Context) error {
	if is, err := mountinfo.Mounted(m.above); !is || err != nil {
		return err
	}
	return m.system.unmount(ctx, m.above)
}

// time runs a row and returns seconds, or how much a second.
func (m *mounted) time(ctx context.Context, w row, l load) (float64, error) {
	if err := m.mount(ctx); err != nil {
		return 0, err
	}
	if w.prepare != nil {
		if err := w.prepare(ctx, m.above, l); err != nil {
			return 0, err
		}
	}
	if w.cold {
		if err := m.cool(ctx); err != nil {
			return 0, err
		}
	}
	if err := m.disk.sync(); err != nil {
		return 0, err
	}
	start := time.Now()
	amount, err := w.run(ctx, m.above, l)
	seconds := time.Since(start).Seconds()
	if w.unit == "s" {
		return seconds, err
	}
	return amount / seconds, err
}

// cool has nothing cached, in the daemon or below it.
func (m *mounted) cool(ctx context.Context) error {
	if err := m.unmount(ctx); err != nil {
		return err
	}
	if err := m.disk.cool(ctx); err != nil {
		return err
	}
	return m.mount(ctx)
}

func (m *mounted) remove(ctx context.Context) error {
	if err := m.unmount(ctx); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Dir(m.below))
}
