package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// TestPerFileCalls counts the calls of a volume whose every file has a data key of its own.
func TestPerFileCalls(t *testing.T) {
	cmks := cloudCMKs()
	cmks[1].Spec = "RSA_2048"
	c := newClouds(t, emulator.Options{CMKs: cmks[:3]})
	c.init(t, "--data-key", "per-file")
	for _, says := range []string{"1 data-key calls and 1 wraps", "1 unwraps", "at most 200 calls a second go to alibaba, so at most 100"} {
		if !strings.Contains(c.printed.String(), says) {
			t.Errorf("init does not say %q:\n%s", says, c.printed.String())
		}
	}
	counts := func(what string, made, wrapped, unwrapped int) {
		t.Helper()
		m, w := c.Count("", "GenerateDataKey", "create-datakey"), c.Count("", "Encrypt", "encrypt-datakey")
		if u := c.asked("") - m - w; m != made || w != wrapped || u != unwrapped {
			t.Errorf("%s: %d data keys made, %d wraps, %d unwraps, want %d, %d and %d: %+v", what, m, w, u, made, wrapped, unwrapped, c.Calls())
		}
	}
	const files = 12
	c.mountUnhurried(t)
	counts("mount", 0, 0, 1)
	shell(t, c.plain, `for i in $(seq 12); do : > f$i; done`)
	counts("empty files", 0, 0, 1)
	shell(t, c.plain, `for i in $(seq 12); do echo $i > f$i; echo more >> f$i; done; cat f* > /dev/null`)
	counts("first bytes", files, files, 1)
	shell(t, c.plain, `: > f1; echo again > f1; truncate -s 9000 t; fallocate -l 5000 a; cp f2 copied; mv f3 moved; ln f4 linked`)
	counts("another incarnation, and other first bytes", files+4, files+4, 1)
	if keys := c.sealedUnder(t); len(keys) != files+3 { // one link is met twice
		t.Errorf("%d data keys", len(keys))
	}
	want := contents(t, c.plain)
	c.umount(t)

	c.mountUnhurried(t)
	shell(t, c.plain, `cat f10 f11 f12 > /dev/null; cat f10 f11 f12 > /dev/null`)
	if !c.hurried(t) {
		counts("three cold opens", 0, 0, 4)
	}
	c.umount(t)
	for _, cmk := range c.cmks {
		c.mount(t, "cmk="+cmk)
		if got := contents(t, c.plain); got != want {
			t.Errorf("%s: read\n%s\nwant\n%s", cmk, got, want)
		}
		c.umount(t)
	}
	c.fsck(t, 0)

	// A rewrap asks for every file.
	for range 5 { // on a slow machine a call may time out, and is made again
		c.ok(t, "rewrap", "--remove", c.cmks[2], c.cipher)
		c.ResetCalls()
		c.ok(t, "rewrap", "--add", c.cmks[2], c.cipher)
		if c.Count("", "Encrypt", "encrypt-datakey") == files+4 {
			break
		}
	}
	counts("rewrap", 0, files+4, 1+files+3)
	c.listEverywhere(t, files, c.cmks[0], c.cmks[1], c.cmks[2])
	c.refused(t, 2, []string{"every file has a data key of its own"}, "rotate", c.cipher)
	c.mount(t)
	if got := contents(t, c.plain); got != want {
		t.Errorf("after the rewrap: read\n%s\nwant\n%s", got, want)
	}
	c.refused(t, 2, []string{"every file has a data key of its own"}, "rotate", c.cipher)
	if st := c.status(t).DataKey; !st.PerFile || st.ID != "" {
		t.Errorf("%+v", st)
	}
	if !strings.Contains(c.ok(t, "inspect", c.cipher), "each gets a data key of its own") {
		t.Error("inspect does not tell")
	}
}

