package journal

import (
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"
)

// A lost change is what the records of one file add up to.
type change struct {
	ino     uint64
	version uint32
	ids     map[[16]byte]bool // file IDs that it had in place or that its records put there
	path    string

	base    int64 // in place is part of the file up to here
	size    int64
	mtime   uint64 // 0: as it is in place
	ext     overlay
	growing bool // what lies in place past size is not part of the file
	header  bool // there was one in place before the first record
}

// covers reports whether a later record of the inode number is about the same file. Where such numbers have no generation, another file may have got the number of one that was
// deleted; its first record has a file ID of its own.
func (c *change) covers(r *record) bool {
	return r.version != 0 || len(c.ids) == 0 || r.fileID == [16]byte{} || c.ids[r.fileID]
}

// known takes down a file ID.
func (c *change) known(id [16]byte) {
	if id != [16]byte{} {
		c.ids[id] = true
	}
}

// add takes a later record in.
func (c *change) add(r *record) {
	c.path = r.path
	c.known(r.fileID)
	c.known(r.newID())
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
	c.size, c.mtime = r.size, r.mtime
	c.ext.cut(c.size)
	c.base = min(c.base, c.size) // an earlier record, which is in place, may have cut the file
}

// replay puts in place what the logs hold, oldest first, and begins with empty logs. It may be cut off at any point, and run again.
func (j *Journal) replay() error {
	if j.logs[0].generation.Load() > j.logs[1].generation.Load() {
		j.active = 1 // after this, too, the log that gets the first records has the smaller generation
	}
	old, young := j.logs[j.active], j.logs[1-j.active]
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
			if c == nil || !c.covers(r) {
				c = &change{ino: r.ino, version: r.version, ids: make(map[[16]byte]bool), base: math.MaxInt64, header: r.fileID != [16]byte{}}
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
	if err := j.replayAll(order); err != nil {
		return err
	}
	generation := young.generation.Load()
	// The older first: its records alone would put back what those of the younger have changed.
	for _, l := range []*log{old, young} {
		generation++
		if err := l.reset(generation); err != nil {
			return fmt.Errorf("write .kmsfs/%s: %w", l.name, err)
		}
		l.begin(generation)
		_ = l.reserve(headroom) // so that files can be cut when the disk is full
	}
	return nil
}

func (j *Journal) replayAll(order []*change) error {
	if len(order) == 0 {
		return nil
	}
	done := 0
	err := j.locate(order, func(c *change, fd int) error {
		done++
		return c.carryOut(disk{j.kernel, fd})
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrReplay, err)
	}
	if err := j.disk().syncAll(); err != nil {
		return fmt.Errorf("%w: %w", ErrReplay, err)
	}
	j.logger.Info("journal: replayed after an unclean end", "files", done, "gone", len(order)-done)
	return nil
}

// carryOut puts the change in place. It does nothing with a file that was new, and of which nothing has reached the disk, not even its mark: what
// the records say was written on top of that.
func (c *change) carryOut(d disk) error {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return err
	}
	if st.Size == 0 && c.header && c.base > 0 {
		return nil
	}
	if c.base < st.Size {
		if err := cut(d, st.Size, c.base, c.ext); err != nil {
			return err
		}
	}
	if err := place(d, c.ext, c.size); err != nil {
		return err
	}
	mtime := st.Mtim
	if c.mtime != 0 {
		mtime = unstamp(c.mtime)
	}
	d.setModified(mtime)
	return nil
}

// locate calls fn with the files of changes: by the path that was known last, and where that has another file now, by a walk over the whole tree. A
// file that is nowhere was deleted; one that is there but cannot be opened is an error, so that nothing is lost.
func (j *Journal) locate(changes []*change, fn func(c *change, fd int) error) error {
	missing := make(map[uint64][]*change)
	try := func(c *change, dir int, path string, atPath bool) (found bool, err error) {
		fd, err := c.open(dir, path)
		if fd < 0 || err != nil {
			return false, err
		}
		defer unix.Close(fd)
		if !c.matches(disk{j.kernel, fd}, atPath) {
			return false, nil
		}
		if err := fn(c, fd); err != nil {
			return false, fmt.Errorf("%s: %w", path, err)
		}
		return true, nil
	}
	for _, c := range changes {
		found, err := try(c, j.root, c.path, true)
		if err != nil {
			return err
		}
		if !found {
			missing[c.ino] = append(missing[c.ino], c)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return walk(j.root, func(dir int, name string, ino uint64) error {
		var rest []*change
		for _, c := range missing[ino] {
			found, err := try(c, dir, name, false)
			if err != nil {
				return err
			}
			if !found {
				rest = append(rest, c)
			}
		}
		missing[ino] = rest
		return nil
	})
}

// open opens a file for writing by a path, which may be anybody's: it leads to nothing outside dir. fd is -1 if there is no such file. A file of ours that its
// mode protects from us, its owner, is opened all the same.
func (c *change) open(dir int, path string) (fd int, err error) {
	if path == "" {
		return -1, nil
	}
	how := func(flags uint64) (fd int, err error) {
		flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC
		err = again(func() error {
			if !strings.Contains(path, "/") { // where there is no openat2, the walk still finds everything
				fd, err = unix.Openat(dir, path, int(flags), 0)
				return err
			}
			fd, err = unix.Openat2(dir, path, &unix.OpenHow{
				Flags:   flags,
				Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
			})
			return err
		})
		return fd, err
	}
	fd, err = how(unix.O_RDWR | unix.O_NONBLOCK)
	switch err {
	case nil:
		return fd, nil
	default:
		return -1, nil
	case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EIO, unix.EROFS, unix.EAGAIN:
		return -1, fmt.Errorf("open %s: %w", path, err)
	case unix.EACCES, unix.EPERM, unix.ETXTBSY:
	}
	failed := fmt.Errorf("open %s: %w", path, err)
	at, err := how(unix.O_PATH)
	if err != nil {
		return -1, nil
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return -1, err
	}
	if st.Ino != c.ino || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return -1, nil
	}
	fd, lock, err := unlock(at, st.Mode, 0o600, unix.O_RDWR)
	if err != nil {
		return -1, failed
	}
	if err := lock(); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("%s: cannot restore mode %04o: %w", path, st.Mode&07777, err)
	}
	return fd, nil
}

// matches reports whether d is the file that the change is about: the same inode, not used again since or, in a copy of the volume, the same path and
// file ID. Where inode numbers have no generation, a file is known by its ID, too, or by its path if that is not there: it was empty before, or cut to nothing meanwhile, or is new and torn.
func (c *change) matches(d disk, atPath bool) bool {
	var st unix.Stat_t
	if unix.Fstat(d.fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false
	}
	id := fileID(d)
	sameID := c.ids[id]
	if st.Ino == c.ino {
		version, err := d.kernel.version(d.fd)
		if err != nil || c.version == 0 {
			return sameID || atPath && id == [16]byte{}
		}
		if version == c.version {
			return true
		}
	}
	return atPath && sameID
}

// fileID returns the file ID of a header, zeros if there is none.
func fileID(d disk) (id [16]byte) {
	var head [idEnd]byte
	if n, _ := d.ReadAt(head[:], 0); n == len(head) {
		id = [16]byte(head[idStart:])
	}
	return id
}
