package integration

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A rotationOfAll is what kmsfs rotate --re-encrypt --json prints.
type rotationOfAll struct {
	rotation
	Resumed      bool
	Reencryption reencrypted `json:"re_encryption"`
}

// rotateAll rotates the data key of all files, and expects an exit code.
func (v *volume) rotateAll(t testing.TB, code int, args ...string) (r rotationOfAll) {
	t.Helper()
	got := v.run(t, append(append([]string{"rotate", "--re-encrypt", "--json"}, args...), v.cipher)...)
	if got.code != code {
		t.Fatalf("exit code %d, want %d: %s", got.code, code, got.stderr)
	}
	must(t, json.Unmarshal([]byte(got.stdout), &r))
	return r
}

// TestRotateAll gives all files of a volume another data key, and again: what is complete is not gone on with.
func TestRotateAll(t *testing.T) {
	v := newVolume(t, "--plaintext-names")
	fill(t, v.mount(t), 30)
	v.umount(t)
	want := tree(t, v.mount(t)) + links(t, v.plain)
	metadata, noted := shell(t, v.cipher, "ls .kmsfs"), v.record(t)
	v.refused(t, 7, []string{v.plain, "unmount it first"}, "rotate", "--re-encrypt", v.cipher)
	if got := shell(t, v.cipher, "ls .kmsfs"); got != metadata || v.record(t) != noted {
		t.Errorf("refused, but changed: %s", got)
	}
	v.umount(t)
	before := snapshot(t, v.dir, false)
	dry := v.rotateAll(t, 0, "--dry-run")
	if r := dry.Reencryption; dry.Generation != 1 || !dry.DryRun || dry.Resumed || r.Files == 0 || r.Reencrypted != r.Files {
		t.Errorf("%+v", dry)
	}
	for path, is := range snapshot(t, v.dir, false) {
		if before[path] != is {
			t.Errorf("a dry run changed %s", path)
		}
	}
	for generation := 1; generation <= 2; generation++ {
		r := v.rotateAll(t, 0)
		if r.Generation != generation || r.Resumed || r.DryRun || r.Reencryption.Reencrypted != dry.Reencryption.Reencrypted || len(r.CMKs) != 1 {
			t.Errorf("%+v, want %d files and generation %d", r, dry.Reencryption.Reencrypted, generation)
		}
		if keys := v.keyIDs(t); len(keys) != 1 {
			t.Errorf("%v", keys)
		}
	}
	if strings.Contains(v.record(t), "re-encryption") {
		t.Errorf("the record says\n%s", v.record(t))
	}
	if got := tree(t, v.mount(t)) + links(t, v.plain); got != want {
		t.Errorf("the tree has changed:\n%s", difference(want, got))
	}
	v.umount(t)

	// A file that cannot be rewritten is left to reencrypt; it does not keep the next rotation off.
	bad := filepath.Join(v.cipher, "large")
	b, err := os.ReadFile(bad)
	must(t, err)
	b[5000] ^= 1
	must(t, os.WriteFile(bad, b, 0o600))
	for generation := 3; generation <= 4; generation++ {
		if r := v.rotateAll(t, 4); r.Generation != generation || r.Resumed || len(r.Reencryption.Stragglers) != 1 {
			t.Errorf("%+v", r)
		}
	}
	v.refused(t, 4, []string{"kmsfs reencrypt goes on", v.cipher}, "reencrypt", v.cipher)
	b[5000] ^= 1
	must(t, os.WriteFile(bad, b, 0o600))
	if r := v.reencrypt(t); r.Reencrypted != 1 || len(v.keyIDs(t)) != 1 {
		t.Errorf("%+v, %v", r, v.keyIDs(t))
	}
	if text := v.ok(t, "rotate", "--re-encrypt", v.cipher); !strings.Contains(text, "generation 5") || !strings.Contains(text, "re-encrypted") || strings.Contains(text, "keep") {
		t.Errorf("it says\n%s", text)
	}
}

// TestRotateAllKilled kills the command at random instants, again and again, until it comes to its end: all files have one data key, and it was made once.
func TestRotateAllKilled(t *testing.T) {
	v := newVolume(t)
	fill(t, v.mount(t), 100)
	want := contents(t, v.plain)
	v.umount(t)
	rng := rand.New(rand.NewPCG(2, 2))
	// How long a run takes is the machine's: each gets more time than the last.
	killed, patience := 0, 5*time.Millisecond
	for done := false; !done; patience += time.Duration(rng.Int64N(int64(patience / 3))) {
		if done = v.runKilled(t, patience, "rotate", "--re-encrypt", v.cipher); !done {
			killed++
		}
		if killed%3 == 1 { // a mount between does not make the next run forget
			v.mount(t)
			v.umount(t)
		}
	}
	var facts struct{ Current struct{ Generation int } }
	must(t, json.Unmarshal([]byte(v.ok(t, "inspect", "--json", v.cipher)), &facts))
	if keys := v.keyIDs(t); killed == 0 || len(keys) != 1 || facts.Current.Generation != 1 {
		t.Errorf("killed %d times: generation %d, files under %d data keys", killed, facts.Current.Generation, len(keys))
	}
	v.ok(t, "fsck", v.cipher)
	if got := contents(t, v.mount(t)); got != want {
		t.Errorf("the tree has changed:\n%s", difference(want, got))
	}
	v.umount(t)
}

