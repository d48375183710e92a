package integration

import (
	"os"
	"testing"
)

// TestFallocateLosesSetID has somebody without privileges allocate in his own file, in each mode: the set-ID bits go, as they do with a write. Those of root stay.
func TestFallocateLosesSetID(t *testing.T) {
	plain := newVolume(t).mount(t, "allow_other")
	must(t, os.Chmod(plain, 0o755))
	got := shell(t, plain, `head -c 9000 /dev/zero > f; chown 1234:1235 f
		as() { setpriv --reuid=1234 --regid=1235 --clear-groups "$@"; }
		for how in "-l 20000" "-n -l 50000" "-p -l 4096" "-z -l 100"; do
			for mode in 6755 6644; do chmod $mode f; as fallocate -o 0 $how f; stat -c %a f; done
		done
		chmod 6755 f; fallocate -l 30000 f; stat -c %a f`)
	// Without a bit for the group to execute it, set-group-ID does not make a program run as the group.
	const each = "755\n2644\n"
	if want := each + each + each + each + "6755\n"; got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

// TestACLLosesSetGID has the owner of files and directories of a group that he is not in set their ACLs: the set-group-ID bit goes, as it does with chmod. It stays for members of the group, for root, and
// where the ACL is the default one.
func TestACLLosesSetGID(t *testing.T) {
	plain := newVolume(t).mount(t, "allow_other")
	must(t, os.Chmod(plain, 0o755))
	got := shell(t, plain, `touch f; mkdir d; chown 1234:77 f d
		as() { setpriv --reuid=1234 --regid=1235 "$@"; }
		for n in f d; do
			try() { chmod 2755 $n; "$@" $n; stat -c %a $n; }
			try as --clear-groups setfacl -m u:1000:r
			exec 5<$n; try as --clear-groups setfacl -m u:1000:rx; exec 5<&-
			try as --clear-groups setfacl -x u:1000
			try as --groups 77 setfacl -m u:1000:r
			try setfacl -m u:1000:rx
			try as --clear-groups setfacl -b
		done
		try as --clear-groups setfacl -m d:u:1000:r`)
	const each = "755\n755\n755\n2755\n2755\n755\n"
	if want := each + each + "2755\n"; got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}
