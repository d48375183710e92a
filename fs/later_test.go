package fs

import (
	"bytes"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/names"
)

// given makes a small file that is closed, and of which the kernel has all.
func (c client) given(name, content string) *node {
	c.b.Helper()
	n := c.nodes.get(c.small(name, []byte(content)))
	n.given = 1
	return n
}

// open opens n with flags and returns the handle.
func (c client) open(n *node, flags uint32) (handle uint64) {
	c.b.Helper()
	var out fuse.OpenOut
	c.ok(c.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: n.id}, Flags: flags}, &out))
	return out.Fh
}

func (c client) close(n *node, handle uint64) {
	c.Release(nil, &fuse.ReleaseIn{InHeader: fuse.InHeader{NodeId: n.id}, Fh: handle})
}

// read reads from n as the kernel does for an opener with a handle.
func (c client) read(n *node, handle uint64) (string, fuse.Status) {
	buf := make([]byte, 4096)
	r, s := c.Read(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: n.id}, Fh: handle, Size: uint32(len(buf))}, buf)
	if !s.Ok() {
		return "", s
	}
	b, s := r.Bytes(buf)
	return string(b), s
}

// holds fails unless n is read as content.
func (c client) holds(n *node, handle uint64, content string) {
	c.b.Helper()
	if got, s := c.read(n, handle); !s.Ok() || got != content {
		c.b.Errorf("read %q, %v; want %q", got, s, content)
	}
}

// isOpen fails unless the file n is open below, or is not.
func (c client) isOpen(n *node, want bool) {
	c.b.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	below := 0
	if want {
		below = 1
	}
	if got := c.journal.Status().Open; (n.open != nil) != want || got != below {
		c.b.Errorf("the file is open: %v (%d files of the journal), want %v", n.open != nil, got, want)
	}
}

// What the kernel has all of is opened below when the kernel asks for it, and not before; and then once for all.
func TestDeferredOpen(t *testing.T) {
	f := unmounted(t)
	c := client{f, t}
	n := c.given("file", "content")
	one, two := c.open(n, unix.O_RDONLY), c.open(n, unix.O_RDONLY)
	c.isOpen(n, false)
	if got := (&Server{fs: f}).Status().Open; one != deferred || two != deferred || got != 1 {
		t.Errorf("handles %d and %d, %d files that programs have open", one, two, got)
	}
	var attr fuse.AttrOut
	c.ok(c.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: n.id}}, &attr))
	c.ok(c.Flush(nil, &fuse.FlushIn{InHeader: fuse.InHeader{NodeId: n.id}, Fh: one}))
	c.close(n, two)
	c.isOpen(n, false)
	c.holds(n, one, "content")
	c.isOpen(n, true)
	three := c.open(n, unix.O_RDONLY) // is no deferred opener
	c.close(n, one)
	c.holds(n, three, "content")
	c.close(n, three)
	c.isOpen(n, false)
	if n.given != 1 || attr.Size != 7 {
		t.Errorf("given %d, size %d", n.given, attr.Size)
	}
	for what, ask := range map[string]func() fuse.Status{
		"LSEEK": func() fuse.Status {
			return c.Lseek(nil, &fuse.LseekIn{InHeader: fuse.InHeader{NodeId: n.id}, Fh: deferred, Whence: unix.SEEK_HOLE}, &fuse.LseekOut{})
		},
		"FSYNC": func() fuse.Status {
			return c.Fsync(nil, &fuse.FsyncIn{InHeader: fuse.InHeader{NodeId: n.id}, Fh: deferred})
		},
		"COPY_FILE_RANGE": func() fuse.Status {
			to := c.create("copy")
			defer c.remove("copy")
			defer c.Release(nil, &fuse.ReleaseIn{InHeader: fuse.InHeader{NodeId: to}})
			copied, s := c.CopyFileRange(nil, &fuse.CopyFileRangeIn{InHeader: fuse.InHeader{NodeId: n.id}, FhIn: deferred, NodeIdOut: to, Len: 7})
			if copied != 7 {
				t.Errorf("%d bytes were copied", copied)
			}
			return s
		},
	} {
		handle := c.open(n, unix.O_RDONLY)
		if s := ask(); handle != deferred || !s.Ok() {
			t.Errorf("%s by handle %d: %v", what, handle, s)
		}
		c.isOpen(n, true)
		c.close(n, handle)
		c.isOpen(n, false)
	}
}

