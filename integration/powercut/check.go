package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A fault is a broken promise, or something that no crash may leave.
type fault struct {
	Kind   faultKind
	Path   string
	Detail string
	Bytes  int // lost
}

type faultKind string

const (
	lostBytes  faultKind = "promised bytes lost"
	lostName   faultKind = "promised name lost"
	lostTime   faultKind = "promised modification time lost"
	unreadable faultKind = "unreadable, not promised"
	foreign    faultKind = "never written"
	stuck      faultKind = "cannot be changed or removed"
)

func (f fault) String() string { return fmt.Sprintf("%s: %s: %s", f.Kind, f.Path, f.Detail) }

// A checker compares what is left after a cut with what was promised.
type checker struct {
	*history
	top    string
	cut    int
	faults []fault
	found  map[int]bool
}

// check returns the faults of the tree at top after a cut at a position.
func (h *history) check(top string, cut int) []fault {
	c := checker{history: h, top: top, cut: cut, found: map[int]bool{0: true}}
	c.directory(0, top)
	lasting := h.lasting(cut)
	for obj, s := range lasting {
		// Where its directory is missing too, that is what counts.
		if _, ok := lasting[s.dir]; !c.found[obj] && (!ok || c.found[s.dir]) {
			c.fault(lostName, s.name, "what was promised under this name is under no name")
		}
	}
	return c.faults
}

func (c *checker) fault(k faultKind, path, format string, a ...any) {
	c.faults = append(c.faults, fault{Kind: k, Path: strings.TrimPrefix(path, c.top), Detail: fmt.Sprintf(format, a...)})
}

// directory checks a directory object found at path.
func (c *checker) directory(obj int, path string) {
	entries, err := os.ReadDir(path)
	if err != nil {
		k := unreadable
		if _, ok := c.lasting(c.cut)[obj]; ok || obj == 0 {
			k = lostName
		}
		c.fault(k, path, "%v", err)
		return
	}
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Name()] = true
		if _, known := c.names[slot{obj, e.Name()}]; !known {
			c.fault(foreign, filepath.Join(path, e.Name()), "a name that the program never made")
		}
	}
	for s := range c.names {
		if s.dir == obj {
			c.slot(s, filepath.Join(path, s.name), there[s.name])
		}
	}
}

// slot checks a name. What it is bound to is known by its content: the first of the objects it may be that fits, or else the one that fits
// best.
func (c *checker) slot(s slot, path string, listed bool) {
	may, sure := c.may(s, c.cut)
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && !listed:
		if !slices.Contains(may, nothing) {
			c.fault(lostName, path, "is gone")
		}
		return
	case err != nil:
		k := unreadable
		if sure {
			k = lostName
		}
		c.fault(k, path, "listed, but %v", err)
		return
	case !listed:
		c.fault(unreadable, path, "there, but not listed")
	}
	var best []fault
	fits := false
	for _, obj := range may {
		if obj == nothing {
			continue
		}
		one := checker{history: c.history, top: c.top, cut: c.cut, found: map[int]bool{}}
		one.object(obj, path, fi)
		if len(one.faults) == 0 || best == nil || len(one.faults) < len(best) {
			best = one.faults
		}
		if len(one.faults) == 0 {
			fits = true
		}
		if len(one.faults) == 0 || len(may) == 1 || c.objects[obj].kind == directory {
			c.found[obj] = true
			for o := range one.found {
				c.found[o] = true
			}
		}
	}
	if best == nil && !fits {
		c.fault(lostName, path, "is there again, though its removal was promised")
	}
	if !fits {
		c.faults = append(c.faults, best...)
	}
}

// object checks that path is a certain object.
func (c *checker) object(obj int, path string, fi os.FileInfo) {
	o := c.objects[obj]
	if mode := fi.Mode(); mode.IsDir() != (o.kind == directory) || mode.IsRegular() != (o.kind == file) {
		c.fault(foreign, path, "is of another type: %v", mode)
		return
	}
	switch o.kind {
	case directory:
		c.directory(obj, path)
	case symlink:
		if target, err := os.Readlink(path); err != nil {
			c.fault(lostName, path, "%v", err)
		} else if target != o.target {
			c.fault(lostName, path, "points to %.40q", target)
		}
	case file:
		c.file(o.outlook(c.cut), path, fi)
	}
}

