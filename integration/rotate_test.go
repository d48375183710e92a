package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/integration/emulator"
)

// sealedUnder returns the data keys of the volume's files, and how many files each has.
func (v *volume) sealedUnder(t testing.TB) map[header.ID]int {
	t.Helper()
	keys := make(map[header.ID]int)
	for _, path := range v.sealedFiles(t) {
		b, err := os.ReadFile(path)
		must(t, err)
		if len(b) == 0 {
			continue
		}
		h, err := header.Parse(b)
		must(t, err)
		keys[h.KeyID]++
	}
	return keys
}

// A rotation is what kmsfs rotate --json prints.
type rotation struct {
	Generation int
	KeyID      string `json:"data_key_id"`
	CMKs       []string
	DryRun     bool `json:"dry_run"`
	Live       bool
}

func (v *volume) rotate(t testing.TB, args ...string) (r rotation) {
	t.Helper()
	must(t, json.Unmarshal([]byte(v.ok(t, append(append([]string{"rotate", "--json"}, args...), v.cipher)...)), &r))
	return r
}

// readByReader reads the volume with the reader that was written from docs/format.md.
func (v *volume) readByReader(t testing.TB) (out string) {
	t.Helper()
	out = filepath.Join(t.TempDir(), "out")
	if msg, err := exec.Command("/usr/bin/python3", "testdata/reader.py", v.cipher, v.cmk, out).CombinedOutput(); err != nil {
		t.Fatalf("reader.py: %v\n%s", err, msg)
	}
	return out
}

// TestRotate rotates the data key of volumes of several kinds, mounted or not: what is there stays, what is new has the new data key, and rewrap, fsck, inspect, status and another reader know of it.
func TestRotate(t *testing.T) {
	for name, args := range map[string][]string{"AES": nil, "SM4PlaintextNames": {"--algorithm", "sm4-128-gcm", "--plaintext-names", "--context", "team=web"}} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t, args...)
			aURI := v.uriOf(t)
			b, bURI := v.newCMK(t, "b")
			fill(t, v.mount(t), 30)
			want, content := tree(t, v.plain), contents(t, v.plain)
			for i, live := range []bool{true, false, true} {
				if !live {
					v.umount(t)
				}
				if dry := v.rotate(t, "--dry-run"); !dry.DryRun || dry.Generation != i+1 {
					t.Errorf("%+v", dry)
				}
				r := v.rotate(t)
				if r.Generation != i+1 || r.Live != live || r.DryRun || len(r.CMKs) != 1 || r.CMKs[0] != aURI {
					t.Errorf("%+v", r)
				}
				if !live {
					v.mount(t)
				}
				if st := v.status(t).DataKey; st.ID != r.KeyID || st.Generation != i+1 || st.PerFile {
					t.Errorf("status: %+v, want %+v", st, r)
				}
				path := filepath.Join(v.plain, "new")
				must(t, os.WriteFile(path, []byte("new"), 0o644))
				must(t, os.Rename(path, filepath.Join(v.plain, "dir0", fmt.Sprint("after", i))))
				if keys := v.sealedUnder(t); len(keys) != i+2 {
					t.Errorf("files under %d data keys, want %d", len(keys), i+2)
				}
			}
			shell(t, v.plain, "cat dir0/after*; rm dir0/after0; find dir0 -maxdepth 0 -exec touch -h -d '2020-01-02' {} +")
			v.ok(t, "rewrap", "--add", b, v.cipher)
			v.listEverywhere(t, 30, aURI, bURI)
			for _, copied := range []string{"current", "current.copy"} {
				if got := listedCMKs(t, filepath.Join(v.cipher, ".kmsfs", copied)); got != aURI+" "+bURI {
					t.Errorf("%s lists %s", copied, got)
				}
			}
			v.umount(t)
			v.fsck(t, 0)
			var facts struct {
				Current struct {
					Generation int
					EDKs       []struct{ CMK string }
				}
			}
			must(t, json.Unmarshal([]byte(v.ok(t, "inspect", "--json", v.cipher)), &facts))
			if facts.Current.Generation != 3 || len(facts.Current.EDKs) != 2 {
				t.Errorf("inspect: %+v", facts)
			}
			if text := v.ok(t, "inspect", filepath.Join(v.cipher, ".kmsfs/current")); !strings.Contains(text, "current data key") {
				t.Errorf("inspect:\n%s", text)
			}
			out := v.readByReader(t)
			shell(t, out, "rm dir0/after*")
			v.mount(t, "cmk="+b)
			shell(t, v.plain, "rm dir0/after*")
			if got := tree(t, v.plain); got != want {
				t.Errorf("the tree has changed:\n%s\nbefore:\n%s", got, want)
			}
			if got := tree(t, out); got != want {
				t.Errorf("the other reader finds\n%s\nwant\n%s", got, want)
			}
			v.refused(t, 6, []string{aURI, "--cmk"}, "rotate", v.cipher) // the daemon was told of one CMK only
			v.umount(t)
			v.rotate(t)
			must(t, os.WriteFile(filepath.Join(v.mount(t), "newest"), record(7), 0o644))
			v.umount(t)
			// A header that is damaged but for its file ID is sealed anew under the data key that it had.
			for _, path := range v.sealedFiles(t) {
				raw, err := os.ReadFile(path)
				must(t, err)
				if len(raw) > 300 {
					raw[130] ^= 1
					must(t, os.WriteFile(path, raw, 0o600))
				}
			}
			if r := v.fsck(t, 10, "--repair"); r.Summary.Repaired < 30 {
				t.Errorf("%+v", r.Summary)
			}
			v.mount(t)
			must(t, os.Remove(filepath.Join(v.plain, "newest")))
			if got := contents(t, v.plain); got != content {
				t.Errorf("after the repair:\n%s\nbefore:\n%s", got, content)
			}
		})
	}
}

