package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// namespaced runs a script in a mount namespace of its own, in dir, with the program in its PATH and a /dev that is as udev makes it, in
// particular with a FUSE device for every user. What it mounts is gone when it ends.
func namespaced(t *testing.T, dir, script string) string {
	t.Helper()
	shell(t, dir, "mkdir -p bin dev; install -m 755 "+binary+" bin/kmsfs")
	const preamble = `
		mount -t tmpfs -o mode=755 dev dev
		for d in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 fuse:10:229; do IFS=: read n a b <<< $d; mknod -m 666 dev/$n c $a $b; done
		ln -s /proc/self/fd dev/fd
		mount --bind dev /dev
		trap 'cd /; while read -r _ at kind _; do [ $kind != fuse.kmsfs ] || umount -l "$at"; done < /proc/self/mounts' EXIT
		export PATH=$PWD/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin KMSFS_CONFIG_DIR=$PWD/config
`
	path := filepath.Join(dir, "script")
	must(t, os.WriteFile(path, []byte("set -euo pipefail"+preamble+script), 0o644))
	return shell(t, dir, "unshare --mount --propagation private bash "+path)
}

// asUser is a shell function that runs a command as a user who is not root, with a home of his own.
const asUser = `
	mkdir -p home; chown 65534:65534 home
	asuser() { setpriv --reuid=65534 --regid=65534 --clear-groups env -u KMSFS_CONFIG_DIR -u XDG_CONFIG_HOME HOME=$PWD/home "$@"; }
`

// TestUser mounts as a user who is not root, through fusermount3.
func TestUser(t *testing.T) {
	v := bareVolume(t)
	got := namespaced(t, v.dir, asUser+`
		asuser kmsfs key new home/cmk > /dev/null
		asuser kmsfs init --cmk local:$PWD/home/cmk home/cipher > /dev/null
		asuser mkdir home/plain
		asuser kmsfs mount home/cipher home/plain 2> warning
		asuser sh -c 'echo hello > home/plain/f; cat home/plain/f; stat -c "%u %a" home/plain/f'
		cat home/plain/f 2>&1 | grep -o 'Permission denied' || true
		asuser kmsfs umount home/plain
		find home/.config -type f | sed 's,[0-9a-f]\{32\},ID,'
		asuser kmsfs mount home/cipher home/plain 2> warning
		asuser cat home/plain/f
		asuser fusermount3 -u home/plain
		# The lock goes a moment after the mount: mounting again waits for it.
		asuser kmsfs mount -o ro home/cipher home/plain 2> warning
		asuser sh -c 'echo x > home/plain/f' 2>&1 | grep -o 'Read-only file system' || true
		asuser kmsfs umount home/plain
		# A reason is on standard error, also from the background.
		mkdir foreign
		asuser kmsfs mount home/cipher foreign 2> reason && echo mounted || echo refused $?
		grep -q 'kmsfs: mount .*foreign' reason && grep -o 'hint: users other than root' reason || cat reason
		chmod 600 /dev/fuse
		asuser kmsfs mount home/cipher home/plain 2> reason && echo mounted || echo refused $?
		grep -o 'hint: this user cannot open /dev/fuse' reason
		rm /dev/fuse
		asuser kmsfs mount home/cipher home/plain 2> reason && echo mounted || echo refused $?
		grep -o 'there is no /dev/fuse' reason
		ls -A home/plain`)
	want := "hello\n65534 644\nPermission denied\nhome/.config/kmsfs/volumes/ID.toml\nhello\nRead-only file system\nrefused 8\nhint: users other than root\n" +
		"refused 8\nhint: this user cannot open /dev/fuse\nrefused 8\nthere is no /dev/fuse\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestSyslog reads what the program sends to /dev/log.
func TestSyslog(t *testing.T) {
	v := newVolume(t)
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(v.dir, "syslog"), Net: "unixgram"})
	must(t, err)
	defer l.Close()
	must(t, os.WriteFile(filepath.Join(v.cipher, ".kmsfs/volume.copy"), []byte("damaged"), 0o600))
	got := namespaced(t, v.dir, `
		mount -t tmpfs run /run
		kmsfs mount --log syslog cipher plain 2> reason && echo mounted || echo refused $?
		grep -o -e '--log syslog: .*syslog' reason
		kmsfs mount cipher plain 2> warning
		grep -o 'there is no syslog' warning
		kmsfs umount plain
		ln -s $PWD/syslog /dev/log
		kmsfs mount cipher plain
		kmsfs umount plain`)
	if want := "refused 1\n--log syslog: Unix syslog\nthere is no syslog\n"; !strings.HasPrefix(got, "refused 1\n--log syslog: ") || !strings.HasSuffix(got, "there is no syslog\n") {
		t.Errorf("got %q, want about %q", got, want)
	}
	must(t, l.SetReadDeadline(time.Now().Add(time.Minute)))
	var lines []string
	for len(lines) == 0 || !strings.Contains(lines[len(lines)-1], "msg=unmounted") {
		b := make([]byte, 8192)
		n, err := l.Read(b)
		if err != nil {
			t.Fatalf("after %q: %v", lines, err)
		}
		lines = append(lines, string(b[:n]))
	}
	// The facility is daemon, the severity that of the record.
	for i, want := range []string{`^<28>.* kmsfs\[\d+\]: msg="volume header: `, `^<30>.* kmsfs\[\d+\]: msg=mounted volume=[0-9a-f]{32} ciphertext=`, `^<30>.* msg=unmounted`} {
		if i >= len(lines) || !regexp.MustCompile(want).MatchString(lines[i]) {
			t.Errorf("line %d of %q is not %s", i, lines, want)
		}
	}
}

