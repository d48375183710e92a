package model

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
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
