package journal

import (
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// A lost change is what the records of one file add up to.
type change struct {
	ino     uint64
	version uint32
	fileID  [16]byte
	path    string

	base    int64 // in place is part of the file up to here
	size    int64
	ext     overlay
	growing bool // what lies in place past size is not part of the file
}

// add takes a later record in.
func (c *change) add(r *record) {
	c.path, c.fileID = r.path, r.fileID
	switch {
	case r.kind == kindGrow:
		c.base, c.ext, c.growing = r.keep, nil, true
	case r.grown:
		c.base, c.growing = r.keep, false
	default:
		c.base, c.growing = min(c.base, r.keep), false
		c.ext.cut(r.keep)
	}
	for _, e := range r.extents {
		c.ext.put(e)
	}
	c.size = r.size
	c.ext.cut(c.size)
}

// replay puts in place what the logs hold, oldest first, and begins with empty logs. It may be cut off at any point, and run again.
func (j *Journal) replay(o Options) error {
	old, young := j.logs[0], j.logs[1]
	if old.generation.Load() > young.generation.Load() {
		old, young = young, old
	}
	type key struct {
		ino     uint64
		version uint32
	}
	byFile := make(map[key]*change)
	var order []*change
	for _, l := range []*log{old, young} {
		if err := l.scan(func(r *record) error {
			k := key{r.ino, r.version}
			c := byFile[k]
			if c == nil {
				c = &change{ino: r.ino, version: r.version, base: math.MaxInt64}
				byFile[k] = c
				order = append(order, c)
			}
			c.add(r)
			return nil
		}); err != nil {
			return err
		}
	}
	if j.readOnly {
		if len(order) > 0 {
			return fmt.Errorf("%w: the volume was not unmounted cleanly, and its storage is read-only; make it writable once", ErrReplay)
		}
		return nil
	}
	if err := j.replayAll(order, o); err != nil {
		return err
	}
	generation := young.generation.Load()
	for _, l := range j.logs {
		generation++
		if err := l.reset(generation); err != nil {
			return fmt.Errorf("write .kmsfs/%s: %w", l.name, err)
		}
		l.begin(generation)
		_ = l.reserve(headroom) // so that files can be cut when the disk is full
	}
	return nil
}

func (j *Journal) replayAll(order []*change, o Options) error {
	if len(order) == 0 {
		return nil
	}
	found, err := j.locate(order)
	if err != nil {
		return err
	}
	defer func() {
		for _, fd := range found {
			unix.Close(fd)
		}
	}()
	done := 0
	for i, c := range order {
		if o.Progress != nil {
			o.Progress(i, len(order))
		}
		fd, ok := found[c]
		if !ok {
			continue // it was deleted
		}
		if err := c.carryOut(disk{j.kernel, fd}); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrReplay, c.path, err)
		}
		done++
	}
	if err := j.disk().syncAll(); err != nil {
		return fmt.Errorf("%w: %w", ErrReplay, err)
	}
	j.logger.Info("journal: replayed after an unclean end", "files", done, "gone", len(order)-done)
	return nil
}

// carryOut puts the change in place.
func (c *change) carryOut(d disk) error {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return err
	}
	if c.base < st.Size {
		if err := d.Truncate(c.base); err != nil {
			return err
		}
	}
	if err := place(d, c.ext, c.size); err != nil {
		return err
	}
	_ = setTimes(d.fd, unix.Timespec{Nsec: unix.UTIME_OMIT}, st.Mtim)
	return nil
}

// locate opens the files of changes: by the path that was known last, and where that has another file now, by a walk over the whole tree. A
// file that is nowhere was deleted.
func (j *Journal) locate(changes []*change) (map[*change]int, error) {
	found := make(map[*change]int)
	missing := make(map[uint64][]*change)
	for _, c := range changes {
		if fd, ok := j.openPath(c.path); ok {
			if c.matches(fd, true) {
				found[c] = fd
				continue
			}
			unix.Close(fd)
		}
		missing[c.ino] = append(missing[c.ino], c)
	}
	if len(missing) == 0 {
		return found, nil
	}
	err := walk(j.root, func(dir int, name string, ino uint64) {
		for _, c := range missing[ino] {
			if _, have := found[c]; have {
				continue
			}
			fd, err := unix.Openat(dir, name, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err != nil {
				continue
			}
			if c.matches(fd, false) {
				found[c] = fd
			} else {
				unix.Close(fd)
			}
		}
	})
	return found, err
}

// openPath opens a file by its path in the ciphertext directory. The path may be anybody's: it leads to nothing outside.
func (j *Journal) openPath(path string) (int, bool) {
	if path == "" {
		return -1, false
	}
	fd, err := unix.Openat2(j.root, path, &unix.OpenHow{
		Flags:   unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	return fd, err == nil
}

// matches reports whether fd is the file that the change is about: the same inode, not used again since or, in a copy of
// the volume, the same path and file ID.
func (c *change) matches(fd int, atPath bool) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false
	}
	if st.Ino == c.ino {
		version, err := unix.IoctlGetInt(fd, getVersion)
		if err != nil || c.version == 0 {
			return atPath
		}
		if uint32(version) == c.version {
			return true
		}
	}
	return atPath && c.fileID != [16]byte{} && c.fileID == fileID(disk{fd: fd})
}

// fileID returns the file ID of a header, zeros if there is none.
func fileID(d disk) (id [16]byte) {
	var head [40]byte
	if n, _ := d.ReadAt(head[:], 0); n == len(head) {
		id = [16]byte(head[24:])
	}
	return id
}

// walk calls fn for every entry below the directory root, but for the volume's own, that is no directory.
func walk(root int, fn func(dir int, name string, ino uint64)) error {
	var rootStat unix.Stat_t
	if err := unix.Fstat(root, &rootStat); err != nil {
		return err
	}
	var down func(parent int, name string, top bool) error
	down = func(parent int, name string, top bool) error {
		fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			if errors.Is(err, unix.EACCES) {
				return nil
			}
			return err
		}
		d := os.NewFile(uintptr(fd), name)
		defer d.Close()
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Dev != rootStat.Dev {
			return err
		}
		for {
			entries, err := d.ReadDir(1024)
			for _, e := range entries {
				if top && e.Name() == ".kmsfs" {
					continue
				}
				if e.IsDir() {
					if err := down(fd, e.Name(), false); err != nil {
						return err
					}
					continue
				}
				var st unix.Stat_t
				if e.Type().IsRegular() && unix.Fstatat(fd, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
					fn(fd, e.Name(), st.Ino)
				}
			}
			if len(entries) == 0 {
				if err != nil && err.Error() != "EOF" {
					return err
				}
				return nil
			}
		}
	}
	return down(root, ".", true)
}
