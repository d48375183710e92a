package fs

import (
	"runtime"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The umask does not count where there is a default ACL, be the directory on its way to another place just then.
func TestModeWhileDirectoryMoves(t *testing.T) {
	f := unmounted(t)
	c := client{f, t}
	root := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
	var made fuse.EntryOut
	c.ok(c.Mkdir(nil, &fuse.MkdirIn{InHeader: root, Mode: 0o755}, "dir", &made))
	n := f.nodes.get(made.NodeId)
	acl := []byte("\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x05\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff")
	in := fuse.SetXAttrIn{InHeader: fuse.InHeader{NodeId: n.id}}
	want := uint32(0o666)
	if s := c.SetXAttr(nil, &in, aclDefaultName, acl); s == fuse.Status(unix.EOPNOTSUPP) {
		want = 0o600 // there are no ACLs below
	} else {
		c.ok(s)
	}
	f.dirs.remove(n) // so that it is found by its name
	from, to := link{f.nodes.root, "dir"}, link{f.nodes.root, "moved"}
	f.renames.Lock()
	f.nodes.moved(n, from, to)
	mode := make(chan uint32)
	go func() { mode <- f.mode(n.id, 0o666, 0o077) }()
	for range 1000 {
		runtime.Gosched()
	}
	f.nodes.moved(n, to, from)
	f.renames.Unlock()
	if m := <-mode; m != want {
		t.Errorf("mode %o, want %o", m, want)
	}
}