// Who needs more than the page cache opens the file at once.
func TestNotDeferred(t *testing.T) {
	c := client{unmounted(t), t}
	n := c.given("file", "content")
	for range math.MaxUint8 - 1 {
		if c.open(n, unix.O_RDONLY) != deferred {
			t.Fatal("an opener is not deferred")
		}
	}
	n.mu.Lock()
	if n.deferred() != math.MaxUint8-1 {
		t.Errorf("%d deferred openers", n.deferred())
	}
	n.mu.Unlock()
	one := c.open(n, unix.O_RDONLY)
	c.isOpen(n, true)
	c.close(n, one)
	for range math.MaxUint8 - 1 {
		c.isOpen(n, true)
		c.close(n, deferred)
	}
	c.isOpen(n, false)
	for _, flags := range []uint32{unix.O_WRONLY, unix.O_RDWR, unix.O_RDONLY | unix.O_DIRECT} {
		handle := c.open(n, flags)
		c.isOpen(n, true)
		c.close(n, handle)
		c.isOpen(n, false)
		if handle == deferred {
			t.Errorf("flags %#x: deferred", flags)
		}
	}
	h := *c.vol.Header()
	c.vol.Header().PerFile = true
	handle := c.open(n, unix.O_RDONLY)
	*c.vol.Header() = h
	c.isOpen(n, true)
	c.close(n, handle)
	c.ok(c.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: fuse.InHeader{NodeId: n.id}, Valid: fuse.FATTR_SIZE}}, new(fuse.AttrOut)))
	handle = c.open(n, unix.O_DIRECT)
	if n.given != 0 || handle == deferred {
		t.Errorf("cut: handle %d, given %d", handle, n.given)
	}
	c.close(n, handle)
}

// No reader depends on a data key that may be forgotten: his file may lose its name when the key is not known any more.
func TestNotDeferredWhereKeysAreForgotten(t *testing.T) {
	k := newCMK(t)
	f := unmountedUnder(t, k)
	c := client{f, t}
	each := newVolume(t, k, true) // each of its files has a data key of its own
	defer each.Close()
	foreign := func() []byte {
		s := each.Supply()
		if err := s.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		raw, _, err := s.NewFile()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	n := c.given("file", "content")
	n.given = 0
	inRoot(t, f, "file", func(_ *dir, e names.Entry) {
		if err := os.WriteFile(filepath.Join(f.vol.Dir(), e.Disk), foreign(), 0o644); err != nil { // which has a header and nothing else
			t.Fatal(err)
		}
	})
	c.close(n, c.open(n, unix.O_RDONLY|unix.O_DIRECT)) // its data key is known now
	n.given = 1
	handle := c.open(n, unix.O_RDONLY)
	for range 3000 {
		if _, err := f.vol.OpenFile(t.Context(), foreign()); err != nil {
			t.Fatal(err)
		}
	}
	c.remove("file")
	c.isOpen(n, true)
	c.close(n, handle)
	c.isOpen(n, false)
	other := c.given("other", "content")
	later := c.open(other, unix.O_RDONLY)
	c.isOpen(other, true)
	c.close(other, later)
	if handle != deferred || later == deferred {
		t.Errorf("handle %d before, %d after", handle, later)
	}
}

// What happens to a file while its readers are deferred makes no difference to them.
func TestDeferredMeanwhile(t *testing.T) {
	for name, do := range map[string]func(c client, n *node) (content string){
		"removed": func(c client, n *node) string {
			c.remove("file")
			return "content"
		},
		"replaced": func(c client, n *node) string {
			c.small("other", []byte("other"))
			root := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
			c.ok(c.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: fuse.FUSE_ROOT_ID}, "other", "file"))
			return "content"
		},
		"renamed": func(c client, n *node) string {
			root := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
			c.ok(c.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: fuse.FUSE_ROOT_ID}, "file", "other"))
			c.small("file", []byte("new"))
			return "content"
		},
		"removed by the one name that is known": func(c client, n *node) string {
			inRoot(c.b.(*testing.T), c.FS, "file", func(d *dir, e names.Entry) {
				inRoot(c.b.(*testing.T), c.FS, "other", func(_ *dir, other names.Entry) {
					if err := unix.Linkat(d.fd, e.Disk, d.fd, other.Disk, 0); err != nil {
						c.b.Fatal(err)
					}
				})
			})
			c.remove("file")
			return "content"
		},
		"removed by one of two names": func(c client, n *node) string {
			c.ok(c.Link(nil, &fuse.LinkIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, Oldnodeid: n.id}, "other", new(fuse.EntryOut)))
			c.remove("file")
			return "content"
		},
		"replaced by one of two names": func(c client, n *node) string {
			root := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
			c.ok(c.Link(nil, &fuse.LinkIn{InHeader: root, Oldnodeid: n.id}, "other", new(fuse.EntryOut)))
			c.small("new", []byte("new"))
			c.ok(c.Rename(nil, &fuse.RenameIn{InHeader: root, Newdir: fuse.FUSE_ROOT_ID}, "new", "other"))
			c.remove("file")
			return "content"
		},
		"written": func(c client, n *node) string {
			writer := c.open(n, unix.O_RDWR)
			c.write(n.id, []byte("changed"), 0)
			c.close(n, writer)
			return "changed"
		},
		"cut": func(c client, n *node) string {
			in := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: fuse.InHeader{NodeId: n.id}, Valid: fuse.FATTR_SIZE, Size: 4}}
			c.ok(c.SetAttr(nil, &in, new(fuse.AttrOut)))
			return "cont"
		},
		"read by others": func(c client, n *node) string {
			reader := c.open(n, unix.O_RDONLY|unix.O_DIRECT)
			c.holds(n, reader, "content")
			c.close(n, reader)
			return "content"
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := client{unmounted(t), t}
			n := c.given("file", "content")
			one, two := c.open(n, unix.O_RDONLY), c.open(n, unix.O_RDONLY)
			content := do(c, n)
			c.holds(n, one, content)
			c.close(n, one)
			c.holds(n, two, content)
			c.close(n, two)
			c.isOpen(n, name == "replaced") // see keep
			c.Forget(n.id, 1000)
			if got := c.journal.Status().Open; got != 0 {
				t.Errorf("%d files are open when the kernel has forgotten it", got)
			}
		})
	}
}