// TestDetach stops a daemon whose mount is in use: nobody finds the mount any more, its user can finish.
func TestDetach(t *testing.T) {
	v := newVolume(t)
	d := v.foreground(t)
	must(t, os.WriteFile(filepath.Join(v.plain, "f"), []byte("content"), 0o644))
	f, err := os.Open(filepath.Join(v.plain, "f"))
	must(t, err)
	defer f.Close()
	must(t, d.Process.Signal(unix.SIGTERM))
	eventually(t, "detached", func() bool { return !slices.Contains(mounts(), v.plain) })
	v.mounted = false
	b := make([]byte, 100)
	if n, err := f.Read(b); err != nil || string(b[:n]) != "content" {
		t.Errorf("the open file: %q, %v", b[:n], err)
	}
	must(t, f.Close())
	if err := d.Wait(); err != nil {
		t.Errorf("the daemon: %v\n%s", err, d.Stderr)
	}
	v.mount(t)
}

// foreground mounts the volume with a daemon that is a child of the test.
func (v *volume) foreground(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	before, _ := os.ReadFile(v.log)
	cmd := exec.Command(binary, slices.Concat([]string{"mount", "--foreground", "--log", v.log}, args, []string{v.cipher, v.plain})...)
	cmd.Env = append(os.Environ(), "KMSFS_CONFIG_DIR="+v.config)
	cmd.Stderr = new(bytes.Buffer)
	must(t, cmd.Start())
	eventually(t, "mounted", func() bool {
		log, _ := os.ReadFile(v.log)
		return bytes.Contains(bytes.TrimPrefix(log, before), []byte("msg=mounted"))
	})
	v.mounted = true
	return cmd
}

// TestInUse keeps a volume that is mounted, and a mountpoint that is taken, from a second mount.
func TestInUse(t *testing.T) {
	v, other := newVolume(t), newVolume(t)
	v.mount(t)
	v.refused(t, exitInUse, []string{v.cipher, "on " + v.plain, "unmount it"}, "mount", v.cipher, other.plain)
	other.refused(t, exitMountpoint, []string{v.plain, v.cipher, "mounted already"}, "mount", other.cipher, v.plain)
	f, err := os.Create(filepath.Join(v.plain, "f"))
	must(t, err)
	v.refused(t, exitMountpoint, []string{v.plain, "in use", "fuser"}, "umount", v.plain)
	time.AfterFunc(200*time.Millisecond, func() { f.Close() }) // umount waits for who is about to leave
	link := filepath.Join(v.dir, "link")
	must(t, os.Symlink(v.dir, link))
	v.ok(t, "umount", filepath.Join(link, "plain"))
	v.mounted = false
}

