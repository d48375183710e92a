package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A node is a name as it is now.
type node struct {
	object int
	name   string
	parent *node
	bound  int              // the operation that gave it its name
	names  map[string]*node // of a directory
	data   []byte           // of a file
}

func (n *node) path() string {
	if n.parent == nil {
		return ""
	}
	return n.parent.path() + "/" + n.name
}

func (n *node) slot() slot { return slot{n.parent.object, n.name} }

// A workload is a program that works in a directory and notes what it was promised.
type workload struct {
	*history
	top, lower string
	position   func() int // of the record
	rng        *rand.Rand
	root       *node
	seq        int
	log        io.Writer
}

func newWorkload(top, lower string, position func() int, rng *rand.Rand, log io.Writer) *workload {
	return &workload{
		history: newHistory(), top: top, lower: lower, position: position, rng: rng, log: log,
		root: &node{names: map[string]*node{}},
	}
}

// do runs one operation and returns when it ran.
func (w *workload) do(f func() error, format string, a ...any) (span, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now); err != nil { // by which filesystems go
		return span{}, err
	}
	s := span{Seq: w.seq, Begin: w.position(), Clock: now.Nano()}
	w.seq++
	err := f()
	s.End = w.position()
	fmt.Fprintf(w.log, "%d [%d,%d] %s", s.Seq, s.Begin, s.End, fmt.Sprintf(format, a...))
	if err != nil {
		fmt.Fprintf(w.log, ": %v", err)
		err = fmt.Errorf("operation %d: %w", s.Seq, err)
	}
	fmt.Fprintln(w.log)
	return s, err
}

func (w *workload) at(n *node) string { return w.top + n.path() }

// bind notes that a name means an object from an operation on.
func (w *workload) bind(s slot, at span, obj int) { w.names[s] = append(w.names[s], binding{at, obj}) }

