package model

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
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
	case "close", "fsync", "fdatasync", "fstat", "read", "mapread", "write", "mapwrite", "ftruncate", "fallocate", "copy":
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

func (r *runner) onHandle(o op) error {
	h := r.w.handles[o.h]
	if h == nil {
		h = &handle{fd: -1}
	}
	bad := func(err error) error { return outcome(err, []string{"EBADF"}) }
	n := h.node
	switch o.verb {
	case "close":
		if n == nil {
			return bad(unix.Close(h.fd))
		}
		return r.close(o.h)
	case "fsync", "fdatasync":
		sync := unix.Fsync
		if o.verb == "fdatasync" {
			sync = unix.Fdatasync
		}
		if n == nil {
			return bad(sync(h.fd))
		}
		return r.settle(sync(h.fd), nil, n.durable)
	case "fstat":
		if n == nil {
			var st unix.Stat_t
			return bad(unix.Fstat(h.fd, &st))
		}
		return r.size(h)
	case "read":
		p := make([]byte, o.n)
		m, err := unix.Pread(h.fd, p, o.off)
		if !h.read {
			return bad(err)
		}
		// A read that meets an error after some bytes returns those; the next one tells.
		for more := m; err == nil && more > 0 && m < len(p); m += more {
			more, err = unix.Pread(h.fd, p[m:], o.off+int64(m))
			more = max(more, 0)
		}
		if err != nil {
			return outcome(err, nil)
		}
		return differ(p[:m], part(n.data, o.off, o.n), o.off)
	case "write":
		p := content(o.seed, o.n)
		m, err := unix.Pwrite(h.fd, p, o.off)
		if !h.write {
			return bad(err)
		}
		if h.append {
			o.off = int64(len(n.data))
		}
		err = r.settle(err, nil, func() { n.change(write(p, o.off)) })
		if err != nil {
			return err
		}
		if m < len(p) {
			return fmt.Errorf("wrote %d of %d bytes", m, len(p))
		}
		if h.sync {
			n.durable()
		}
		return r.size(h)
	case "mapread", "mapwrite":
		return r.mapped(o, h)
	case "ftruncate":
		err := unix.Ftruncate(h.fd, o.n)
		switch {
		case n == nil:
			return bad(err)
		case !h.write:
			return outcome(err, []string{"EINVAL"})
		}
		if err := r.settle(err, nil, func() { n.change(resize(o.n)) }); err != nil {
			return err
		}
		return r.size(h)
	case "fallocate":
		return r.fallocate(o, h)
	}
	return r.copy(o, h)
}

// part is what a read of n bytes at off gives.
func part(data []byte, off, n int64) []byte {
	size := int64(len(data))
	return data[min(off, size):min(off+n, size)]
}

// differ tells the first difference between what was read at off and what should have been.
func differ(got, want []byte, off int64) error {
	if bytes.Equal(got, want) {
		return nil
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Errorf("byte %d is %#02x, want %#02x (of %d bytes at %d)", off+int64(i), got[i], want[i], len(want), off)
		}
	}
	return fmt.Errorf("read %d bytes at %d, want %d", len(got), off, len(want))
}

// mapped reads or writes what of the range is in the file through a mapping.
func (r *runner) mapped(o op, h *handle) error {
	prot, populate, may := unix.PROT_READ, unix.MADV_POPULATE_READ, h.read
	if o.verb == "mapwrite" {
		prot, populate, may = unix.PROT_READ|unix.PROT_WRITE, unix.MADV_POPULATE_WRITE, h.read && h.write
	}
	base := o.off &^ (segment - 1)
	end := o.off + o.n
	if h.node != nil {
		end = min(end, int64(len(h.node.data)))
	}
	if end <= o.off {
		return nil
	}
	m, err := unix.Mmap(h.fd, base, int(end-base), prot, unix.MAP_SHARED)
	switch {
	case h.node == nil:
		return outcome(err, []string{"EBADF"})
	case !may:
		return outcome(err, []string{"EACCES"})
	case err != nil:
		return outcome(err, nil)
	}
	defer unix.Munmap(m)
	// Pages are brought in by a system call: a fault in Go code would keep the rest of this process from running, should the volume need it.
	if unix.Madvise(m, populate) == unix.EFAULT {
		return fmt.Errorf("page fault: %w", unix.EIO)
	}
	if o.verb == "mapread" {
		return differ(bytes.Clone(m[o.off-base:]), part(h.node.data, o.off, o.n), o.off)
	}
	p := content(o.seed, end-o.off)
	copy(m[o.off-base:], p)
	h.node.change(write(p, o.off))
	if o.flags == "sync" {
		return outcome(unix.Msync(m, unix.MS_SYNC), nil)
	}
	return nil
}