// Attributes are told while a file loses its name.
func TestDeferredWhileRemoved(t *testing.T) {
	c := client{unmounted(t), t}
	in := func(n *node) fuse.InHeader { return fuse.InHeader{NodeId: n.id} }
	for range 300 {
		n := c.given("file", "content")
		handle := c.open(n, unix.O_RDONLY)
		var asked sync.WaitGroup
		for _, ask := range []func() fuse.Status{
			func() fuse.Status { return c.GetAttr(nil, &fuse.GetAttrIn{InHeader: in(n)}, new(fuse.AttrOut)) },
			func() fuse.Status { return c.Statx(nil, &fuse.StatxIn{InHeader: in(n)}, new(fuse.StatxOut)) },
			func() fuse.Status {
				h := in(n)
				_, s := c.ListXAttr(nil, &h, make([]byte, 256))
				return s
			},
			func() fuse.Status {
				_, s := c.read(n, handle)
				return s
			},
		} {
			asked.Go(func() {
				if s := ask(); !s.Ok() {
					t.Error(s)
				}
			})
		}
		c.remove("file")
		other := c.small("file", nil)
		asked.Wait()
		c.close(n, handle)
		c.isOpen(n, false)
		c.Forget(n.id, 1000)
		c.remove("file")
		c.Forget(other, 1000)
	}
}

// A directory that is closed to its owner does not close the files in it to those who have opened them.
func TestDeferredInClosedDirectory(t *testing.T) {
	root := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
	acl := func(owner byte) []byte { // of the owner, the group and all others
		return []byte{2, 0, 0, 0, 1, 0, owner, 0, 255, 255, 255, 255, 4, 0, 7, 0, 255, 255, 255, 255, 32, 0, 7, 0, 255, 255, 255, 255}
	}
	mode := func(c client, mode uint32) {
		c.ok(c.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: root, Valid: fuse.FATTR_MODE, Mode: mode}}, new(fuse.AttrOut)))
	}
	for _, test := range []struct {
		name    string
		closes  bool
		closing func(c client)
	}{
		{"mode 677", true, func(c client) { mode(c, 0o677) }},
		{"mode 100", false, func(c client) { mode(c, 0o100) }},
		{"ACL rw-", true, func(c client) { c.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: root}, aclAccessName, acl(6)) }}, // which not all file systems have
		{"ACL --x", false, func(c client) { c.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: root}, aclAccessName, acl(1)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := unmounted(t)
			f.chown = false // as if it were not run by root
			c := client{f, t}
			n := c.given("file", "content")
			handle := c.open(n, unix.O_RDONLY)
			test.closing(c)
			c.isOpen(n, test.closes)
			mode(c, 0o700)
			c.holds(n, handle, "content")
			c.close(n, handle)
			c.isOpen(n, false)
		})
	}
}

