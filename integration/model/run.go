package model

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A runner does operations on a volume and compares with the prediction.
type runner struct {
	vol Volume
	dir string // where the volume is mounted
	w   *world

	// maybe is what the operation that failed last would have changed: the volume may have changed so, or not at all.
	maybe func()
}

func newRunner(v Volume) (*runner, error) {
	dir, err := v.Mount()
	if err != nil {
		return nil, err
	}
	return &runner{vol: v, dir: dir, w: newWorld()}, nil
}

// real is the path in the mount of a path in a script: names that start with L are long there.
func (r *runner) real(path string) string {
	parts := strings.Split(path, "/")
	for i, name := range parts {
		if strings.HasPrefix(name, "L") {
			parts[i] = name + strings.Repeat("-", unix.NAME_MAX-len(name))
		}
	}
	return r.dir + "/" + strings.Join(parts, "/")
}

// short undoes real for a name.
func short(name string) string { return strings.TrimRight(name, "-") }

// target makes a link's target of the wanted length; it leads nowhere.
func target(n int64) string {
	return strings.Repeat("nowhere/", int(n)/8+1)[:n]
}

// outcome compares an error with those that may be; no want means success.
func outcome(err error, want []string) error {
	got := ""
	var errno unix.Errno
	if errors.As(err, &errno) {
		got = unix.ErrnoName(errno)
	} else if err != nil {
		got = err.Error()
	}
	if got == "" && len(want) == 0 || slices.Contains(want, got) {
		return nil
	}
	if len(want) == 0 {
		want = []string{"success"}
	}
	if err == nil {
		return fmt.Errorf("success, want %s", strings.Join(want, " or "))
	}
	return fmt.Errorf("%w, want %s", err, strings.Join(want, " or "))
}

// settle compares the outcome of a call with those that may be and, after a success, changes the prediction.
func (r *runner) settle(err error, want []string, effect func()) error {
	if want == nil {
		r.maybe = effect
	}
	if err := outcome(err, want); err != nil || want != nil {
		return err
	}
	r.maybe = nil
	effect()
	return nil
}

// do does an operation and changes the prediction likewise.
func (r *runner) do(o op) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a page of a mapping that cannot be read
	defer func() {
		if v := recover(); v != nil {
			fault, ok := v.(interface{ Addr() uintptr })
			if !ok {
				panic(v)
			}
			err = fmt.Errorf("bus error at %#x: %w", fault.Addr(), unix.EIO)
		}
	}()
	switch o.verb {
	case "verify":
		return r.verify(exact)
	case "remount":
		return r.remount()
	case "kill":
		return r.kill()
	case "open":
		return r.open(o)
	case "close", "fsync", "fdatasync", "fstat", "drop", "read", "mapread", "write", "mapwrite", "ftruncate", "fallocate", "copy":
		return r.onHandle(o)
	}
	return r.onPath(o)
}

func (r *runner) open(o op) error {
	w := r.w
	if w.handles[o.h] != nil {
		if err := r.close(o.h); err != nil {
			return err
		}
	}
	h := &handle{}
	bits := unix.O_NOFOLLOW | unix.O_CLOEXEC
	var creat, excl, trunc bool
	for _, f := range strings.Split(o.flags, ",") {
		switch f {
		case "ro":
			h.read, bits = true, bits|unix.O_RDONLY
		case "rw":
			h.read, h.write, bits = true, true, bits|unix.O_RDWR
		case "wo":
			h.write, bits = true, bits|unix.O_WRONLY
		case "creat":
			creat, bits = true, bits|unix.O_CREAT
		case "excl":
			excl, bits = true, bits|unix.O_EXCL
		case "trunc":
			trunc, bits = true, bits|unix.O_TRUNC
		case "append":
			h.append, bits = true, bits|unix.O_APPEND
		case "direct":
			bits |= unix.O_DIRECT
		case "sync":
			h.sync, bits = true, bits|unix.O_SYNC
		default:
			return fmt.Errorf("model: bad flag %q", f)
		}
	}
	p, errno := w.find(o.path)
	var want []string
	switch {
	case errno != "":
		want = []string{errno}
	case p.node == nil && !creat:
		want = []string{"ENOENT"}
	case p.node == nil:
	case creat && excl:
		want = []string{"EEXIST"}
	case p.node.kind == symlink:
		want = []string{"ELOOP"}
	case p.node.kind == directory && (creat || h.write):
		want = []string{"EISDIR"}
	}
	n := p.node
	fd, err := unix.Open(r.real(o.path), bits, 0o644)
	err = r.settle(err, want, func() {
		if n == nil {
			n = &node{kind: file}
			p.put(n)
		} else if trunc {
			n.change(resize(0))
		}
	})
	if err != nil || want != nil {
		return err
	}
	if n.kind == directory {
		return unix.Close(fd)
	}
	h.node, h.fd = n, fd
	w.handles[o.h] = h
	return r.size(h)
}

// size compares the size that the kernel has for an open file.
func (r *runner) size(h *handle) error {
	var st unix.Stat_t
	if err := unix.Fstat(h.fd, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	if st.Size != int64(len(h.node.data)) {
		return fmt.Errorf("size %d, want %d", st.Size, len(h.node.data))
	}
	if int(st.Nlink) != h.node.links {
		return fmt.Errorf("%d links, want %d", st.Nlink, h.node.links)
	}
	return nil
}

func (r *runner) close(i int) error {
	h := r.w.handles[i]
	r.w.handles[i] = nil // close gives the descriptor back even if it fails
	err := unix.Close(h.fd)
	if err == nil && h.write {
		h.node.durable()
	}
	return outcome(err, nil)
}

// closeAll closes every handle.
func (r *runner) closeAll() error {
	for i, h := range r.w.handles {
		if h != nil {
			if err := r.close(i); err != nil {
				return fmt.Errorf("close %d: %w", i, err)
			}
		}
	}
	return nil
}

// remount closes everything and mounts anew, which empties every cache.
func (r *runner) remount() error {
	if err := r.closeAll(); err != nil {
		return err
	}
	if err := r.vol.Unmount(); err != nil {
		return err
	}
	return r.mounted(exact)
}

// kill ends the daemon and mounts anew.
func (r *runner) kill() error {
	if err := r.vol.Kill(); err != nil {
		return err
	}
	r.abandon()
	return r.mounted(adopt)
}

// abandon closes every handle, whatever comes of it.
func (r *runner) abandon() {
	for i, h := range r.w.handles {
		if h != nil {
			_ = unix.Close(h.fd)
			r.w.handles[i] = nil
		}
	}
}

func (r *runner) mounted(c check) (err error) {
	if r.dir, err = r.vol.Mount(); err != nil {
		return err
	}
	r.dir = filepath.Clean(r.dir)
	if err := r.verify(c); err != nil {
		return fmt.Errorf("mounted again: %w", err)
	}
	return nil
}
