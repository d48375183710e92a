package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// A study measures one thing on kmsfs alone, and prints tables.
type study struct {
	name string
	run  func(ctx context.Context, b *bench) error
}

func studies() []study {
	return []study{
		{"ciphers", studyCiphers}, {"segments", studySegments}, {"clients", studyClients},
		{"sparse", studySparse}, {"space", studySpace}, {"names", studyNames},
	}
}

func allStudies() (names []string) {
	for _, s := range studies() {
		names = append(names, s.name)
	}
	return names
}

// checkStudies reports a study that there is not.
func (o options) checkStudies() error {
	for name := range strings.SplitSeq(o.scale, ",") {
		if name != "" && name != "all" && !slices.Contains(allStudies(), name) {
			return fmt.Errorf("there is no study %q, but all, %s", name, strings.Join(allStudies(), ", "))
		}
	}
	return nil
}

// study runs the studies that the options name.
func (b *bench) study(ctx context.Context) error {
	chosen := strings.Split(b.scale, ",")
	for _, s := range studies() {
		if !b.check && !slices.Contains(chosen, s.name) && !slices.Contains(chosen, "all") {
			continue
		}
		if err := s.run(ctx, b); err != nil {
			return fmt.Errorf("study of %s: %w", s.name, err)
		}
	}
	return nil
}

// on runs a study on a disk of its own, with one volume mounted.
func (b *bench) on(ctx context.Context, gigabytes, inodes int, do func(*mounted) error) error {
	d, err := b.newDisk(ctx, "scale", gigabytes, inodes)
	if err != nil {
		return err
	}
	m, err := newMounted(d, b.volume("kmsfs", "", ""))
	if err != nil {
		return err
	}
	if err := m.mount(ctx); err != nil {
		return err
	}
	if err := do(m); err != nil {
		return err
	}
	if err := m.unmount(ctx); err != nil {
		return err
	}
	return d.remove(ctx)
}
