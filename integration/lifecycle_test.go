package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Exit codes that docs/kmsfs.1.md promises.
const (
	exitUsage      = 2
	exitNotVolume  = 3
	exitDamaged    = 4
	exitVersion    = 5
	exitCMK        = 6
	exitInUse      = 7
	exitMountpoint = 8
)

func TestMountRefuses(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	second := filepath.Join(v.dir, "second")
	must(t, os.Mkdir(second, 0o755))
	v.refused(t, exitInUse, []string{v.cipher}, "mount", v.cipher, second)
	v.umount(t)

	must(t, os.WriteFile(filepath.Join(second, "x"), nil, 0o644))
	v.refused(t, exitMountpoint, []string{second, "nonempty"}, "mount", v.cipher, second)
	inside := filepath.Join(v.cipher, "inside")
	must(t, os.Mkdir(inside, 0o755))
	v.refused(t, exitMountpoint, []string{inside}, "mount", v.cipher, inside)
	v.refused(t, exitMountpoint, []string{v.dir}, "mount", "-o", "nonempty", v.cipher, v.dir)
	must(t, os.Remove(inside))
	v.refused(t, exitMountpoint, []string{"nowhere"}, "mount", v.cipher, filepath.Join(v.dir, "nowhere"))
	v.refused(t, exitMountpoint, []string{v.cmk}, "mount", v.cipher, v.cmk)
	v.refused(t, exitNotVolume, []string{second}, "mount", second, plain)
	v.refused(t, exitUsage, []string{"bogus"}, "mount", "-o", "bogus", v.cipher, plain)
	v.refused(t, exitUsage, []string{"--foreground", "first"}, "mount", v.cipher, plain, "--foreground")
	v.refused(t, exitMountpoint, []string{plain}, "umount", plain)
}

func TestMountCMKs(t *testing.T) {
	v := bareVolume(t)
	a, b, c := filepath.Join(v.dir, "a"), filepath.Join(v.dir, "b"), filepath.Join(v.dir, "c")
	for _, cmk := range []string{a, b, c} {
		v.ok(t, "key", "new", cmk)
	}
	v.ok(t, "init", "--cmk", "local:"+a, "--cmk", "local:"+b, v.cipher)
	must(t, os.WriteFile(filepath.Join(v.mount(t), "f"), []byte("x"), 0o644))
	v.umount(t)
	must(t, os.RemoveAll(v.config))
	v.refused(t, exitCMK, []string{"--cmk", "local:"}, "mount", v.cipher, v.plain)
	v.refused(t, exitCMK, []string{"--cmk"}, "mount", "--cmk", "local:"+c, v.cipher, v.plain)
	for _, cmk := range []string{a, b} {
		v.ok(t, "mount", "--cmk", "local:"+cmk, v.cipher, v.plain)
		v.mounted = true
		if got, err := os.ReadFile(filepath.Join(v.plain, "f")); err != nil || string(got) != "x" {
			t.Errorf("with %s: %q, %v", cmk, got, err)
		}
		v.umount(t)
	}
	// The first mount has noted its CMK.
	v.mount(t)
	v.umount(t)
	must(t, os.Chmod(a, 0o644))
	v.refused(t, exitCMK, []string{a, "chmod 600"}, "mount", "--cmk", "local:"+a, v.cipher, v.plain)
	must(t, os.Remove(a))
	v.refused(t, exitCMK, []string{a, "any one of"}, "mount", v.cipher, v.plain)
	v.mount(t, "cmk=local:"+b)
}

