package fs

import (
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// TestACLWithoutFlags sets an ACL as kernels before Linux 5.14 ask for it: where later ones tell whether the set-group-ID bit goes, the name begins.
func TestACLWithoutFlags(t *testing.T) {
	const short = int(unsafe.Offsetof(fuse.SetXAttrIn{}.SetXAttrFlags))
	acl := []byte{ // u::rwx, u:1000:r, g::rx, m::rx, o::rx
		2, 0, 0, 0,
		1, 0, 7, 0, 255, 255, 255, 255,
		2, 0, 4, 0, 232, 3, 0, 0,
		4, 0, 5, 0, 255, 255, 255, 255,
		16, 0, 5, 0, 255, 255, 255, 255,
		32, 0, 5, 0, 255, 255, 255, 255,
	}
	for _, tells := range []bool{false, true} {
		f := unmounted(t)
		f.tellsACL = tells
		in := fuse.MknodIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID, Caller: fuse.Caller{Owner: fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}}}, Mode: unix.S_IFREG | 0o2755}
		var made fuse.EntryOut
		if s := f.Mknod(nil, &in, "f", &made); !s.Ok() {
			t.Fatal(s)
		}
		var request fuse.SetXAttrIn
		raw := unsafe.Slice((*byte)(unsafe.Pointer(&request)), int(unsafe.Sizeof(request)))
		copy(raw[short:], aclAccessName)
		request.NodeId = made.NodeId
		if s := f.SetXAttr(nil, &request, aclAccessName, acl); !s.Ok() {
			t.Fatal(s)
		}
		var out fuse.AttrOut
		if s := f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: made.NodeId}}, &out); !s.Ok() {
			t.Fatal(s)
		}
		if kept := out.Mode&unix.S_ISGID != 0; kept == tells {
			t.Errorf("with flags: %v, mode is %04o", tells, out.Mode&07777)
		}
	}
}