// A file keeps its name if it cannot be opened for its deferred readers just now, and loses it if they could never read it.
func TestDeferredCannotBeOpened(t *testing.T) {
	f := unmounted(t)
	c := client{f, t}
	var logged bytes.Buffer
	f.log = slog.New(slog.NewTextHandler(&logged, nil))
	n := c.given("file", "content")
	root := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
	handle := c.open(n, unix.O_RDONLY)

	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	_, read := c.read(n, handle)
	removed := c.Unlink(nil, &root, "file")
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if read != fuse.Status(unix.EMFILE) || removed != fuse.Status(unix.EMFILE) {
		t.Errorf("without a descriptor: read %v, removed %v", read, removed)
	}
	c.holds(n, handle, "content")
	c.close(n, handle)

	handle = c.open(n, unix.O_RDONLY)
	if err := f.at(n, func(_ *dir, e names.Entry) error {
		return os.WriteFile(filepath.Join(f.vol.Dir(), e.Disk), []byte("damage"), 0)
	}); err != nil {
		t.Fatal(err)
	}
	if _, s := c.read(n, handle); s != fuse.EIO || !strings.Contains(logged.String(), "cannot open file") || !strings.Contains(logged.String(), "plaintext=/file") {
		t.Errorf("damaged: %v, logged %s", s, &logged)
	}
	c.remove("file")
	if _, s := c.read(n, handle); s.Ok() {
		t.Error("damaged and removed: it is read")
	}
	c.close(n, handle)
	c.isOpen(n, false)
}

// A volume that is stopped gives deferred readers nothing, and syncs for them what was written before.
func TestDeferredAndStopped(t *testing.T) {
	f := unmounted(t)
	c := client{f, t}
	n := c.given("file", "content")
	in := fuse.InHeader{NodeId: n.id}
	handle := c.open(n, unix.O_RDONLY)
	f.stopped.Store(true)
	if _, s := c.read(n, handle); s != fuse.EACCES {
		t.Errorf("read: %v", s)
	}
	if s := c.Open(nil, &fuse.OpenIn{InHeader: in}, new(fuse.OpenOut)); s != fuse.EACCES {
		t.Errorf("open: %v", s)
	}
	c.isOpen(n, false)
	c.ok(c.Fsync(nil, &fuse.FsyncIn{InHeader: in, Fh: handle}))
	f.stopped.Store(false)
	c.holds(n, handle, "content")
	c.close(n, handle)
	c.isOpen(n, false)
}

// Nothing is left open when the mount is gone, whoever has not closed what.
func TestDeferredAndGone(t *testing.T) {
	f := unmounted(t)
	c := client{f, t}
	n, other := c.given("file", "content"), c.given("other", "content")
	handle := c.open(n, unix.O_RDONLY)
	c.open(other, unix.O_RDONLY)
	c.holds(n, handle, "content")
	c.isOpen(n, true)
	f.nodes.each(f.forceClose)
	c.isOpen(n, false)
	c.close(n, handle)
	c.isOpen(n, false)
}

// A file whose one known name has just been removed is not opened later: it could not be found.
func TestDeferredNeedsName(t *testing.T) {
	f := unmounted(t)
	c := client{f, t}
	n := c.given("file", "content")
	inRoot(t, f, "file", func(d *dir, e names.Entry) {
		inRoot(t, f, "other", func(_ *dir, other names.Entry) {
			if err := unix.Linkat(d.fd, e.Disk, d.fd, other.Disk, 0); err != nil {
				t.Fatal(err)
			}
		})
		_, last, err := f.removing(d, e.Disk, link{d.node, "file"}, false, func() error { return unix.Unlinkat(d.fd, e.Disk, 0) })
		if err != nil || last {
			t.Fatalf("the last name: %v, %v", last, err)
		}
		if s := c.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: n.id}}, new(fuse.OpenOut)); s != fuse.Status(unix.ESTALE) {
			t.Errorf("opened without a name: %v", s)
		}
	})
}