// TestRotateAllResumes goes on with the data key of a run that was cut off, wherever that was, and makes another one if it was cut off before there was one.
func TestRotateAllResumes(t *testing.T) {
	v := newVolume(t)
	fill(t, v.mount(t), 20)
	v.umount(t)
	path, err := filepath.Glob(v.config + "/volumes/*.toml")
	must(t, err)
	note := func(begun string) {
		t.Helper()
		must(t, os.WriteFile(path[0], []byte(v.record(t)+begun+"\n"), 0o600))
	}
	note("re-encryption = 1") // and no data key was made
	if r := v.rotateAll(t, 0, "--dry-run"); r.Generation != 1 || r.Resumed {
		t.Errorf("%+v", r)
	}
	if r := v.rotateAll(t, 0); r.Generation != 1 || r.Resumed || r.Reencryption.Reencrypted == 0 {
		t.Errorf("%+v", r)
	}
	meta := v.cipher + "/.kmsfs/"
	shell(t, meta, "mkdir ../../before; cp volume volume.copy current ../../before")
	v.rotate(t)
	shell(t, meta, "cp ../../before/* .") // cut off when there was the copy of the data key alone
	note("re-encryption = 2")             // and no file was rewritten
	if r := v.rotateAll(t, 0, "--dry-run"); r.Generation != 2 || !r.Resumed || r.Reencryption.Reencrypted == 0 {
		t.Errorf("%+v", r)
	}
	if r := v.rotateAll(t, 0); r.Generation != 2 || !r.Resumed || r.Reencryption.Reencrypted == 0 || len(v.keyIDs(t)) != 1 {
		t.Errorf("%+v", r)
	}
	v.fsck(t, 0)
	// Whoever can write to the ciphertext directory alone does not keep a data key from being made.
	must(t, os.Mkdir(v.cipher+"/.kmsfs/reencrypt", 0o700))
	if r := v.rotateAll(t, 0); r.Generation != 3 || r.Resumed {
		t.Errorf("%+v", r)
	}
	v.rotate(t)
	note("re-encryption = 4")
	if text := v.ok(t, "rotate", "--re-encrypt", v.cipher); !strings.Contains(text, "going on where a run was cut off") || !strings.Contains(text, "generation 4") {
		t.Errorf("it says\n%s", text)
	}
	v.rotate(t)
	note("re-encryption = 5")
	v.reencrypt(t) // does the rest as well
	if r := v.rotateAll(t, 0); r.Generation != 6 || r.Resumed {
		t.Errorf("%+v", r)
	}
}

// TestRotateAllRefused uses the command wrongly, or where it cannot be done: nothing is changed.
func TestRotateAllRefused(t *testing.T) {
	v := newVolume(t, "--data-key", "per-file")
	fill(t, v.mount(t), 5)
	v.umount(t)
	other, _ := v.newCMK(t, "other")
	before := snapshot(t, v.dir, false)
	v.refused(t, 2, []string{"every file has a data key of its own"}, "rotate", "--re-encrypt", v.cipher)
	v.refused(t, 6, []string{"no EDK"}, "rotate", "--re-encrypt", "--cmk", other, v.cipher)
	v.refused(t, 3, []string{v.plain}, "rotate", "--re-encrypt", v.plain)
	if after := snapshot(t, v.dir, false); len(after) != len(before) {
		t.Errorf("%d entries, %d before", len(after), len(before))
	} else {
		for path, is := range before {
			if after[path] != is {
				t.Errorf("%s has changed", path)
			}
		}
	}
	w := newVolume(t)
	noted, err := filepath.Glob(w.config + "/volumes/*.toml")
	must(t, err)
	must(t, unix.Mount(noted[0], noted[0], "", unix.MS_BIND, "")) // which cannot be replaced
	t.Cleanup(func() { _ = unix.Unmount(noted[0], unix.MNT_DETACH) })
	w.refused(t, 1, []string{"nothing was changed", "kmsfs reencrypt"}, "rotate", "--re-encrypt", w.cipher)
	if _, err := os.Stat(w.cipher + "/.kmsfs/current"); err == nil {
		t.Error("the data key was rotated all the same")
	}
}
