package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/integration/emulator"
)

// listedCMKs returns the CMKs that the header in a file lists, "" for a file without one.
func listedCMKs(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	if len(b) == 0 {
		return ""
	}
	h, err := header.Parse(b)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	var cmks []string
	for _, e := range h.EDKs {
		cmks = append(cmks, e.CMK)
	}
	return strings.Join(cmks, " ")
}

// listEverywhere checks which CMKs the headers list: the volume's, its copy, and those of all files, of which there are at least so many.
func (v *volume) listEverywhere(t testing.TB, least int, cmks ...string) {
	t.Helper()
	paths := append(v.sealedFiles(t), filepath.Join(v.cipher, ".kmsfs/volume"), filepath.Join(v.cipher, ".kmsfs/volume.copy"))
	n := 0
	for _, path := range paths {
		switch got := listedCMKs(t, path); got {
		case "":
		case strings.Join(cmks, " "):
			n++
		default:
			t.Fatalf("%s lists %s, want %v", path, got, cmks)
		}
	}
	if n < least {
		t.Fatalf("only %d headers", n)
	}
}

// newCMK makes a local CMK and returns the name it has on command lines, and in headers.
func (v *volume) newCMK(t testing.TB, name string) (path, uri string) {
	t.Helper()
	path = "local:" + filepath.Join(v.dir, name)
	return path, strings.TrimSpace(v.ok(t, "key", "new", filepath.Join(v.dir, name)))
}

// uriOf returns the name of the volume's first CMK in headers.
func (v *volume) uriOf(t testing.TB) string {
	return listedCMKs(t, filepath.Join(v.cipher, ".kmsfs/volume"))
}

// fill makes files of many kinds, n of them plain.
func fill(t testing.TB, dir string, n int) {
	t.Helper()
	for i := range n {
		d := filepath.Join(dir, fmt.Sprint("dir", i%10), fmt.Sprint("sub", i%3))
		must(t, os.MkdirAll(d, 0o755))
		must(t, os.WriteFile(filepath.Join(d, fmt.Sprint("file", i)), record(i), 0o644))
	}
	shell(t, dir, `
		: > empty; truncate -s 1M sparse; printf tail >> sparse; ln dir0/sub0/file0 hardlink
		printf x > `+strings.Repeat("long", 60)+`; seq 100000 > large; chmod 400 large
		find . -type f -exec touch -h -d '2020-01-02 03:04:05.123456789' {} +`)
}

// tree tells everything about a directory that a rewrap must leave alone.
func tree(t testing.TB, dir string) string {
	t.Helper()
	return shell(t, dir, `find . -type f -printf '%p %s %m %T@\n' | sort; find . -type f -print0 | sort -z | xargs -0 md5sum`)
}

// contents is tree without times: a kill while a header is put in place changes that of its file.
func contents(t testing.TB, dir string) string {
	t.Helper()
	return shell(t, dir, `find . -type f -printf '%p %s %m\n' | sort; find . -type f -print0 | sort -z | xargs -0 md5sum`)
}

