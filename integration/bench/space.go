package main

import (
	"context"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// studySpace compares what the Go source tree takes, as it is and in a volume.
func studySpace(ctx context.Context, b *bench) error {
	t := newTable("Space for the Go source tree", "", "files, MB", "disk, MB", "disk per byte of the files")
	return b.on(ctx, 4, 0, func(m *mounted) error {
		progress("space for the Go source tree")
		plain := filepath.Join(m.disk.dir, "plain")
		if err := sh(ctx, "/", "mkdir "+plain+"; tar -C "+plain+" -xf "+b.load.tree+"; tar -C "+m.above+" -xf "+b.load.tree); err != nil {
			return err
		}
		if err := m.unmount(ctx); err != nil {
			return err
		}
		if err := m.disk.sync(); err != nil { // blocks are counted when they are allocated
			return err
		}
		plainFiles, plainDisk, err := space(plain)
		if err != nil {
			return err
		}
		sealedFiles, sealedDisk, err := space(m.below)
		if err != nil {
			return err
		}
		t.add("ext4", plainFiles/1e6, plainDisk/1e6, plainDisk/plainFiles)
		// The logs and the volume header are as large in an empty volume.
		ownFiles, ownDisk, err := space(filepath.Join(m.below, ".kmsfs"))
		if err != nil {
			return err
		}
		t.add("a volume on it", sealedFiles/1e6, sealedDisk/1e6, sealedDisk/plainFiles)
		t.add("of it the volume's own", ownFiles/1e6, ownDisk/1e6, ownDisk/plainFiles)
		t.add("ratio", sealedFiles/plainFiles, sealedDisk/plainDisk, "")
		t.add("ratio, but for the volume's own", (sealedFiles-ownFiles)/plainFiles, (sealedDisk-ownDisk)/plainDisk, "")
		b.print(t)
		return nil
	})
}

// space adds up the lengths of files, and what they and the directories take of the disk, in bytes.
func space(dir string) (length, taken float64, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if e.Type().IsRegular() {
			length += float64(st.Size)
		}
		taken += float64(st.Blocks) * 512
		return nil
	})
	return length, taken, err
}