// TestRotateUnderLoad rotates a mounted volume again and again, and rewraps it, while programs write, append, create, replace and move.
func TestRotateUnderLoad(t *testing.T) {
	v := newVolume(t)
	aURI := v.uriOf(t)
	b, bURI := v.newCMK(t, "b")
	v.mount(t)
	loads := []load{
		&overwriter{path: filepath.Join(v.plain, "overwritten"), rng: rand.New(rand.NewPCG(1, 2))},
		&appender{path: filepath.Join(v.plain, "log")},
		&creator{dir: v.plain},
		&replacer{path: filepath.Join(v.plain, "replaced")},
	}
	var stop atomic.Bool
	var workers sync.WaitGroup
	failures := make([]error, len(loads))
	for i, l := range loads {
		must(t, l.prepare())
		workers.Go(func() {
			for failures[i] == nil && !stop.Load() {
				failures[i] = l.step()
			}
		})
	}
	for round := range 6 {
		v.rotate(t)
		if round == 2 {
			v.ok(t, "rewrap", "--add", b, v.cipher)
		}
		must(t, os.WriteFile(filepath.Join(v.plain, fmt.Sprint("round", round)), record(round), 0o644))
	}
	stop.Store(true)
	workers.Wait()
	for i, l := range loads {
		if failures[i] != nil {
			t.Errorf("%T: %v", l, failures[i])
		}
		l.abandon()
	}
	v.umount(t)
	if keys := v.sealedUnder(t); len(keys) < 6 {
		t.Errorf("files under %d data keys only", len(keys))
	}
	v.listEverywhere(t, 6, aURI, bURI)
	v.fsck(t, 0)
	v.mount(t)
	for _, l := range loads {
		if err := l.check(); err != nil {
			t.Errorf("%T: %v", l, err)
		}
	}
}

// TestRotateKilled kills the command, or the daemon that rotates, when it has replaced each of the files that it replaces, and then runs it again. volume.TestRotateCutOff goes through all the states that may be left.
func TestRotateKilled(t *testing.T) {
	v := newVolume(t)
	fill(t, v.mount(t), 20)
	want := contents(t, v.plain)
	meta := func(name string) string { return filepath.Join(v.cipher, ".kmsfs", name) }
	inode := func(name string) uint64 {
		var st unix.Stat_t
		if err := unix.Stat(meta(name), &st); err != nil && !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
		return st.Ino
	}
	for round, name := range []string{"current.copy", "current", "volume.copy", "volume", "current.copy", "current"} {
		live := round >= 4
		if !live {
			v.umount(t)
		}
		before := inode(name)
		cmd := exec.Command(binary, "rotate", v.cipher)
		cmd.Env = append(os.Environ(), "KMSFS_CONFIG_DIR="+v.config)
		must(t, cmd.Start())
		eventually(t, "the rotation has written "+name, func() bool { return inode(name) != before })
		if live && round%2 == 0 {
			v.killDaemon(t)
		} else {
			_ = cmd.Process.Kill()
		}
		_ = cmd.Wait()
		if !v.mounted {
			v.mount(t)
		}
		if got := contents(t, v.plain); got != want {
			t.Fatalf("round %d: the tree has changed", round)
		}
		must(t, os.WriteFile(filepath.Join(v.plain, "new"), []byte("new"), 0o644))
		must(t, os.Remove(filepath.Join(v.plain, "new")))
		if !live {
			v.umount(t)
		}
		generation := 0
		eventually(t, "the rotation is over", func() bool {
			r := v.run(t, "rotate", "--json", v.cipher)
			if r.code != 0 && r.code != 7 {
				t.Fatalf("round %d: %s", round, r.stderr)
			}
			var got rotation
			_ = json.Unmarshal([]byte(r.stdout), &got)
			generation = got.Generation
			return r.code == 0
		})
		if generation < round+1 {
			t.Errorf("round %d: generation %d", round, generation)
		}
		if !live {
			v.fsck(t, 0)
			v.mount(t)
		}
	}
}