// TestPerFileRefused has a CMK refuse, or not be trusted: files get no first bytes, with EIO and a line of the log that names the CMK; those that have some are read and written on.
func TestPerFileRefused(t *testing.T) {
	c := newClouds(t, emulator.Options{CMKs: cloudCMKs()[:2]})
	c.init(t, "--data-key", "per-file")
	c.mount(t)
	path := func(name string) string { return filepath.Join(c.plain, name) }
	must(t, os.WriteFile(path("old"), []byte("old"), 0o644))
	must(t, c.SetState(c.cmks[1], emulator.Disabled))
	if err := os.WriteFile(path("new"), []byte("new"), 0o644); !errors.Is(err, unix.EIO) {
		t.Errorf("first bytes: %v, want EIO", err)
	}
	if err := os.Truncate(path("new"), 5); !errors.Is(err, unix.EIO) {
		t.Errorf("truncate: %v, want EIO", err)
	}
	if log := c.logged(t); !strings.Contains(log, c.cmks[1]) || !strings.Contains(log, "no data key for a new file") {
		t.Errorf("the log says\n%s", log)
	}
	if st, err := os.Stat(path("new")); err != nil || st.Size() != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	shell(t, c.plain, "echo more >> old; cat old")
	must(t, c.SetState(c.cmks[1], emulator.Enabled))
	must(t, os.WriteFile(path("new"), []byte("new"), 0o644))
	c.umount(t)
	c.fsck(t, 0)

	// A machine that may ask one of the CMKs only reads.
	c.mount(t, "cmk="+c.cmks[0])
	if !strings.Contains(c.printed.String(), "no file will get its first bytes") {
		t.Error("there is no warning")
	}
	if b, err := os.ReadFile(path("new")); string(b) != "new" {
		t.Errorf("%q, %v", b, err)
	}
	if err := os.WriteFile(path("third"), []byte("third"), 0o644); !errors.Is(err, unix.EIO) {
		t.Errorf("first bytes: %v, want EIO", err)
	}
	if log := c.logged(t); !strings.Contains(log, c.cmks[1]) {
		t.Errorf("the log says\n%s", log)
	}
}

// besideCalls runs try until it reports true: that a call, which lasts seconds before it is given up, was still waited for after all that must not wait. On a slow machine it
// may have been given up before; were a lock held over calls, it always would.
func besideCalls(t *testing.T, try func(n int) bool) {
	t.Helper()
	for n := range tries {
		if try(n) {
			return
		}
	}
	t.Error("a call was always over before others could go on")
}

const tries = 5

// TestPerFileBesideCalls looks at the mount while a CMK does not answer: nobody but the writer waits.
func TestPerFileBesideCalls(t *testing.T) {
	t.Parallel() // it waits for a call that is given up
	c := newClouds(t, emulator.Options{CMKs: cloudCMKs()[:1]})
	c.init(t, "--data-key", "per-file")
	c.mount(t)
	must(t, os.WriteFile(filepath.Join(c.plain, "old"), []byte("old"), 0o644))
	besideCalls(t, func(n int) bool {
		path := filepath.Join(c.plain, fmt.Sprint("new", n))
		f, err := os.Create(path)
		must(t, err)
		defer f.Close()
		c.faults(t, emulator.Fault{Kind: emulator.Hang, Operation: "GenerateDataKey"})
		c.ResetCalls()
		written := make(chan error, 1)
		go func() {
			_, err := f.Write([]byte("new"))
			written <- err
		}()
		eventually(t, "the CMK is asked", func() bool { return c.Count("", "GenerateDataKey") > 0 })
		// This looks at every open file. The kernel tells the end of the old one after close has returned.
		eventually(t, "one file is open", func() bool { return c.status(t).OpenFiles == 1 })
		if got := shell(t, c.plain, "cat old; stat -c %s "+path); got != "old0\n" && len(written) == 0 {
			t.Errorf("%q", got)
		}
		waits := len(written) == 0
		c.faults(t)
		if err := <-written; err != nil || !waits {
			return false
		}
		if b, err := os.ReadFile(path); string(b) != "new" {
			t.Errorf("%q, %v", b, err)
		}
		return true
	})
}

