package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFullVolume changes the keys of a volume on a disk that is full, and then on one that is read-only: each command says so, and leaves no file behind.
func TestFullVolume(t *testing.T) {
	v := newVolume(t)
	second := filepath.Join(v.dir, "second")
	v.ok(t, "key", "new", second)
	shell(t, v.dir, "mv cipher before; "+fullDisk[:strings.Index(fullDisk, "dd if=")]+"\ncp -a before disk/cipher")
	defer shell(t, v.dir, "umount -l disk")
	cipher := filepath.Join(v.dir, "disk/cipher")
	files := func() string {
		entries, err := os.ReadDir(filepath.Join(cipher, ".kmsfs"))
		must(t, err)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	}
	commands := [][]string{{"rewrap", "--add", "local:" + second}, {"rotate"}, {"rotate", "--re-encrypt"}}
	for _, state := range []struct{ make, says string }{
		{fullDisk[strings.Index(fullDisk, "dd if="):], "no space left on device"},
		{"rm disk/fill; touch disk/cipher/.kmsfs/volume.new; mount -o remount,ro disk", "read-only file system"}, // with what a kill leaves
	} {
		shell(t, v.dir, state.make)
		before := files()
		for _, c := range commands {
			v.refused(t, exitIO, []string{cipher, state.says}, append(c, cipher)...)
		}
		if after := files(); strings.Contains(after, "volume.new") != strings.Contains(before, "volume.new") {
			t.Errorf("%s: %s, was %s", state.says, after, before)
		}
	}
}
