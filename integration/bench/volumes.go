package main

import (
	"context"
	"fmt"
	"path/filepath"
)

func studyCiphers(ctx context.Context, b *bench) error {
	return b.volumes(ctx, "Ciphers, segments of 4 KiB", []system{
		b.volume("AES-256", "--algorithm aes-256-gcm", ""),
		b.volume("AES-128", "--algorithm aes-128-gcm", ""),
		b.volume("SM4", "--algorithm sm4-128-gcm", ""),
	})
}

func studySegments(ctx context.Context, b *bench) error {
	var systems []system
	for kib := 4; kib <= 64; kib *= 2 {
		systems = append(systems, b.volume(fmt.Sprint(kib, " KiB"), fmt.Sprint("--segment-size ", kib<<10), ""))
	}
	return b.volumes(ctx, "Segment sizes, AES-256", systems)
}

// What an amount of data costs the daemon, which is no time that passes.
const (
	writeCPU = "CPU of the daemon, sequential write"
	readCPU  = "CPU of the daemon, sequential read"
)

// volumes compares kinds of volumes on the rows of data.
func (b *bench) volumes(ctx context.Context, title string, systems []system) error {
	if b.check {
		systems = systems[len(systems)-1:] // what is least like other checks
	}
	d, err := b.newDisk(ctx, "scale", 4, 0)
	if err != nil {
		return err
	}
	rows, r := dataRows(), make(results)
	for run := range b.runs {
		for _, s := range systems {
			what := fmt.Sprintf("%s, run %d of %d, %s", title, run+1, b.runs, s.name)
			if err := r.measure(ctx, d, s, rows, b.load, what); err != nil {
				return err
			}
			progress("%s: CPU", what)
			if err := b.measureCPU(ctx, d, s, r); err != nil {
				return err
			}
		}
	}
	rows = append(rows, row{name: writeCPU, unit: "s/GiB"}, row{name: readCPU, unit: "s/GiB"})
	b.print(r.table(title, rows, systems))
	return d.remove(ctx)
}

// measureCPU counts what the daemon computes for four times the data of other rows, since it is counted in hundredths of a second.
func (b *bench) measureCPU(ctx context.Context, d *disk, s system, r results) error {
	m, err := newMounted(d, s)
	if err != nil {
		return err
	}
	if err := m.mount(ctx); err != nil {
		return err
	}
	size := 4 * b.load.bytes
	file := filepath.Join(m.above, "file")
	write, err := b.cpu(ctx, m, func() error {
		_, err := writeFile(ctx, file, size, 1<<20)
		return err
	})
	if err != nil {
		return err
	}
	if err := m.cool(ctx); err != nil {
		return err
	}
	read, err := b.cpu(ctx, m, func() error {
		_, err := readFile(ctx, file)
		return err
	})
	if err != nil {
		return err
	}
	gibibytes := float64(size) / (1 << 30)
	r.add(writeCPU, s.name, write/gibibytes)
	r.add(readCPU, s.name, read/gibibytes)
	return m.remove(ctx)
}

// cpu returns the seconds that a mount's daemon computes while do runs.
func (b *bench) cpu(ctx context.Context, m *mounted, do func() error) (float64, error) {
	p, err := b.daemon(ctx, m.above)
	if err != nil {
		return 0, err
	}
	before, err := p.cpu()
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := p.cpu()
	return after - before, err
}