// TestPerFileLocal goes through the commands with a volume of local CMKs, whose every file has a data key of its own.
func TestPerFileLocal(t *testing.T) {
	v := newVolume(t, "--data-key=per-file", "--algorithm", "sm4-128-gcm", "--plaintext-names")
	if !strings.Contains(v.printed.String(), "local CMKs make no calls") {
		t.Errorf("init says\n%s", v.printed.String())
	}
	aURI := v.uriOf(t)
	b, bURI := v.newCMK(t, "b")
	fill(t, v.mount(t), 60)
	creates, replaces := &creator{dir: v.plain}, &replacer{path: filepath.Join(v.plain, "replaced")}
	must(t, replaces.prepare())
	var stop atomic.Bool
	var workers sync.WaitGroup
	for _, l := range []load{creates, replaces} {
		workers.Go(func() {
			for !stop.Load() {
				if err := l.step(); err != nil {
					t.Errorf("%T: %v", l, err)
					return
				}
			}
		})
	}
	// Files that are made beside a rewrap have the EDKs of before or after, and none escapes.
	a := "local:" + v.cmk
	for range 2 {
		v.ok(t, "rewrap", "--replace", a+"="+b, v.cipher)
		v.ok(t, "rewrap", "--replace", b+"="+a, v.cipher)
	}
	v.ok(t, "rewrap", "--add", b, v.cipher)
	stop.Store(true)
	workers.Wait()
	for _, l := range []load{creates, replaces} {
		if err := l.check(); err != nil {
			t.Errorf("%T: %v", l, err)
		}
	}
	v.listEverywhere(t, 60, aURI, bURI)
	want := contents(t, v.plain)
	v.umount(t)
	v.fsck(t, 0)
	if got := contents(t, v.readByReader(t)); got != want {
		t.Errorf("the other reader finds\n%s\nwant\n%s", got, want)
	}
	v.mount(t, "cmk="+b)
	if got := contents(t, v.plain); got != want {
		t.Errorf("the tree has changed:\n%s\nbefore:\n%s", got, want)
	}
	v.umount(t)
	sealed := v.sealedFiles(t)[3]
	v.ok(t, "recover", sealed, filepath.Join(v.dir, "recovered"))
	v.refused(t, 2, []string{`"each"`, "per-file"}, "init", "--data-key", "each", "--cmk", "local:"+v.cmk, v.dir+"/other")
	v.refused(t, 2, []string{"--data-key"}, "init", "--data-key=", "--cmk", "local:"+v.cmk, v.dir+"/other")
	must(t, os.WriteFile(filepath.Join(v.config, "kmsfs.toml"), []byte("data-key = 'per-file'\n"), 0o600))
	v.ok(t, "init", "--cmk", "local:"+v.cmk, v.dir+"/other")
	if !strings.Contains(v.ok(t, "inspect", "--json", v.dir+"/other"), `"data_key_per_file": true`) {
		t.Error("the configuration file does not count")
	}
	v.ok(t, "init", "--data-key", "volume", "--cmk", "local:"+v.cmk, v.dir+"/another")
	if strings.Contains(v.ok(t, "inspect", "--json", v.dir+"/another"), "per_file") {
		t.Error("the flag does not win over the configuration file")
	}
}

// TestInitFindsUnbound warns of a region that ignores the encryption context, with one unwrap for each CMK that could.
func TestInitFindsUnbound(t *testing.T) {
	cmks := append(cloudCMKs(), emulator.CMK{URI: "acs:kms:eu-central-1:1000000000000001:key/key-rsa00000000000000000000", Spec: "RSA_2048"})
	c := newClouds(t, emulator.Options{CMKs: cmks, Contexts: map[string]emulator.ContextMode{"huawei/ap-southeast-3": emulator.ContextIgnored}})
	c.faults(t, emulator.Fault{Kind: emulator.Status, Status: 403, Code: "Forbidden.NoPermission", CMK: c.cmks[2], Operation: "Decrypt"})
	c.init(t)
	said := c.printed.String()
	for i, cmk := range c.cmks {
		unbound, unknown := strings.Contains(said, "CMK "+cmk+" does not bind"), strings.Contains(said, "whether CMK "+cmk+" binds")
		if unbound != (i == 3) || unknown != (i == 2) {
			t.Errorf("%s: %s", cmk, said)
		}
	}
	if n := c.Count("", "Decrypt", "decrypt-datakey"); n != 4 || c.Count("", "AsymmetricDecrypt", "decrypt-data") != 0 {
		t.Errorf("%+v", c.Calls())
	}
	c.faults(t)
	c.save(t)
}

// TestOpenBesideCalls opens a file whose data key is not known while the CMK does not answer: nobody else waits, not even who renames the very file.
func TestOpenBesideCalls(t *testing.T) {
	t.Parallel() // it waits for a call that is given up
	c := newClouds(t, emulator.Options{CMKs: cloudCMKs()[:1]})
	c.init(t, "--data-key", "per-file")
	shell(t, c.mount(t), fmt.Sprintf("for n in $(seq 0 %d); do printf slow > slow$n; printf moved > moved$n; done; printf known > known; mkdir sub", tries-1))
	c.umount(t)
	shell(t, c.mount(t), "cat known moved*")
	besideCalls(t, func(n int) bool {
		c.faults(t, emulator.Fault{Kind: emulator.Hang, Operation: "Decrypt"})
		c.ResetCalls()
		opened := make(chan string, 1)
		go func() { // a program that is not interrupted, since it would try again by the old name
			out, err := exec.Command("cat", filepath.Join(c.plain, fmt.Sprint("slow", n))).Output()
			opened <- fmt.Sprint(string(out), err)
		}()
		eventually(t, "the CMK is asked", func() bool { return c.Count("", "Decrypt") > 0 })
		got := shell(t, c.plain, fmt.Sprintf("mv moved%[1]d slow%[1]d sub; cat known sub/moved%[1]d; stat -c %%s sub/slow%[1]d", n))
		if got != "knownmoved4\n" {
			t.Errorf("%q", got)
		}
		waits := len(opened) == 0
		c.faults(t)
		return <-opened == "slow<nil>" && waits
	})
}
