package powercut

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxFile  = 96 << 10
	maxFiles = 24
	maxDirs  = 6
)

// step does something that programs do.
func (w *workload) step() error {
	dirs, files, links := w.list()
	dir := dirs[w.rng.IntN(len(dirs))]
	if len(files) == 0 {
		return w.newFile(dir)
	}
	n := files[w.rng.IntN(len(files))]
	size := int64(len(n.data))
	sync := w.rng.IntN(2) == 0
	switch k := w.rng.IntN(100); {
	case k < 18: // append
		if size > maxFile {
			return w.truncate(n, w.rng.Int64N(size))
		}
		return w.write(n, size, 1+w.rng.Int64N(6000), sync)
	case k < 32: // overwrite anything
		if size == 0 {
			return w.write(n, w.rng.Int64N(10000), 1+w.rng.Int64N(5000), sync)
		}
		return w.write(n, w.rng.Int64N(size), 1+w.rng.Int64N(9000), sync)
	case k < 40: // overwrite blocks
		off, length := w.rng.Int64N(size/blockSize+1)*blockSize, blockSize*(1+w.rng.Int64N(3))
		if sync {
			return w.commit(n, off, length)
		}
		return w.write(n, off, length, false)
	case k < 46:
		return w.truncate(n, w.rng.Int64N(size+5000))
	case k < 54:
		return w.sync(n)
	case k < 60:
		return w.syncDir(dir)
	case k < 66:
		if len(files) >= maxFiles {
			return w.remove(n)
		}
		return w.newFile(dir)
	case k < 70: // rename, perhaps over another file
		to := w.fileName(dir)
		if dir.names[to] == n {
			return w.syncDir(dir)
		}
		if err := w.rename(n, dir, to); err != nil || !sync {
			return err
		}
		return w.syncDir(dir)
	case k < 76: // replace, as careful programs do
		temp, err := w.create(n.parent, fmt.Sprintf("tmp%d", w.seq), file)
		if err != nil {
			return err
		}
		if err := w.write(temp, 0, 1+w.rng.Int64N(12000), true); err != nil {
			return err
		}
		if err := w.rename(temp, n.parent, n.name); err != nil || !sync {
			return err
		}
		return w.syncDir(n.parent)
	case k < 80:
		return w.rewrite(n, 1+w.rng.Int64N(12000))
	case k < 83:
		return w.remove(n)
	case k < 86:
		return w.changeDirs(dirs, dir, sync)
	case k < 88:
		if len(links) > 4 {
			return w.remove(links[w.rng.IntN(len(links))])
		}
		_, err := w.create(dir, fmt.Sprintf("link%d", w.seq), symlink)
		return err
	case k < 91:
		return w.touch(n, sync)
	default:
		return w.nudge()
	}
}

// newFile makes a file and gives it content, or not.
func (w *workload) newFile(dir *node) error {
	name := w.fileName(dir)
	if old := dir.names[name]; old != nil {
		if err := w.remove(old); err != nil {
			return err
		}
	}
	n, err := w.create(dir, name, file)
	if err != nil || w.rng.IntN(5) == 0 {
		return err
	}
	return w.write(n, 0, 1+w.rng.Int64N(15000), w.rng.IntN(2) == 0)
}

// changeDirs makes, renames or removes a directory. A directory's name is never used again.
func (w *workload) changeDirs(dirs []*node, dir *node, sync bool) error {
	name := fmt.Sprintf("dir%d", w.seq)
	if len(dirs) < maxDirs {
		if _, err := w.create(dir, name, directory); err != nil || !sync {
			return err
		}
		return w.syncDir(dir)
	}
	dir = dirs[1+w.rng.IntN(len(dirs)-1)]
	if len(dir.names) == 0 {
		return w.remove(dir)
	}
	return w.rename(dir, dir.parent, name)
}

// fileName draws one of a few names, one of them too long to be stored as such.
func (w *workload) fileName(dir *node) string {
	switch i := w.rng.IntN(7); i {
	case 0:
		return "long" + strings.Repeat("g", 240)
	default:
		return fmt.Sprint("file", i)
	}
}

// list lists what there is, the root first, in a stable order.
func (w *workload) list() (dirs, files, links []*node) {
	dirs = []*node{w.root}
	for i := 0; i < len(dirs); i++ {
		for _, name := range slices.Sorted(maps.Keys(dirs[i].names)) {
			n := dirs[i].names[name]
			switch w.objects[n.object].kind {
			case directory:
				dirs = append(dirs, n)
			case symlink:
				links = append(links, n)
			default:
				files = append(files, n)
			}
		}
	}
	return dirs, files, links
}

// nudge does what the kernel does at its leisure: write back some pages of some file below, or all of them, which promises nothing.
func (w *workload) nudge() error {
	if w.rng.IntN(4) == 0 {
		f, err := os.Open(w.lower)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = w.do(func() error { return unix.Syncfs(int(f.Fd())) }, "write back everything")
		return err
	}
	var files []string
	err := filepath.WalkDir(w.lower, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return nil
	})
	if err != nil || len(files) == 0 {
		return err
	}
	f, err := os.Open(files[w.rng.IntN(len(files))])
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	page := w.rng.Int64N(st.Size()/blockSize+1) * blockSize
	pages := 1 + w.rng.Int64N(3)
	_, err = w.do(func() error {
		return unix.SyncFileRange(int(f.Fd()), page, pages*blockSize,
			unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	}, "write back %d pages at %d of %s", pages, page, f.Name())
	return err
}
