package integration

import "testing"

// TestOvermount mounts a volume over another file system, another file system over a volume, and a volume at a second place: each time it is the topmost mount
// that commands are about, and no other file system is unmounted.
func TestOvermount(t *testing.T) {
	v := newVolume(t)
	got := namespaced(t, v.dir, `
		mkdir other
		mount --bind other plain
		ahead=/sys/class/bdi/$(stat -c %Hd:%Ld plain)/read_ahead_kb
		before=$(cat $ahead)
		kmsfs mount --log $PWD/log cipher plain
		test $(cat $ahead) = $before && echo read-ahead below is left alone
		kmsfs umount plain
		umount plain

		mount -t tmpfs below plain
		kmsfs mount --log $PWD/log cipher plain
		echo hello > plain/f
		kmsfs status plain | grep -c "ciphertext $PWD/cipher"
		kmsfs umount plain
		ls -A plain
		umount plain

		kmsfs mount --log $PWD/log cipher plain
		mount -t tmpfs above plain
		kmsfs umount plain 2> reason && echo unmounted || echo refused $?
		grep -o 'is a tmpfs mount, not one of kmsfs' reason
		umount plain
		cat plain/f

		mkdir second
		mount --bind plain second
		kmsfs umount second
		cat plain/f
		kmsfs umount plain`)
	if want := "read-ahead below is left alone\n1\nrefused 8\nis a tmpfs mount, not one of kmsfs\nhello\nhello\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
