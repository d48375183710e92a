package model

import (
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// onPath does the operations that take paths alone.
func (r *runner) onPath(o op) error {
	p, errno := r.w.find(o.path)
	real := r.real(o.path)
	var want []string
	refuse := func(when bool, errno string) {
		if when && errno != "" {
			want = append(want, errno)
		}
	}
	refuse(true, errno)
	n := p.node
	there := errno == "" && n != nil
	is := func(kind byte) bool { return there && n.kind == kind }
	switch o.verb {
	case "mkdir", "symlink":
		refuse(there, "EEXIST")
	case "rename", "link":
	default:
		refuse(errno == "" && !there, "ENOENT")
	}

	switch o.verb {
	case "rename", "link":
		return r.twoPaths(o, p, want)
	case "mkdir":
		return r.settle(unix.Mkdir(real, 0o755), want, func() { p.put(&node{kind: directory, entries: map[string]*node{}}) })
	case "symlink":
		to := target(o.seed)
		return r.settle(unix.Symlink(to, real), want, func() { p.put(&node{kind: symlink, target: to}) })
	case "unlink":
		refuse(is(directory), "EISDIR")
		return r.settle(unix.Unlink(real), want, func() { p.remove() })
	case "rmdir":
		refuse(there && !is(directory), "ENOTDIR")
		refuse(is(directory) && len(n.entries) > 0, "ENOTEMPTY")
		return r.settle(unix.Rmdir(real), want, func() { p.remove() })
	case "truncate":
		refuse(is(directory), "EISDIR")
		refuse(is(symlink), "ENOENT")
		err := r.settle(unix.Truncate(real, o.n), want, func() { n.change(resize(o.n)) })
		if err != nil || want != nil {
			return err
		}
		if !r.w.isOpen(n) {
			n.durable()
		}
		return r.stat(o.path, n)
	case "stat":
		if want != nil {
			return outcome(unix.Lstat(real, new(unix.Stat_t)), want)
		}
		return r.stat(o.path, n)
	case "readlink":
		refuse(there && !is(symlink), "EINVAL")
		if want != nil {
			_, err := os.Readlink(real)
			return outcome(err, want)
		}
		return r.readlink(o.path, n)
	case "list", "syncdir":
		refuse(there && !is(directory), "ENOTDIR")
		return r.openDir(o, n, want)
	case "chmod":
		refuse(is(symlink), "ENOENT")
		return r.settle(unix.Chmod(real, uint32(o.n)), want, func() { n.mode = uint32(o.n) })
	case "setattr":
		refuse(is(symlink), "EPERM")
		return r.settle(unix.Lsetxattr(real, attribute, []byte(o.to), 0), want, func() { n.attr = o.to })
	case "getattr":
		if want != nil {
			_, err := unix.Lgetxattr(real, attribute, make([]byte, 100))
			return outcome(err, want)
		}
		return r.getattr(o.path, n)
	}
	return fmt.Errorf("model: bad operation %q", o.verb)
}

// openDir lists or syncs a directory.
func (r *runner) openDir(o op, n *node, want []string) error {
	fd, err := unix.Open(r.real(o.path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err := outcome(err, want); err != nil || want != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), o.path)
	defer d.Close()
	if o.verb == "syncdir" {
		return d.Sync()
	}
	got, err := d.Readdirnames(0)
	if err != nil {
		return err
	}
	for i := range got {
		got[i] = short(got[i])
	}
	slices.Sort(got)
	if want := slices.Sorted(maps.Keys(n.entries)); !slices.Equal(got, want) {
		return fmt.Errorf("entries %v, want %v", got, want)
	}
	return nil
}

// twoPaths renames or links. Where more than one thing is wrong, the kernel may name any of them.
func (r *runner) twoPaths(o op, from place, want []string) error {
	to, errno := r.w.find(o.to)
	refuse := func(when bool, errno string) {
		if when && errno != "" {
			want = append(want, errno)
		}
	}
	refuse(true, errno)
	bothFound := want == nil
	refuse(from.dir != nil && from.node == nil, "ENOENT")
	old, target := from.node, to.node
	if o.verb == "link" {
		refuse(bothFound && target != nil, "EEXIST")
		refuse(old != nil && old.kind == directory, "EPERM")
		err := r.settle(unix.Link(r.real(o.path), r.real(o.to)), want, func() { to.put(old) })
		if err != nil || want != nil {
			return err
		}
		return r.stat(o.to, old)
	}

	var bits uint
	exchange := o.flags == "exchange"
	switch o.flags {
	case "plain":
	case "noreplace":
		bits = unix.RENAME_NOREPLACE
	case "exchange":
		bits = unix.RENAME_EXCHANGE
	default:
		return fmt.Errorf("model: bad flag %q", o.flags)
	}
	if bothFound && old != nil {
		refuse(o.flags == "noreplace" && target != nil, "EEXIST")
		refuse(exchange && target == nil, "ENOENT")
		refuse(old.kind == directory && within(to.dir, old), "EINVAL")
		above := target != nil && target.kind == directory && within(from.dir, target)
		refuse(above && exchange, "EINVAL")
		refuse(above && !exchange, "ENOTEMPTY")
		if target != nil && target != old && !exchange {
			refuse(old.kind == directory && target.kind != directory, "ENOTDIR")
			refuse(old.kind != directory && target.kind == directory, "EISDIR")
			refuse(target.kind == directory && len(target.entries) > 0, "ENOTEMPTY")
		}
	}
	err := unix.Renameat2(unix.AT_FDCWD, r.real(o.path), unix.AT_FDCWD, r.real(o.to), bits)
	return r.settle(err, want, func() {
		switch {
		case old == target:
		case exchange:
			from.dir.entries[from.name], to.dir.entries[to.name] = target, old
		default:
			if target != nil {
				to.remove()
			}
			delete(from.dir.entries, from.name)
			to.dir.entries[to.name] = old
		}
	})
}