// TestRewrap adds, replaces and removes CMKs of a volume, mounted or not, and finds nothing else changed.
func TestRewrap(t *testing.T) {
	for _, live := range []bool{false, true} {
		t.Run(fmt.Sprint("live=", live), func(t *testing.T) {
			v := newVolume(t)
			a, aURI := "local:"+v.cmk, v.uriOf(t)
			b, bURI := v.newCMK(t, "b")
			c, cURI := v.newCMK(t, "c")
			fill(t, v.mount(t), 60)
			v.remount(t)
			want := tree(t, v.plain)
			rewrap := func(args ...string) {
				t.Helper()
				if !live {
					v.umount(t)
				}
				v.ok(t, slices.Concat([]string{"rewrap"}, args, []string{v.cipher})...)
				if !live {
					v.mount(t)
				}
				must(t, os.WriteFile(filepath.Join(v.plain, "new"), []byte("new"), 0o644))
				must(t, os.Remove(filepath.Join(v.plain, "new")))
			}
			opensWith := func(cmk string, code int) {
				t.Helper()
				v.umount(t)
				r := v.run(t, "mount", "--cmk", cmk, "-o", "log="+v.log, v.cipher, v.plain)
				if r.code != code {
					t.Errorf("mount with %s: exit code %d, want %d\n%s", cmk, r.code, code, r.stderr)
				}
				if v.mounted = r.code == 0; !v.mounted {
					v.mount(t)
				}
				if got := tree(t, v.plain); got != want {
					t.Errorf("the tree has changed:\n%s\nbefore:\n%s", got, want)
				}
			}
			rewrap("--add", b)
			v.listEverywhere(t, 60, aURI, bURI)
			opensWith(a, 0)
			opensWith(b, 0)
			opensWith(c, 6)
			v.remount(t)
			rewrap("--replace", a+"="+c)
			v.listEverywhere(t, 60, bURI, cURI)
			opensWith(a, 6)
			opensWith(c, 0)
			v.remount(t)
			rewrap("--remove", bURI)
			v.listEverywhere(t, 60, cURI)
			opensWith(b, 6)
			opensWith(c, 0)
			rewrap() // nothing to do
			v.umount(t)
			v.ok(t, "fsck", v.cipher)
			if noted := v.record(t); !strings.Contains(noted, "/c'") || strings.Contains(noted, "/b'") || strings.Contains(noted, "/cmk'") {
				t.Errorf("the machine trusts %s", noted)
			}
			v.mount(t)
		})
	}
}

// record returns the machine's record of the volume.
func (v *volume) record(t testing.TB) string {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(v.config, "volumes", "*.toml"))
	must(t, err)
	if len(records) != 1 {
		t.Fatalf("%d records", len(records))
	}
	b, err := os.ReadFile(records[0])
	must(t, err)
	return string(b)
}

// A mover moves a directory from the end of a tree to its beginning and back.
type mover struct{ dir string }