// TestRotateTampered takes away, damages, plants and puts back the data key of new files. A mount never gives new files an older one without a word.
func TestRotateTampered(t *testing.T) {
	v := newVolume(t)
	must(t, os.WriteFile(filepath.Join(v.mount(t), "old"), []byte("old"), 0o644))
	v.umount(t)
	shell(t, v.dir, "cp -a cipher/.kmsfs never")
	v.rotate(t)
	shell(t, v.dir, "cp -a cipher/.kmsfs first")
	v.rotate(t)
	must(t, os.WriteFile(filepath.Join(v.mount(t), "new"), []byte("new"), 0o644))
	v.umount(t)
	if noted := v.record(t); !strings.Contains(noted, "generation = 2") {
		t.Errorf("the machine has noted\n%s", noted)
	}
	shell(t, v.dir, "cp -a cipher/.kmsfs good; cp -a config config.good")
	flip := func(at int, file string) string { // one byte alone might be right
		return fmt.Sprintf(`printf '\377\377\377\377\377\377\377\377' | dd bs=1 seek=%d conv=notrunc status=none of=%s;`, at, file)
	}
	for name, tt := range map[string]struct {
		edit, says string
		code       int
	}{
		"both missing":       {`rm current current.copy`, "copy are missing", 4},
		"EDKs damaged":       {flip(150, "current") + flip(150, "current.copy"), "current", 6},
		"MACs damaged":       {flip(260, "current") + flip(260, "current.copy"), "does not authenticate", 4},
		"older key":          {`cp ../../first/current ../../first/current.copy .`, "generation 1", 4},
		"all put back":       {`cp ../../first/current* ../../first/volume* .`, "this machine has seen generation 2", 4},
		"as before rotation": {`rm current current.copy; cp ../../never/volume* .`, "this machine has seen generation 2", 4},
		"something else":     {`cp volume current; cp volume current.copy`, "something else", 4},
	} {
		shell(t, v.dir, "rm -r cipher/.kmsfs config; cp -a good cipher/.kmsfs; cp -a config.good config; cd cipher/.kmsfs; "+tt.edit)
		v.refused(t, tt.code, []string{tt.says, "mount -o ro", "kmsfs rotate"}, "mount", v.cipher, v.plain)
		v.refused(t, tt.code, []string{tt.says, "mount -o ro", "kmsfs rotate"}, "rewrap", v.cipher)
		v.fsck(t, 4, "--repair")
		v.mount(t, "ro")
		if got := shell(t, v.plain, "cat old new"); got != "oldnew" {
			t.Errorf("%s: read %q", name, got)
		}
		if st := v.status(t).DataKey; st.Trouble == "" || st.ID != "" {
			t.Errorf("%s: %+v", name, st)
		}
		v.umount(t)
		if r := v.rotate(t); r.Generation != 3 {
			t.Errorf("%s: rotated to %+v", name, r)
		}
		v.fsck(t, 0)
		must(t, os.WriteFile(filepath.Join(v.mount(t), "newer"), []byte("newer"), 0o644))
		if got := shell(t, v.plain, "cat old new newer; rm newer"); got != "oldnewnewer" {
			t.Errorf("%s: read %q", name, got)
		}
		v.umount(t)
	}
	// One of the two is enough, and the other is mended from it.
	for _, edit := range []string{"rm current", "rm current.copy", flip(150, "current"), flip(260, "current.copy"), "cp ../../first/current .", "cp ../../first/current.copy ."} {
		shell(t, v.dir, "rm -r cipher/.kmsfs config; cp -a good cipher/.kmsfs; cp -a config.good config; cd cipher/.kmsfs; "+edit)
		v.mount(t)
		if st := v.status(t).DataKey; st.Generation != 2 {
			t.Errorf("%s: %+v", edit, st)
		}
		v.umount(t)
		if r := v.fsck(t, 10, "--repair"); len(r.Faults) != 1 || r.Faults[0].Kind != "current data key" {
			t.Errorf("%s: %+v", edit, r.Faults)
		}
		v.fsck(t, 0)
	}
	// Whoever has not seen the rotation cannot tell that all of it was undone: docs/design.md.
	shell(t, v.dir, "rm -r cipher/.kmsfs config; cp -a never cipher/.kmsfs")
	v.mount(t, "cmk=local:"+v.cmk)
	if st := v.status(t).DataKey; st.Generation != 0 {
		t.Errorf("%+v", st)
	}
}

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
	c.ResetCalls()
	c.rotate(t)
	counts("rotation", 1, 2, 2)
	c.mountUnhurried(t)
	counts("mount", 0, 0, 2)
	write("c")
	shell(t, c.plain, "cat a* c* > /dev/null")
	counts("files under the volume's own data keys", 0, 0, 2)
	shell(t, c.plain, "cat b* > /dev/null; cat b* > /dev/null")
	counts("files under an older one", 0, 0, 3)
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
}

