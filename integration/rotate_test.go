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