func (m *mover) prepare() error {
	for _, d := range []string{"a", "m/moved", "z"} {
		if err := os.MkdirAll(filepath.Join(m.dir, d), 0o755); err != nil {
			return err
		}
	}
	for i := range 30 {
		if err := os.WriteFile(filepath.Join(m.dir, "m/moved", fmt.Sprint(i)), record(i), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (m *mover) step() error {
	where := []string{"m", "a", "z"}
	for i, d := range where {
		if err := os.Rename(filepath.Join(m.dir, d, "moved"), filepath.Join(m.dir, where[(i+1)%3], "moved")); err != nil {
			return err
		}
	}
	return nil
}

func (m *mover) abandon() {}

func (m *mover) check() error {
	for i := range 30 {
		b, err := os.ReadFile(filepath.Join(m.dir, "m/moved", fmt.Sprint(i)))
		if err != nil || !bytes.Equal(b, record(i)) {
			return fmt.Errorf("moved file %d: %w", i, err)
		}
	}
	return nil
}

// TestRewrapUnderLoad rewraps a mounted volume again and again while programs write, append, create, replace and move: no file escapes, and nothing is lost.
func TestRewrapUnderLoad(t *testing.T) {
	v := newVolume(t)
	cmks, uris := []string{"local:" + v.cmk}, []string{v.uriOf(t)}
	for _, name := range []string{"b", "c"} {
		cmk, uri := v.newCMK(t, name)
		cmks, uris = append(cmks, cmk), append(uris, uri)
	}
	v.mount(t)
	fill(t, v.plain, 200)
	loads := []load{
		&overwriter{path: filepath.Join(v.plain, "overwritten"), rng: rand.New(rand.NewPCG(1, 2))},
		&overwriter{path: filepath.Join(v.plain, "closed"), reopen: true, rng: rand.New(rand.NewPCG(1, 3))},
		&appender{path: filepath.Join(v.plain, "log")},
		&creator{dir: v.plain},
		&replacer{path: filepath.Join(v.plain, "replaced")},
		&mover{dir: v.plain},
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
	unnamed, err := unix.Open(v.plain, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	must(t, err)
	_, err = unix.Write(unnamed, []byte("unnamed"))
	must(t, err)
	for round := range 3 {
		v.ok(t, "rewrap", "--add", cmks[(round+1)%3], v.cipher)
		v.ok(t, "rewrap", "--remove", cmks[round%3], v.cipher)
	}
	v.ok(t, "rewrap", "--replace", cmks[0]+"="+cmks[1], v.cipher)
	stop.Store(true)
	workers.Wait()
	must(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprint("/proc/self/fd/", unnamed), unix.AT_FDCWD, filepath.Join(v.plain, "named"), unix.AT_SYMLINK_FOLLOW))
	unix.Close(unnamed)
	for i, l := range loads {
		if failures[i] != nil {
			t.Errorf("%T: %v", l, failures[i])
		}
		l.abandon()
	}
	v.umount(t)
	v.listEverywhere(t, 200, uris[1])
	v.ok(t, "fsck", v.cipher)
	v.mount(t)
	for _, l := range loads {
		if err := l.check(); err != nil {
			t.Errorf("%T: %v", l, err)
		}
	}
}

// TestRewrapKilled kills the command, or the daemon that does it, at several instants, and runs it again.
func TestRewrapKilled(t *testing.T) {
	const files = 500
	v := newVolume(t)
	cmks, uris := []string{"local:" + v.cmk}, []string{v.uriOf(t)}
	cmk, uri := v.newCMK(t, "b")
	cmks, uris = append(cmks, cmk), append(uris, uri)
	fill(t, v.mount(t), files)
	want := contents(t, v.plain)
	meta := func(name string) func(string) bool {
		path := filepath.Join(v.cipher, ".kmsfs", name)
		return func(to string) bool { return listedCMKs(t, path) == to }
	}
	some := v.sealedFiles(t)
	someFile := func(i int) func(string) bool {
		return func(to string) bool {
			return slices.ContainsFunc(some[i:], func(p string) bool { return listedCMKs(t, p) == to })
		}
	}
	// It is over at the latest when the instant has come.
	instants := []func(to string) bool{meta("volume.copy"), meta("volume"), someFile(0), someFile(files / 2), func(string) bool { return true }}
	for round, reached := range append(instants, instants[:3]...) {
		from, to, live := cmks[round%2], cmks[(round+1)%2], round >= len(instants)
		toURI := uris[(round+1)%2]
		if !live {
			v.umount(t)
		}
		cmd := exec.Command(binary, "rewrap", "--replace", from+"="+to, v.cipher)
		cmd.Env = append(os.Environ(), "KMSFS_CONFIG_DIR="+v.config)
		must(t, cmd.Start())
		eventually(t, "the rewrap begins", func() bool { return reached(toURI) })
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
		if !live {
			v.umount(t)
		}
		// A daemon whose caller was killed may still be giving up.
		eventually(t, "the rewrap ends", func() bool {
			r := v.run(t, "rewrap", "--replace", from+"="+to, v.cipher)
			if r.code != 0 && r.code != 7 {
				t.Fatalf("round %d: %s", round, r.stderr)
			}
			return r.code == 0
		})
		v.listEverywhere(t, files, toURI)
		if !live {
			v.mount(t)
		}
	}
	if got := contents(t, v.plain); got != want {
		t.Error("the tree has changed")
	}
	v.umount(t)
	v.ok(t, "fsck", v.cipher)
}

// killDaemon kills the daemon of a mounted volume and clears the mount away.
func (v *volume) killDaemon(t testing.TB) {
	t.Helper()
	var st struct{ PID int }
	must(t, json.Unmarshal([]byte(v.ok(t, "status", "--json", v.plain)), &st))
	must(t, unix.Kill(st.PID, unix.SIGKILL))
	eventually(t, "the daemon is gone", func() bool { return errors.Is(unix.Statfs(v.plain, new(unix.Statfs_t)), unix.ENOTCONN) })
	must(t, unix.Unmount(v.plain, unix.MNT_DETACH))
	v.mounted = false
}

// A kms is the emulator with one CMK in each cloud, in whose environment kmsfs runs.
type kms struct {
	*emulator.Emulator
	alibaba, huawei string
}

func newKMS(t *testing.T) kms {
	t.Helper()
	k := kms{
		alibaba: "acs:kms:cn-hangzhou:1000000000000001:key/key-hzz00000000000000000000",
		huawei:  "huawei:kms:cn-north-4:0000000000000000000000000000cafe:key/11111111-1111-4111-8111-111111111111",
	}
	e, err := emulator.New(emulator.Options{CMKs: []emulator.CMK{{URI: k.alibaba}, {URI: k.huawei}}})
	must(t, err)
	t.Cleanup(func() { e.Close() })
	_, err = e.Listen(emulator.Alibaba, "cn-hangzhou", "127.0.0.1:0")
	must(t, err)
	_, err = e.Listen(emulator.Huawei, "cn-north-4", "127.0.0.1:0")
	must(t, err)
	for _, pair := range e.Environ() {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
	k.Emulator = e
	return k
}

// TestRewrapCalls rewraps 5,000 files with one unwrap, and one wrap for each new CMK.
func TestRewrapCalls(t *testing.T) {
	const files = 5000
	k := newKMS(t)
	v := bareVolume(t)
	v.ok(t, "init", "--cmk", k.alibaba, v.cipher)
	v.mount(t)
	for i := range files {
		dir := filepath.Join(v.plain, fmt.Sprint(i%50))
		if i < 50 {
			must(t, os.Mkdir(dir, 0o755))
		}
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("content"), 0o644))
	}
	v.umount(t)
	check := func(unwraps, wraps int, args ...string) {
		t.Helper()
		k.ResetCalls()
		v.ok(t, args...)
		if n := k.Count("", "Decrypt", "decrypt-datakey"); n != unwraps {
			t.Errorf("%v: %d unwraps, want %d", args, n, unwraps)
		}
		if n := k.Count("", "Encrypt", "encrypt-datakey", "GenerateDataKey", "create-datakey"); n != wraps {
			t.Errorf("%v: %d wraps, want %d", args, n, wraps)
		}
		if t.Failed() {
			t.Logf("%+v", k.Calls())
		}
	}
	check(1, 1, "rewrap", "--add", k.huawei, v.cipher)
	v.listEverywhere(t, files, k.alibaba, k.huawei)
	v.mount(t)
	cmk, uri := v.newCMK(t, "b")
	check(0, 0, "rewrap", "--remove", k.alibaba, "--add", cmk, v.cipher) // by the daemon
	v.listEverywhere(t, files, k.huawei, uri)
	v.umount(t)
	v.refused(t, 6, []string{"no EDK"}, "mount", "--cmk", k.alibaba, v.cipher, v.plain)
	check(1, 0, "mount", "--cmk", k.huawei, v.cipher, v.plain)
	v.mounted = true
}

// TestRewrapAllOrNothing changes nothing if one of the CMKs fails, if it is a dry run, or if the result would not do.
func TestRewrapAllOrNothing(t *testing.T) {
	k := newKMS(t)
	v := newVolume(t)
	a := "local:" + v.cmk
	b, bURI := v.newCMK(t, "b")
	fill(t, v.mount(t), 20)
	v.umount(t)
	const all = `find cipher config -type f -printf '%p %s %m %T@\n' | sort; find cipher config -type f -print0 | sort -z | xargs -0 md5sum`
	// Whoever may change a volume notes that he has it open, but a dry run does not.
	const but = `find cipher config -type f ! -path '*/journal.*' ! -name epochs -printf '%p %s %m %T@\n' | sort
		find cipher config -type f ! -path '*/journal.*' ! -name epochs -print0 | sort -z | xargs -0 md5sum`
	state := func() string { return shell(t, v.dir, but) }
	before := shell(t, v.dir, all)
	unchanged := func(what string) {
		t.Helper()
		if after := state(); after != before {
			t.Errorf("%s: something has changed:\n%s\nbefore:\n%s", what, after, before)
		}
	}
	dry := func() {
		t.Helper()
		var r struct {
			Files, Rewrapped, Wraps int
			DryRun                  bool `json:"dry_run"`
		}
		must(t, json.Unmarshal([]byte(v.ok(t, "rewrap", "--dry-run", "--json", "--add", b, v.cipher)), &r))
		if !r.DryRun || r.Files < 20 || r.Rewrapped != r.Files || r.Wraps != 1 {
			t.Errorf("%+v", r)
		}
	}
	dry()
	if after := shell(t, v.dir, all); after != before {
		t.Errorf("dry run: something has changed:\n%s\nbefore:\n%s", after, before)
	}
	before = state()
	must(t, k.SetState(k.huawei, emulator.Disabled))
	v.refused(t, 6, []string{k.huawei}, "rewrap", "--add", b, "--add", k.huawei, v.cipher)
	unchanged("a CMK that is disabled")
	v.refused(t, 6, []string{"missing"}, "rewrap", "--add", b, "--add", "local:"+v.dir+"/missing", v.cipher)
	unchanged("a CMK that is not there")
	v.refused(t, 2, []string{"no trusted CMK would be left"}, "rewrap", "--remove", a, v.cipher)
	unchanged("the last CMK")
	v.refused(t, 2, []string{"twice"}, "rewrap", "--add", b, "--add", b, v.cipher)
	v.refused(t, 2, []string{"added and removed"}, "rewrap", "--add", b, "--remove", bURI, v.cipher)
	v.refused(t, 2, []string{"OLD=NEW"}, "rewrap", "--replace", b, v.cipher)
	v.refused(t, 2, []string{"aws:kms:x"}, "rewrap", "--add", "aws:kms:x", v.cipher)
	args := []string{"rewrap"}
	for i := range 14 {
		cmk, _ := v.newCMK(t, fmt.Sprint("many", i))
		args = append(args, "--add", cmk)
	}
	v.refused(t, 2, []string{"bytes do not fit", "1536"}, append(args, v.cipher)...)
	unchanged("what does not fit")

	v.mount(t)
	dry()
	unchanged("dry run of a mounted volume")
	v.refused(t, 2, []string{"no trusted CMK would be left"}, "rewrap", "--remove", a, v.cipher)
	v.refused(t, 2, []string{"on the volume itself"}, "rewrap", "--add", "local:"+v.plain+"/large", v.cipher)
	v.umount(t)
	v.mount(t, "ro")
	v.refused(t, 9, []string{"read-only"}, "rewrap", "--add", b, v.cipher)
}

// TestRewrapStragglers lists a file that is damaged, and rewraps the others.
func TestRewrapStragglers(t *testing.T) {
	for _, live := range []bool{false, true} {
		t.Run(fmt.Sprint("live=", live), func(t *testing.T) {
			v := newVolume(t)
			aURI := v.uriOf(t)
			b, bURI := v.newCMK(t, "b")
			fill(t, v.mount(t), 30)
			v.umount(t)
			files := v.sealedFiles(t)
			bad := files[slices.IndexFunc(files, func(p string) bool {
				var st unix.Stat_t
				return unix.Stat(p, &st) == nil && st.Nlink == 1 && st.Size > 0 && !strings.Contains(p, "long")
			})]
			raw, err := os.ReadFile(bad)
			must(t, err)
			raw[130] ^= 1 // in the EDK
			must(t, os.WriteFile(bad, raw, 0o600))
			if live {
				v.mount(t)
			}
			v.refused(t, 4, []string{"1 files keep"}, "rewrap", "--add", b, v.cipher)
			r := v.run(t, "rewrap", "--json", v.cipher)
			var report struct {
				Stragglers []struct{ Ciphertext, Cause string }
				Rewrapped  int
				Live       bool
			}
			must(t, json.Unmarshal([]byte(r.stdout), &report))
			rel, err := filepath.Rel(v.cipher, bad)
			must(t, err)
			if r.code != 4 || len(report.Stragglers) != 1 || report.Stragglers[0].Ciphertext != rel || report.Rewrapped != 0 || report.Live != live {
				t.Errorf("exit code %d: %s", r.code, r.stdout)
			}
			after, err := os.ReadFile(bad)
			must(t, err)
			if !bytes.Equal(raw, after) {
				t.Error("the damaged file was changed")
			}
			if live {
				v.umount(t)
			}
			must(t, os.Remove(bad))
			v.listEverywhere(t, 30, aURI, bURI)
		})
	}
}

// TestRewrapLostCMK removes a local CMK whose file is lost, by its ID.
func TestRewrapLostCMK(t *testing.T) {
	v := newVolume(t)
	uri := v.uriOf(t)
	b, bURI := v.newCMK(t, "b")
	v.ok(t, "rewrap", "--add", b, v.cipher)
	must(t, os.Remove(v.cmk))
	v.refused(t, 2, []string{"by its ID"}, "rewrap", "--remove", "local:"+v.cmk, v.cipher)
	v.ok(t, "rewrap", "--remove", uri, v.cipher)
	v.listEverywhere(t, 2, bURI)
	if noted := v.record(t); strings.Contains(noted, v.cmk) || !strings.Contains(noted, v.dir+"/b") {
		t.Errorf("the machine trusts %s", noted)
	}
	v.mount(t)
}

// TestKeyTTL disables the CMK of a mounted volume, which is asked again: contents are refused until it is enabled. One that cannot be reached changes nothing.
func TestKeyTTL(t *testing.T) {
	k := newKMS(t)
	v := bareVolume(t)
	v.ok(t, "init", "--cmk", k.alibaba, v.cipher)
	v.refused(t, 2, []string{"key-ttl"}, "mount", "-o", "key-ttl=1", v.cipher, v.plain)
	v.mount(t, "key-ttl=1s")
	path := filepath.Join(v.plain, "file")
	must(t, os.WriteFile(path, []byte("content"), 0o644))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	read := func() error {
		_, err := f.ReadAt(make([]byte, 7), 0)
		if err == io.EOF {
			err = nil
		}
		return err
	}
	must(t, read())
	small := filepath.Join(v.plain, "small")
	must(t, os.WriteFile(small, []byte("small"), 0o644))
	_, err = os.ReadFile(small)
	must(t, err)
	again, err := os.Open(small) // the kernel has all of it
	must(t, err)
	defer again.Close()
	readAgain := func() error {
		_, err := again.ReadAt(make([]byte, 5), 0)
		return err
	}
	must(t, readAgain())

	must(t, k.SetFaults(emulator.Fault{Kind: emulator.Status, Status: 503}))
	eventually(t, "the KMS fails", func() bool { return v.status(t).CMKs[0].Failed > 0 })
	if !v.status(t).Serving {
		t.Error("a KMS that fails has stopped the mount")
	}
	must(t, k.SetFaults())
	must(t, read())

	must(t, k.SetState(k.alibaba, emulator.Disabled))
	eventually(t, "contents are refused", func() bool { return !v.status(t).Serving })
	eventually(t, "reads are refused", func() bool { return errors.Is(read(), unix.EACCES) && errors.Is(readAgain(), unix.EACCES) })
	_, err = os.ReadFile(path)
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("open: %v", err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EACCES) {
		t.Errorf("write: %v", err)
	}
	if err := os.Truncate(path, 0); !errors.Is(err, unix.EACCES) {
		t.Errorf("truncate: %v", err)
	}
	must(t, f.Sync())
	must(t, again.Sync())
	entries, err := os.ReadDir(v.plain)
	if err != nil || len(entries) != 2 {
		t.Errorf("list: %v, %v", entries, err)
	}
	if s := v.status(t); s.Keys.Refused == "" || s.Keys.TTL != "1s" {
		t.Errorf("%+v", s)
	}

	must(t, k.SetState(k.alibaba, emulator.Enabled))
	eventually(t, "contents are served again", func() bool { return read() == nil && readAgain() == nil })
	b, err := os.ReadFile(path)
	if err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
}

// A mountStatus is what kmsfs status --json prints.
type mountStatus struct {
	Volume, Ciphertext, Mountpoint string
	Since                          time.Time
	PID                            int
	Serving                        bool
	Keys                           struct{ TTL, Refused string }
	DataKey                        struct {
		PerFile     bool `json:"per_file"`
		ID, Trouble string
		Generation  int
	} `json:"data_key"`
	CMKs []struct {
		CMK  string
		Last *struct {
			Call    string
			Latency int64
		}
		OK, Failed int
		Calls      map[string]int
	}
	OpenFiles int `json:"open_files"`
	Journal   struct{ Bytes, Waiting int64 }
}

func (v *volume) status(t testing.TB) (s mountStatus) {
	t.Helper()
	must(t, json.Unmarshal([]byte(v.ok(t, "status", "--json", v.plain)), &s))
	return s
}

// TestStatus asks the daemon of a mounted volume how it is.
func TestStatus(t *testing.T) {
	k := newKMS(t)
	v := bareVolume(t)
	v.refused(t, 8, []string{"not mounted"}, "status", v.plain)
	v.refused(t, 2, []string{"MOUNTPOINT"}, "status")
	v.ok(t, "init", "--cmk", k.alibaba, "--cmk", k.huawei, v.cipher)
	v.mountUnhurried(t, func() {})
	f, err := os.Create(filepath.Join(v.plain, "file"))
	must(t, err)
	defer f.Close()
	s := v.status(t)
	if s.Volume == "" || s.Ciphertext != v.cipher || s.Mountpoint != v.plain || s.Since.IsZero() || !s.Serving || s.OpenFiles != 1 || len(s.CMKs) != 2 {
		t.Errorf("%+v", s)
	}
	if first := s.CMKs[0]; first.CMK != k.alibaba || first.Last == nil || first.Last.Call != "decrypt" || first.OK != 1 || first.Calls["Decrypt"] != 1 {
		t.Errorf("%+v", first)
	}
	if second := s.CMKs[1]; second.CMK != k.huawei || second.Last != nil || second.OK != 0 {
		t.Errorf("%+v", second)
	}
	text := v.ok(t, "status", v.plain)
	for _, word := range []string{s.Volume, v.plain, k.alibaba, k.huawei, "decrypt ok", "not asked"} {
		if !strings.Contains(text, word) {
			t.Errorf("%q is not in\n%s", word, text)
		}
	}
	// A daemon that was killed leaves its socket; the next one takes its place.
	f.Close()
	v.killDaemon(t)
	v.mount(t)
	if again := v.status(t); again.PID == s.PID || again.Volume != s.Volume {
		t.Errorf("%+v", again)
	}
	// A copy of the volume is another mount.
	other := &volume{dir: v.dir, config: v.config, cipher: v.cipher + "2", plain: v.plain + "2", log: v.log}
	shell(t, v.dir, "cp -a cipher cipher2; mkdir plain2")
	other.mount(t)
	defer other.umount(t)
	if s := other.status(t); s.Ciphertext != other.cipher {
		t.Errorf("%+v", s)
	}
}