// TestStaleThroughLink clears a stale mount that is named through a symbolic link.
func TestStaleThroughLink(t *testing.T) {
	v := newVolume(t)
	d := v.foreground(t)
	must(t, d.Process.Kill())
	_ = d.Wait()
	eventually(t, "the mount is stale", func() bool { return errors.Is(unix.Statfs(v.plain, new(unix.Statfs_t)), unix.ENOTCONN) })
	v.refused(t, exitMountpoint, []string{v.plain, "its daemon is gone", "kmsfs umount"}, "status", v.plain)
	link := filepath.Join(v.dir, "link")
	must(t, os.Symlink(v.dir, link))
	v.ok(t, "mount", "-o", "log="+v.log, filepath.Join(link, "cipher"), filepath.Join(link, "plain"))
	if got := mounts(); !slices.Equal(got, []string{v.plain}) {
		t.Errorf("mounts: %q", got)
	}
	v.umount(t)

	d = v.foreground(t)
	must(t, d.Process.Kill())
	_ = d.Wait()
	v.umount(t) // takes a stale mount away, too
}

// TestKilledWhileMounting kills daemons as soon as their mounts appear: each dies, since nothing in it waits for an answer of its own.
func TestKilledWhileMounting(t *testing.T) {
	v := newVolume(t)
	for range 20 {
		cmd := exec.Command(binary, "mount", "--foreground", "--log", v.log, v.cipher, v.plain)
		cmd.Env = append(os.Environ(), "KMSFS_CONFIG_DIR="+v.config)
		must(t, cmd.Start())
		v.mounted = true
		for end := time.Now().Add(time.Minute); !slices.Contains(mounts(), v.plain) && time.Now().Before(end); {
		}
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		eventually(t, "the mount is stale", func() bool { return errors.Is(unix.Statfs(v.plain, new(unix.Statfs_t)), unix.ENOTCONN) })
		v.umount(t)
	}
}

// TestConfiguration takes settings from the configuration file, and lets the command line win.
func TestConfiguration(t *testing.T) {
	v := bareVolume(t)
	v.ok(t, "key", "new", v.cmk)
	must(t, os.Mkdir(v.config, 0o700))
	must(t, os.WriteFile(filepath.Join(v.config, "kmsfs.toml"), []byte("cmk = ['local:"+v.cmk+"']\nalgorithm = 'sm4-128-gcm'\nsegment-size = 8192\n"+
		"options = ['ro,noexec']\nlog = '"+v.log+"'\n[context]\nteam = 'web'\n"), 0o600))
	v.ok(t, "init", "--segment-size", "16384", v.cipher)
	out := v.ok(t, "inspect", v.cipher)
	for _, want := range []string{"sm4-128-gcm", "16384", "team=web"} {
		if !strings.Contains(out, want) {
			t.Errorf("%s is not in\n%s", want, out)
		}
	}
	must(t, os.RemoveAll(filepath.Join(v.config, "volumes")))
	flags := func() int64 {
		var st unix.Statfs_t
		must(t, unix.Statfs(v.plain, &st))
		return st.Flags & (unix.ST_RDONLY | unix.ST_NOEXEC)
	}
	for _, c := range []struct {
		args []string
		want int64
	}{{nil, unix.ST_RDONLY | unix.ST_NOEXEC}, {[]string{"-o", "rw"}, unix.ST_NOEXEC}, {[]string{"-o", "rw,exec"}, 0}} {
		v.ok(t, slices.Concat([]string{"mount"}, c.args, []string{v.cipher, v.plain})...)
		v.mounted = true
		if got := flags(); got != c.want {
			t.Errorf("%v: flags %x, want %x", c.args, got, c.want)
		}
		v.umount(t)
	}
	if b, err := os.ReadFile(v.log); err != nil || strings.Count(string(b), "msg=mounted") != 3 {
		t.Errorf("log: %v\n%s", err, b)
	}
}