// TestRotateFrozen rotates the data key of the frozen volume of format version 1, whose files open as before, with this build and with the other reader.
func TestRotateFrozen(t *testing.T) {
	archive, err := filepath.Abs(frozenVolume)
	must(t, err)
	v := bareVolume(t)
	shell(t, v.dir, `tar --xattrs --xattrs-include='user.*' --same-owner -xpzf `+archive)
	cmk := "local:" + v.cmk
	want := shell(t, v.mount(t, "cmk="+cmk), treeList)
	v.umount(t)
	v.rotate(t)
	v.mount(t)
	if got := shell(t, v.plain, treeList); got != want {
		t.Errorf("the tree has changed:\n%s\nbefore:\n%s", got, want)
	}
	shell(t, v.plain, "echo new > new; echo more >> sizes/4096")
	want = shell(t, v.plain, treeList)
	v.umount(t)
	v.fsck(t, 0)
	if got := shell(t, v.readByReader(t), treeList); got != want {
		t.Errorf("the other reader finds\n%s\nwant\n%s", got, want)
	}
	if keys := v.sealedUnder(t); len(keys) != 2 {
		t.Errorf("files under %d data keys, want 2", len(keys))
	}
}

// TestRotateRefused uses the command wrongly: nothing changes.
func TestRotateRefused(t *testing.T) {
	v := newVolume(t)
	before := shell(t, v.dir, "find cipher config -type f | sort | xargs md5sum")
	v.refused(t, 2, []string{"CIPHERDIR is missing"}, "rotate")
	v.refused(t, 2, []string{"one too many"}, "rotate", v.cipher, v.plain)
	v.refused(t, 2, []string{"--dryrun", "did you mean --dry-run"}, "rotate", "--dryrun", v.cipher)
	v.refused(t, 2, []string{"stands after"}, "rotate", v.cipher, "--json")
	v.refused(t, 2, []string{"absolute"}, "rotate", "--cmk", "local:x", v.cipher)
	v.refused(t, 3, []string{v.plain}, "rotate", v.plain)
	v.refused(t, 3, []string{v.dir + "/none"}, "rotate", v.dir+"/none")
	other, _ := v.newCMK(t, "other")
	v.refused(t, 6, []string{"no EDK is from a trusted CMK"}, "rotate", "--cmk", other, v.cipher)
	if help := v.ok(t, "rotate", "--help"); !strings.Contains(help, "Example: kmsfs rotate") {
		t.Errorf("help:\n%s", help)
	}
	if after := shell(t, v.dir, "find cipher config -type f | sort | xargs md5sum"); after != before {
		t.Errorf("something has changed:\n%s\nbefore:\n%s", after, before)
	}
	v.mount(t, "ro")
	v.refused(t, 9, []string{"read-only"}, "rotate", v.cipher)
}