func (r *runner) fallocate(o op, h *handle) error {
	var mode uint32
	switch o.flags {
	case "plain":
	case "keep":
		mode = unix.FALLOC_FL_KEEP_SIZE
	case "punch":
		mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	case "zero":
		mode = unix.FALLOC_FL_ZERO_RANGE
	case "zerokeep":
		mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	default:
		return fmt.Errorf("model: bad mode %q", o.flags)
	}
	err := unix.Fallocate(h.fd, mode, o.off, o.n)
	if !h.write {
		return outcome(err, []string{"EBADF"})
	}
	edit := func(data []byte) []byte {
		if mode&^unix.FALLOC_FL_KEEP_SIZE != 0 {
			clear(part(data, o.off, o.n))
		}
		if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
			data = resize(max(int64(len(data)), o.off+o.n))(data)
		}
		return data
	}
	if err := r.settle(err, nil, func() { h.node.change(edit) }); err != nil {
		return err
	}
	return r.size(h)
}

func (r *runner) copy(o op, from *handle) error {
	to := r.w.handles[o.g]
	if to == nil {
		to = &handle{fd: -1}
	}
	var want []string
	var p []byte
	switch {
	case !from.read || !to.write || to.append:
		want = []string{"EBADF"}
	default:
		p = part(from.node.data, o.off, o.n)
		n := int64(len(p))
		if from.node == to.node && o.at+n > o.off && o.at < o.off+n {
			want = []string{"EINVAL"}
		}
	}
	in, out := o.off, o.at
	// The first call asks for everything, the next for what is left: the file may have grown by its own copy.
	done, ask := 0, int(o.n)
	for {
		m, err := unix.CopyFileRange(from.fd, &in, to.fd, &out, ask, 0)
		if err != nil || want != nil {
			return r.settle(err, want, func() { to.node.change(write(p, o.at)) })
		}
		done += m
		if ask = len(p) - done; ask <= 0 || m == 0 {
			break
		}
	}
	if done != len(p) {
		return fmt.Errorf("copied %d bytes, want %d", done, len(p))
	}
	if len(p) > 0 {
		to.node.change(write(p, o.at))
	}
	return r.size(to)
}

// A check says which content a file may have.
type check int

const (
	exact  check = iota // as predicted
	adopt               // as a kill may have left it; it is the prediction from then on
	either              // as a failed operation may have left it
)

// verify compares the whole tree.
func (r *runner) verify(c check) error {
	return r.verifyDir("", r.w.root, c)
}

func (r *runner) verifyDir(prefix string, dir *node, c check) error {
	entries, err := os.ReadDir(r.real(strings.TrimSuffix(prefix, "/")))
	if err != nil {
		return err
	}
	var got []string
	for _, e := range entries {
		got = append(got, short(e.Name()))
	}
	slices.Sort(got)
	if want := slices.Sorted(maps.Keys(dir.entries)); !slices.Equal(got, want) {
		return fmt.Errorf("entries of /%s: %v, want %v", prefix, got, want)
	}
	for _, name := range got {
		path, n := prefix+name, dir.entries[name]
		if err := r.verifyNode(path, n, c); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if n.kind == directory {
			if err := r.verifyDir(path+"/", n, c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *runner) verifyNode(path string, n *node, c check) error {
	if n.kind == file {
		data, err := os.ReadFile(r.real(path))
		if err != nil {
			return err
		}
		if c == exact {
			err = differ(data, n.data, 0)
		} else {
			err = n.survived(data)
		}
		if err != nil {
			return err
		}
		if c == adopt {
			n.data, n.past = data, nil
		}
		if c == either {
			// What stat says must be what a read finds.
			exactly := *n
			exactly.data = data
			n = &exactly
		}
	}
	if err := r.stat(path, n); err != nil {
		return err
	}
	if n.kind == symlink {
		return r.readlink(path, n)
	}
	return r.getattr(path, n)
}

func (r *runner) stat(path string, n *node) error {
	var st unix.Stat_t
	if err := unix.Lstat(r.real(path), &st); err != nil {
		return err
	}
	kind, size := byte(directory), st.Size
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		kind, size = file, int64(len(n.data))
	case unix.S_IFLNK:
		kind, size = symlink, int64(len(n.target))
	}
	switch {
	case kind != n.kind:
		return fmt.Errorf("kind %c, want %c", kind, n.kind)
	case st.Size != size:
		return fmt.Errorf("size %d, want %d", st.Size, size)
	case kind != directory && int(st.Nlink) != n.links:
		return fmt.Errorf("%d links, want %d", st.Nlink, n.links)
	case n.mode != 0 && st.Mode&0o7777 != n.mode:
		return fmt.Errorf("mode %#o, want %#o", st.Mode&0o7777, n.mode)
	}
	return nil
}

func (r *runner) readlink(path string, n *node) error {
	got, err := os.Readlink(r.real(path))
	if err == nil && got != n.target {
		err = fmt.Errorf("target of %d bytes, want %d", len(got), len(n.target))
	}
	return err
}

const attribute = "user.model"

func (r *runner) getattr(path string, n *node) error {
	var want []string
	if n.attr == "" {
		want = []string{"ENODATA"}
	}
	buf := make([]byte, 100)
	m, err := unix.Lgetxattr(r.real(path), attribute, buf)
	if err := outcome(err, want); err != nil {
		return fmt.Errorf("attribute: %w", err)
	}
	if got := string(buf[:max(m, 0)]); got != n.attr {
		return fmt.Errorf("attribute %q, want %q", got, n.attr)
	}
	return nil
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