// create makes a file, directory or symlink.
func (w *workload) create(parent *node, name string, k kind) (*node, error) {
	n := &node{object: len(w.objects), name: name, parent: parent}
	o := &object{kind: k}
	at, err := w.do(func() error {
		switch k {
		case directory:
			n.names = map[string]*node{}
			return os.Mkdir(w.at(n), 0o700)
		case symlink:
			o.target = strings.Repeat(fmt.Sprintf("target of %d/", n.object), 1+w.rng.IntN(20))
			return os.Symlink(o.target, w.at(n))
		}
		f, err := os.OpenFile(w.at(n), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		return f.Close()
	}, "create %s as object %d of kind %d", n.path(), n.object, k)
	w.objects = append(w.objects, o)
	parent.names[name], n.bound = n, at.Seq
	w.bind(n.slot(), at, n.object)
	return n, err
}

// write writes fresh bytes, unlike all those before, at off and perhaps syncs them.
func (w *workload) write(n *node, off, size int64, sync bool) error {
	f, err := os.OpenFile(w.at(n), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return w.writeOpen(n, f, off, size, sync)
}

// commit does what databases do with a file that they have open: overwrite some of it and sync, a few times.
func (w *workload) commit(n *node, off, size int64) error {
	f, err := os.OpenFile(w.at(n), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for range 3 {
		if err := w.writeOpen(n, f, off, size, true); err != nil {
			return err
		}
	}
	return nil
}

func (w *workload) writeOpen(n *node, f *os.File, off, size int64, sync bool) error {
	data := pattern(w.seq, size)
	at, err := w.do(func() error {
		_, err := f.WriteAt(data, off)
		return err
	}, "write %s %d+%d", n.path(), off, size)
	n.data = append(n.data, make([]byte, max(0, off+size-int64(len(n.data))))...)
	copy(n.data[off:], data)
	if err == nil {
		err = w.changed(n, change{span: at, what: wrote, off: off, data: data})
	}
	if err != nil || !sync {
		return err
	}
	return w.syncOpen(n, f)
}

// changed notes a change of a file, with what it is like now.
func (w *workload) changed(n *node, c change) error {
	fi, err := os.Stat(w.at(n))
	if err != nil {
		return err
	}
	c.length, c.mtime = int64(len(n.data)), fi.ModTime().UnixNano()
	w.objects[n.object].changes = append(w.objects[n.object].changes, c)
	return nil
}

// touch sets a file's times to ones that it had not before, long ago, and perhaps syncs it.
func (w *workload) touch(n *node, sync bool) error {
	t := time.Unix(1e9+int64(w.seq), int64(w.seq)+1)
	at, err := w.do(func() error { return os.Chtimes(w.at(n), t, t) }, "set the times of %s to %v", n.path(), t.UTC())
	if err == nil {
		err = w.changed(n, change{span: at, what: touched})
	}
	if err != nil || !sync {
		return err
	}
	return w.sync(n)
}

func (w *workload) truncate(n *node, size int64) error {
	at, err := w.do(func() error { return os.Truncate(w.at(n), size) }, "truncate %s from %d to %d", n.path(), len(n.data), size)
	if size <= int64(len(n.data)) {
		n.data = n.data[:size:size]
	} else {
		n.data = append(n.data, make([]byte, size-int64(len(n.data)))...)
	}
	return errors.Join(err, w.changed(n, change{span: at, what: truncated}))
}

// rewrite replaces a file's content as a careless program does.
func (w *workload) rewrite(n *node, size int64) error {
	at, err := w.do(func() error {
		f, err := os.OpenFile(w.at(n), os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		return f.Close()
	}, "open %s with O_TRUNC", n.path())
	n.data = nil
	return errors.Join(err, w.changed(n, change{span: at, what: truncated}), w.write(n, 0, size, false))
}

func (w *workload) sync(n *node) error {
	f, err := os.OpenFile(w.at(n), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return w.syncOpen(n, f)
}

// syncOpen syncs a file: its content is promised, and its name, without which the content is gone. Of the directories above, what is
// promised is what came before the name was given, as in any filesystem with a log.
func (w *workload) syncOpen(n *node, f *os.File) error {
	at, err := w.do(f.Sync, "fsync %s, %d bytes", n.path(), len(n.data))
	if err != nil {
		return err
	}
	w.keep(n, at)
	return w.changed(n, change{span: at, what: synced, data: slices.Clone(n.data)})
}

// keep notes that a name is promised.
func (w *workload) keep(n *node, at span) {
	for p := n; p.parent != nil; p = p.parent {
		w.kept[p.slot()] = append(w.kept[p.slot()], span{Seq: n.bound, End: at.End})
	}
}

// syncDir syncs a directory: all its names are promised, those removed too.
func (w *workload) syncDir(n *node) error {
	f, err := os.Open(w.at(n))
	if err != nil {
		return err
	}
	defer f.Close()
	at, err := w.do(f.Sync, "fsync directory %s/", n.path())
	if err != nil {
		return err
	}
	w.objects[n.object].syncs = append(w.objects[n.object].syncs, at)
	w.keep(n, at)
	return nil
}

// rename gives a node another name, in place of what has it.
func (w *workload) rename(n *node, to *node, name string) error {
	target := &node{name: name, parent: to}
	at, err := w.do(func() error { return os.Rename(w.at(n), w.at(target)) }, "rename %s to %s", n.path(), target.path())
	if old := to.names[name]; old != nil {
		w.gone(old, at)
	}
	w.bind(n.slot(), at, nothing)
	delete(n.parent.names, n.name)
	n.parent, n.name, n.bound = to, name, at.Seq
	to.names[name] = n
	w.bind(n.slot(), at, n.object)
	return err
}

func (w *workload) remove(n *node) error {
	at, err := w.do(func() error { return os.Remove(w.at(n)) }, "remove %s", n.path())
	w.bind(n.slot(), at, nothing)
	delete(n.parent.names, n.name)
	w.gone(n, at)
	return err
}

func (w *workload) gone(n *node, at span) {
	w.objects[n.object].removed, w.objects[n.object].removal = true, at
}

// pattern is content that no other operation writes.
func pattern(seq int, size int64) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(seq)+1)
	data := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(data)
	for i := range data { // zero means a hole
		if data[i] == 0 {
			data[i] = 1
		}
	}
	return data
}