func TestInitRefuses(t *testing.T) {
	v := bareVolume(t)
	v.ok(t, "key", "new", v.cmk)
	v.refused(t, 1, []string{v.cmk}, "key", "new", v.cmk)
	for _, args := range [][]string{
		{"init", v.cipher},
		{"init", "--cmk", "local:relative", v.cipher},
		{"init", "--cmk", "gopher:x", v.cipher},
		{"init", "--cmk", "local:" + v.cmk, "--cmk", "local:" + v.cmk, v.cipher},
		{"init", "--cmk", "local:" + v.cmk, "--algorithm", "rot13", v.cipher},
		{"init", "--cmk", "local:" + v.cmk, "--segment-size", "5000", v.cipher},
		{"init", "--cmk", "local:" + v.cmk, "--context", "novalue", v.cipher},
		{"init", "--cmk", "local:" + v.cmk, "--endpoint", "alibaba/r=http://example.org", v.cipher},
		{"init", "--cmk", "local:" + v.cmk, v.cipher, "--plaintext-names"},
		{"init", "--bogus", v.cipher},
		{"bogus"},
	} {
		v.refused(t, exitUsage, nil, args...)
	}
	v.refused(t, exitCMK, []string{"missing"}, "init", "--cmk", "local:"+v.dir+"/missing", v.cipher)
	if _, err := os.Stat(v.cipher); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a wrong command line left something: %v", err)
	}
	if _, err := os.Stat(v.config); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a wrong command line left a configuration: %v", err)
	}
	must(t, os.Mkdir(v.cipher, 0o755))
	must(t, os.WriteFile(filepath.Join(v.cipher, "x"), nil, 0o644))
	v.refused(t, 1, []string{v.cipher}, "init", "--cmk", "local:"+v.cmk, v.cipher)
}

func TestDamagedVolumeHeader(t *testing.T) {
	v := newVolume(t)
	must(t, os.WriteFile(filepath.Join(v.mount(t), "f"), []byte("x"), 0o644))
	v.umount(t)
	path, copy := filepath.Join(v.cipher, ".kmsfs/volume"), filepath.Join(v.cipher, ".kmsfs/volume.copy")
	good, err := os.ReadFile(path)
	must(t, err)
	edit := func(path string, at int, to byte) {
		b := bytes.Clone(good)
		b[at] = to
		must(t, os.WriteFile(path, b, 0o600))
	}
	for _, at := range []int{0, 15, 40, 56, 120, 220, 1000} {
		edit(path, at, good[at]^1)
		if b, err := os.ReadFile(filepath.Join(v.mount(t), "f")); err != nil || string(b) != "x" {
			t.Errorf("byte %d changed: the copy was not used: %v", at, err)
		}
		v.umount(t)
	}
	edit(path, 0, 'X')
	edit(copy, 0, 'X')
	v.refused(t, exitDamaged, []string{path}, "mount", v.cipher, v.plain)
	edit(path, 15, 1)
	edit(copy, 15, 1)
	v.refused(t, exitDamaged, []string{path}, "mount", v.cipher, v.plain)
	edit(path, 9, 2)
	edit(copy, 9, 2)
	v.refused(t, exitVersion, []string{"newer"}, "mount", v.cipher, v.plain)
	must(t, os.Remove(path))
	must(t, os.Remove(copy))
	v.refused(t, exitNotVolume, []string{v.cipher}, "mount", v.cipher, v.plain)
	must(t, os.WriteFile(path, good, 0o600))
	v.mount(t)
}

func TestKilledDaemon(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	shell(t, plain, `echo closed > closed; for i in $(seq 100); do echo $i > $i; done`)
	shell(t, v.dir, `kill -9 $(pgrep -f "^[^ ]*kmsfs mount.*`+v.cipher+`")`)
	eventually(t, "the mount is stale", func() bool { return errors.Is(unix.Statfs(plain, new(unix.Statfs_t)), unix.ENOTCONN) })
	v.mount(t) // clears the stale mount
	if got := shell(t, plain, `cat closed 1 100; ls | wc -l`); got != "closed\n1\n100\n101\n" {
		t.Errorf("got %q", got)
	}
}

func TestTerminated(t *testing.T) {
	v := newVolume(t)
	v.mount(t)
	shell(t, v.dir, `kill -TERM $(pgrep -f "^[^ ]*kmsfs mount.*`+v.cipher+`")`)
	eventually(t, "unmounted", func() bool { return len(mounts()) == 0 })
	v.mounted = false
	eventually(t, "released", func() bool { return v.run(t, "mount", v.cipher, v.plain).code == 0 })
	v.mounted = true
}

