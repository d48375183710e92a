package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAttackLinksDirectory puts a symbolic link in the place of the directory of long targets: nothing is read, made or removed where it leads.
func TestAttackLinksDirectory(t *testing.T) {
	v := newVolume(t)
	long := strings.Repeat("x/", 2000)
	must(t, os.Symlink(long, filepath.Join(v.mount(t), "before")))
	v.umount(t)
	elsewhere := t.TempDir()
	links := filepath.Join(v.cipher, ".kmsfs/links")
	must(t, os.Rename(links, filepath.Join(elsewhere, "links")))
	must(t, os.Symlink(filepath.Join(elsewhere, "links"), links))
	names := func() string { return shell(t, elsewhere, "ls links") }
	found := names()

	plain := v.mount(t)
	if target, err := os.Readlink(filepath.Join(plain, "before")); err == nil {
		t.Errorf("a target of %d bytes was read there", len(target))
	}
	if err := os.Symlink(long, filepath.Join(plain, "after")); err == nil {
		t.Error("a long target was stored")
	}
	must(t, os.Symlink("short", filepath.Join(plain, "short")))
	must(t, os.Remove(filepath.Join(plain, "before")))
	v.umount(t)
	if got := names(); got != found || found == "" {
		t.Errorf("there is %q now, and was %q", got, found)
	}
}
