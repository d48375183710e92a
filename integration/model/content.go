package model

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"
)

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
	case "drop":
		err := unix.Fadvise(h.fd, 0, 0, unix.FADV_DONTNEED)
		if n == nil {
			return bad(err)
		}
		return outcome(err, nil)
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
