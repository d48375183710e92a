package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// TestRotateCalls counts the calls of a rotated volume's life: two clouds, with all kinds of CMKs.
func TestRotateCalls(t *testing.T) {
	const files = 300
	cmks := cloudCMKs()
	cmks[1].Spec = "RSA_2048"
	c := newClouds(t, emulator.Options{CMKs: cmks})
	c.init(t)
	counts := func(what string, made, wrapped, unwrapped int) {
		t.Helper()
		m, w := c.Count("", "GenerateDataKey", "create-datakey"), c.Count("", "Encrypt", "encrypt-datakey")
		u := c.asked("") - m - w
		if m != made || w != wrapped || u != unwrapped {
			t.Errorf("%s: %d data keys made, %d wraps, %d unwraps, want %d, %d and %d: %+v", what, m, w, u, made, wrapped, unwrapped, c.Calls())
		}
	}
	write := func(prefix string) {
		t.Helper()
		shell(t, c.plain, fmt.Sprintf(`for i in $(seq %d); do echo "content $i" > %s$i; done`, files, prefix))
	}
	c.mountUnhurried(t)
	write("a")
	c.ResetCalls()
	c.rotate(t)
	counts("rotation of a mounted volume", 1, 2, 0)
	if n := c.Count(""); n != 3 { // what is known of the CMKs is not asked again
		t.Errorf("rotation of a mounted volume: %+v", c.Calls())
	}
	c.ResetCalls()
	write("b")
	counts("new files", 0, 0, 0)
	c.umount(t)
	for range 5 { // on a slow machine a second CMK is asked beside one that has not answered
		c.ResetCalls()
		c.rotate(t)
		if c.asked("") == 1+2+2 {
			break
		}
	}
	counts("rotation", 1, 2, 2)
	c.mountUnhurried(t)
	counts("mount", 0, 0, 2)
	write("c")
	shell(t, c.plain, "cat a* c* > /dev/null")
	counts("files under the volume's own data keys", 0, 0, 2)
	shell(t, c.plain, "cat b* > /dev/null; cat b* > /dev/null")
	if !c.hurried(t) {
		counts("files under an older one", 0, 0, 3)
	}
	c.umount(t)

	// All or nothing.
	before := shell(t, c.dir, "md5sum cipher/.kmsfs/current* cipher/.kmsfs/volume* config/volumes/*")
	for _, cmk := range c.cmks {
		if strings.Contains(cmk, "huawei:kms:cn-north-4") {
			continue // wraps without a call
		}
		must(t, c.SetState(cmk, emulator.Disabled))
		c.refused(t, 6, []string{cmk, "disabled"}, "rotate", c.cipher)
		must(t, c.SetState(cmk, emulator.Enabled))
	}
	c.refused(t, 6, []string{c.cmks[1], c.cmks[2], c.cmks[3], "--cmk"}, "rotate", "--cmk", c.cmks[0], c.cipher)
	c.rotate(t, "--dry-run")
	if after := shell(t, c.dir, "md5sum cipher/.kmsfs/current* cipher/.kmsfs/volume* config/volumes/*"); after != before {
		t.Errorf("something has changed:\n%s\nbefore:\n%s", after, before)
	}
	// Each CMK alone opens it, and a rewrap wraps each data key once.
	for _, cmk := range c.cmks {
		c.ResetCalls()
		c.mount(t, "cmk="+cmk)
		if got := shell(t, c.plain, "cat a1 b1 c1"); got != strings.Repeat("content 1\n", 3) {
			t.Errorf("%s: read %q", cmk, got)
		}
		c.umount(t)
		if c.asked(cmk) != 3 || c.asked("") != 3 {
			t.Errorf("%s: %+v", cmk, c.Calls())
		}
	}
	c.ok(t, "rewrap", "--remove", c.cmks[2], c.cipher)
	c.ResetCalls()
	c.ok(t, "rewrap", "--add", c.cmks[2], c.cipher)
	if n := c.Count("", "Encrypt", "encrypt-datakey"); n != 3 {
		t.Errorf("rewrap: %d wraps, want one for each data key: %+v", n, c.Calls())
	}
	// The check of CMKs looks at the data key of new files, too.
	c.ok(t, "keyring", "check", c.cipher)
	path := filepath.Join(c.cipher, ".kmsfs/current")
	raw, err := os.ReadFile(path)
	must(t, err)
	raw[bytes.Index(raw, []byte(c.cmks[0]))+len(c.cmks[0])+50] ^= 1 // in what the first CMK has wrapped
	must(t, os.WriteFile(path, raw, 0o600))
	if r := c.run(t, "keyring", "check", c.cipher); r.code != 6 || !strings.Contains(r.stdout, "does not authenticate") || !strings.Contains(r.stdout, "is not what the CMK wrapped") {
		t.Errorf("keyring check: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}