// TestInspectJSON fixes the names that scripts rely on, and adds up the sizes of files of all kinds.
func TestInspectJSON(t *testing.T) {
	v := newVolume(t, "--context", "a=1", "--context", "b=x\x1b[31m")
	plain := v.mount(t)
	for _, size := range []int{0, 1, 4096, 4097, 100_000, 3_000_000} {
		must(t, os.WriteFile(filepath.Join(plain, strconv.Itoa(size)), bytes.Repeat([]byte{1}, size), 0o644))
	}
	must(t, os.Truncate(filepath.Join(plain, "1"), 5_000_000)) // a file with holes
	v.umount(t)
	must(t, os.Remove(v.cmk)) // no key is needed
	must(t, os.RemoveAll(v.config))

	keys := func(object map[string]any) string { return strings.Join(slices.Sorted(maps.Keys(object)), " ") }
	inspect := func(path string) map[string]any {
		var object map[string]any
		must(t, json.Unmarshal([]byte(v.ok(t, "inspect", "--json", path)), &object))
		if object["path"] != path {
			t.Errorf("path %v, want %s", object["path"], path)
		}
		return object
	}
	const headerKeys = "algorithm context data_key_id edks format_version header_size header_used id kind path plaintext_names segment_size"
	if got := keys(inspect(v.cipher)); got != headerKeys {
		t.Errorf("volume: %s", got)
	}
	kinds := make(map[any]int)
	var sealed []byte
	for _, path := range v.sealedFiles(t) {
		object := inspect(path)
		kinds[object["kind"]]++
		file := object["file"].(map[string]any)
		number := func(name string) int64 { return int64(file[name].(float64)) }
		header, _ := object["header_size"].(float64)
		st, err := os.Stat(path)
		must(t, err)
		if sum := int64(header) + number("hole_root_size") + number("hole_map_size") + number("seal_overhead") + number("plaintext_size"); sum != st.Size() ||
			number("size") != st.Size() || file["valid_size"] != true {
			t.Errorf("%s: the sum is %d, the size %d: %v", path, sum, st.Size(), object)
		}
		if object["kind"] == "file" {
			sealed, err = os.ReadFile(path)
			must(t, err)
			if got := strings.Replace(keys(object), "file ", "", 1); got != headerKeys {
				t.Errorf("file: %s", got)
			}
		}
		if got := keys(file); got != "hole_map_size hole_map_slots hole_root_size plaintext_size seal_overhead segments size valid_size" {
			t.Errorf("file: %s", got)
		}
	}
	if kinds["file"] != 6 && kinds["file"]+kinds["empty"] != 6 || kinds["file"] < 5 {
		t.Errorf("kinds: %v", kinds)
	}
	if out := v.ok(t, "inspect", v.cipher); strings.Contains(out, "\x1b") || !strings.Contains(out, `b="x\x1b[31m"`) {
		t.Errorf("control characters reach the terminal: %q", out)
	}
	cut := filepath.Join(v.dir, "cut")
	must(t, os.WriteFile(cut, sealed[:2080], 0o600)) // the last segment has no room for its seal
	if out := v.ok(t, "inspect", cut); !strings.Contains(out, "WARNING") {
		t.Errorf("a cut file: %s", out)
	}
}

// TestInterrupted ends a mount that waits: the parent in the foreground passes the signal on, and nothing is left.
func TestInterrupted(t *testing.T) {
	v := newVolume(t)
	// Somebody out of sight has the volume.
	lock, err := os.Open(filepath.Join(v.cipher, ".kmsfs"))
	must(t, err)
	defer lock.Close()
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	cmd := exec.Command(binary, "mount", v.cipher, v.plain)
	cmd.Env = append(os.Environ(), "KMSFS_CONFIG_DIR="+v.config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	must(t, cmd.Start())
	eventually(t, "the background process waits", func() bool { return exec.Command("pgrep", "-P", strconv.Itoa(cmd.Process.Pid)).Run() == nil })
	must(t, cmd.Process.Signal(unix.SIGINT))
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() <= 0 {
		t.Errorf("%v, %s", err, stderr.String())
	}
	if left := mounts(); len(left) > 0 {
		t.Errorf("mounts: %q", left)
	}
}
