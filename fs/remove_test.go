package fs

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/names"
)

// inRoot calls fn with the root directory and the stored form of name.
func inRoot(t *testing.T, f *FS, name string, fn func(d *dir, e names.Entry)) {
	t.Helper()
	if err := f.inDir(f.nodes.root, name, func(d *dir, e names.Entry) error {
		fn(d, e)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// The file system below may give the inode number of what is removed to a new file before the request that removes it is over, and the new file is another node.
func TestInodeNumberIsFreeAtOnce(t *testing.T) {
	f := unmounted(t)
	c := client{f, t}
	root := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
	open := f.nodes.get(c.create("open"))
	closed := f.nodes.get(c.small("closed", []byte("content")))
	var made fuse.EntryOut
	c.ok(c.Mkdir(nil, &fuse.MkdirIn{InHeader: root, Mode: 0o755}, "dir", &made))
	for _, at := range []struct {
		name string
		n    *node
	}{{"open", open}, {"closed", closed}, {"dir", f.nodes.get(made.NodeId)}} {
		name, n := at.name, at.n
		inRoot(t, f, name, func(d *dir, e names.Entry) {
			if _, _, err := f.removing(d, e.Disk, link{d.node, name}, false, func() error { return unix.EIO }); err != unix.EIO {
				t.Errorf("%s: removed: %v", name, err)
			}
			if f.nodes.find(n.key()) != n {
				t.Errorf("%s is not found after it could not be removed", name)
			}
			removed, last, err := f.removing(d, e.Disk, link{d.node, name}, false, func() error {
				if f.nodes.find(n.key()) != nil {
					t.Errorf("%s is found by its inode while that goes", name)
				}
				flags := 0
				if n.kind == unix.DT_DIR {
					flags = unix.AT_REMOVEDIR
				}
				return unix.Unlinkat(d.fd, e.Disk, flags)
			})
			if err != nil || removed != n || !last {
				t.Errorf("%s: removed %v, the last name: %v, %v", name, removed, last, err)
			}
			f.removed(n, last)
		})
		if n == open {
			c.Release(nil, &fuse.ReleaseIn{InHeader: fuse.InHeader{NodeId: n.id}})
		}
		var st unix.Stat_t
		if err := f.stat(n, &st); err != nil || st.Nlink != 0 {
			t.Errorf("%s: %d links, %v", name, st.Nlink, err)
		}
	}
}

// A file that is closed before its request for a link is over has its new name already.
func TestLinkedAndClosed(t *testing.T) {
	f := unmounted(t)
	c := client{f, t}
	n := f.nodes.get(c.create("one"))
	inRoot(t, f, "two", func(d *dir, e names.Entry) {
		two := link{d.node, "two"}
		if err := f.linkNode(n, d, e.Disk, two); err != nil {
			t.Fatal(err)
		}
		c.remove("one")
		c.Release(nil, &fuse.ReleaseIn{InHeader: fuse.InHeader{NodeId: n.id}})
		if at, ok := f.nodes.where(n); !ok || at != two {
			t.Errorf("the name is %q", at.name)
		}
		if f.nodes.find(n.key()) != n {
			t.Error("it is not found by its inode")
		}
	})
}

// Nothing of a directory is held open when the kernel has forgotten it: it may be removed later, as another node, and its space is to be free then.
func TestForgottenDirectoryIsClosed(t *testing.T) {
	f := unmounted(t)
	c := client{f, t}
	in := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
	var made [2]fuse.EntryOut
	for i := range made {
		c.ok(c.Mkdir(nil, &fuse.MkdirIn{InHeader: in, Mode: 0o755}, "dir", &made[i]))
		in.NodeId = made[i].NodeId
	}
	outer, inner := f.nodes.get(made[0].NodeId), f.nodes.get(made[1].NodeId)
	for _, n := range []*node{outer, inner} {
		d, err := f.dir(n)
		if err != nil {
			t.Fatal(err)
		}
		l, err := f.listings.take(d, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.listings.keep(l)
		f.dirs.release(d)
	}
	f.Forget(outer.id, 1)
	if len(f.dirs.open) != 3 || len(f.listings.lru) != 2 {
		t.Fatalf("%d directories and %d listings are open while all are in use", len(f.dirs.open), len(f.listings.lru))
	}
	f.Forget(inner.id, 1)
	if len(f.dirs.open) != 1 || len(f.listings.lru) != 0 {
		t.Errorf("%d directories and %d listings are open, want the root alone", len(f.dirs.open), len(f.listings.lru))
	}
}