// file checks a file's length, modification time and content.
func (c *checker) file(l outlook, path string, fi os.FileInfo) {
	size := fi.Size()
	if !l.dated(fi.ModTime().UnixNano()) {
		c.fault(lostTime, path, "was modified at %v, promised %v or later", fi.ModTime().UTC(), time.Unix(0, l.mtime).UTC())
	}
	if size < l.min {
		c.fault(lostBytes, path, "is %d bytes long, promised %d", size, l.min)
		c.faults[len(c.faults)-1].Bytes = int(l.min - size)
	} else if size > l.max {
		c.fault(foreign, path, "is %d bytes long, never was longer than %d", size, l.max)
	}
	f, err := os.Open(path)
	if err != nil {
		k := unreadable
		if l.min > 0 {
			k = lostBytes
		}
		c.fault(k, path, "%v", err)
		return
	}
	defer f.Close()
	bad := map[verdict][]int64{}
	reasons := map[verdict]string{}
	buf := make([]byte, blockSize)
	for off := int64(0); off < size; off += blockSize {
		n, err := f.ReadAt(buf[:min(blockSize, size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) || int64(n) < min(blockSize, size-off) {
			v := strange
			if off < l.min {
				v = lost
			}
			reasons[v] = fmt.Sprint("unreadable: ", unwrap(err))
			for i := off; i < min(off+blockSize, size); i++ {
				if v != lost || i < l.min {
					bad[v] = append(bad[v], i)
				}
			}
			if v == strange {
				bad[unread] = append(bad[unread], off)
			}
			continue
		}
		for i, b := range buf[:n] {
			if v := l.judge(off+int64(i), b); v != good {
				bad[v] = append(bad[v], off+int64(i))
				if reasons[v] == "" {
					reasons[v] = fmt.Sprintf("%#02x at %d", b, off+int64(i))
				}
			}
		}
	}
	if at := bad[lost]; len(at) > 0 {
		c.fault(lostBytes, path, "%d of %d promised bytes, from %d to %d: %s", len(at), len(l.promised), at[0], at[len(at)-1], reasons[lost])
		c.faults[len(c.faults)-1].Bytes = len(at)
	}
	if at := bad[strange]; len(at) > 0 {
		k := foreign
		if len(bad[unread]) > 0 {
			k = unreadable
		}
		c.fault(k, path, "%d bytes not promised, from %d to %d of %d: %s", len(at), at[0], at[len(at)-1], size, reasons[strange])
	}
}

// unwrap drops the path, which the fault has.
func unwrap(err error) error {
	if p := (*os.PathError)(nil); errors.As(err, &p) {
		return p.Err
	}
	return err
}

// unread marks blocks that gave an error and were not promised.
const unread verdict = -1

// usable changes what is left, then removes all of it: nothing may be in the way of either.
func usable(top string) (faults []fault) {
	add := func(path string, err error) {
		if err != nil {
			faults = append(faults, fault{Kind: stuck, Path: path, Detail: err.Error()})
		}
	}
	_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			add(path, err)
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			add(path, err)
			return nil
		}
		_, err = f.WriteString("after the cut")
		add(path, errors.Join(err, f.Close()))
		return nil
	})
	entries, err := os.ReadDir(top)
	add(top, err)
	for _, e := range entries {
		path := filepath.Join(top, e.Name())
		add(path, os.RemoveAll(path))
	}
	fresh := filepath.Join(top, "fresh")
	add(fresh, os.WriteFile(fresh, []byte("fresh"), 0o600))
	got, err := os.ReadFile(fresh)
	add(fresh, err)
	if err == nil && !bytes.Equal(got, []byte("fresh")) {
		add(fresh, errors.New("does not read back"))
	}
	return faults
}

// summary counts the faults of cuts by kind.
func summary(cuts []cut) string {
	count := map[faultKind]int{}
	size := 0
	for _, c := range cuts {
		for _, f := range c.faults {
			count[f.Kind]++
			size += f.Bytes
		}
	}
	var parts []string
	for _, k := range []faultKind{lostBytes, lostName, lostTime, unreadable, foreign, stuck} {
		if count[k] > 0 {
			parts = append(parts, fmt.Sprintf("%d × %s", count[k], k))
		}
	}
	if len(parts) == 0 {
		return "nothing lost"
	}
	return fmt.Sprintf("%s (%d bytes)", strings.Join(parts, ", "), size)
}