func TestForegroundHidesKeys(t *testing.T) {
	v := newVolume(t)
	cmd := exec.Command(binary, "mount", "--foreground", v.cipher, v.plain)
	cmd.Env = append(os.Environ(), "KMSFS_CONFIG_DIR="+v.config)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	must(t, cmd.Start())
	eventually(t, "mounted", func() bool { return len(mounts()) == 1 })
	v.mounted = true
	proc := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid))
	limits, err := os.ReadFile(filepath.Join(proc, "limits"))
	must(t, err)
	if !strings.Contains(string(limits), "Max core file size        0                    0") {
		t.Errorf("core files are possible:\n%s", limits)
	}
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	must(t, err)
	if !strings.Contains(string(status), "VmLck:") || strings.Contains(string(status), "VmLck:\t       0 kB") {
		t.Errorf("memory is not locked:\n%s", status)
	}
	v.umount(t)
	must(t, cmd.Wait())
	if !strings.Contains(stderr.String(), "unmounted") {
		t.Errorf("log: %s", stderr.String())
	}
}

func TestReadOnlyAndFullBacking(t *testing.T) {
	v := bareVolume(t)
	v.ok(t, "key", "new", v.cmk)
	must(t, os.Mkdir(v.cipher, 0o755))
	shell(t, v.dir, `truncate -s 24M image; mkfs.ext4 -q image; dev=$(losetup --find --show image); mount $dev cipher; losetup --detach $dev`)
	defer shell(t, v.dir, `for try in $(seq 600); do ! umount cipher 2>/dev/null || exit 0; sleep 0.1; done; umount cipher`) // the daemon is just ending
	v.ok(t, "init", "--cmk", "local:"+v.cmk, v.cipher)
	plain := v.mount(t)
	got := shell(t, plain, `seq 1 100000 > old; sync old; sum=$(md5sum < old); dd if=/dev/zero of=fill bs=1M count=100 2>&1 | grep -o 'No space left' || true
		test "$sum" = "$(md5sum < old)" && echo intact; echo more >> old 2>/dev/null || true; rm fill; echo again > new; cat new`)
	if got != "No space left\nintact\nagain\n" {
		t.Errorf("full disk: %q", got)
	}
	v.umount(t)
	shell(t, v.dir, `mount -o remount,ro cipher`)
	plain = v.mount(t)
	if got := shell(t, plain, `cat new; (echo x > y) 2>/dev/null || echo refused`); got != "again\nrefused\n" {
		t.Errorf("read-only backing: %q", got)
	}
	v.umount(t)
}

func TestInspect(t *testing.T) {
	v := newVolume(t, "--algorithm", "aes-256-gcm", "--context", "project=demo, with commas")
	must(t, os.WriteFile(filepath.Join(v.mount(t), "f"), make([]byte, 10000), 0o644))
	v.umount(t)
	must(t, os.RemoveAll(v.config))
	must(t, os.Remove(v.cmk)) // no key is needed
	var facts struct {
		Kind       string
		Context    map[string]string
		HeaderSize int64 `json:"header_size"`
		File       struct {
			Size, Segments int64
			Plain          int64 `json:"plaintext_size"`
			Root           int64 `json:"hole_root_size"`
			Seal           int64 `json:"seal_overhead"`
			Maps           int64 `json:"hole_map_size"`
		}
	}
	path := v.sealedFiles(t)[0]
	must(t, json.Unmarshal([]byte(v.ok(t, "inspect", "--json", path)), &facts))
	st, err := os.Stat(path)
	must(t, err)
	f := facts.File
	if sum := facts.HeaderSize + f.Root + f.Seal + f.Maps + f.Plain; sum != f.Size || f.Size != st.Size() || f.Plain != 10000 || f.Segments != 3 {
		t.Errorf("sizes do not add up: %+v", facts)
	}
	if facts.Context["project"] != "demo, with commas" {
		t.Errorf("context: %v", facts.Context)
	}
	if out := v.ok(t, "inspect", v.cipher); !strings.Contains(out, "aes-256-gcm") || !strings.Contains(out, "local:") {
		t.Errorf("volume: %s", out)
	}
	v.refused(t, exitNotVolume, []string{"harness_test.go"}, "inspect", "harness_test.go")
	v.refused(t, exitNotVolume, []string{v.plain}, "inspect", v.plain)
}
