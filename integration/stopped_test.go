package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// TestStopped stops commands while they wait for a KMS: each says so, in words of its user's, and leaves nothing behind. Nor can anybody have what is in their
// memory meanwhile: they leave no cores, and their user's other processes may not look into them.
func TestStopped(t *testing.T) {
	// Whoever runs the tests may ignore it, as nohup does; a signal that is caught here is not ignored in what is started.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGHUP)
	defer signal.Stop(caught)

	c := newClouds(t, emulator.Options{CMKs: cloudCMKs()[:1]})
	c.init(t)
	c.faults(t, emulator.Fault{Kind: emulator.Hang})
	own := filepath.Join(c.dir, "own")
	must(t, os.Mkdir(own, 0o700))
	must(t, os.Chown(own, 65534, 65534))
	program := filepath.Join(c.dir, "kmsfs")
	shell(t, c.dir, "install -m 755 "+binary+" kmsfs")

	for _, s := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		for _, line := range []string{
			"init --cmk " + c.cmks[0] + " " + own + "/cipher",
			"encrypt --cmk " + c.cmks[0] + " /proc/version " + own + "/out",
			"keyring check --cmk " + c.cmks[0],
			"mount " + c.cipher + " " + c.plain,
			"mount --foreground " + c.cipher + " " + c.plain,
			"fsck " + c.cipher,
			"rewrap " + c.cipher,
			"rotate " + c.cipher,
			"reencrypt " + c.cipher,
		} {
			c.ResetCalls()
			user := !strings.Contains(line, c.cipher)
			cmd := exec.Command(program, strings.Fields(line)...)
			cmd.Env = append(append(os.Environ(), "KMSFS_CONFIG_DIR="+c.config), c.env...)
			if user {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
				cmd.Env = append(cmd.Env, "KMSFS_CONFIG_DIR="+own)
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			must(t, cmd.Start())
			eventually(t, "the KMS is asked", func() bool { return c.Count("") > 0 })
			proc := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
			eventually(t, line+" has no cores", func() bool {
				limits, err := os.ReadFile(proc + "limits")
				must(t, err)
				return strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0")
			})
			var st unix.Stat_t
			if err := unix.Stat(proc+"environ", &st); err != nil || st.Uid != 0 {
				t.Errorf("%s: its environment is that of user %d, %v", line, st.Uid, err)
			}
			must(t, cmd.Process.Signal(s))
			_ = cmd.Wait()
			c.printed.Write(stderr.Bytes())
			text := stderr.String()
			if cmd.ProcessState.ExitCode() != exitOther || !strings.HasPrefix(text, "kmsfs: ") || !strings.Contains(text, "interrupted\n") || strings.Contains(text, "canceled") {
				t.Errorf("%v of %s: %v, %q", s, line, cmd.ProcessState, text)
			}
		}
	}
	if left, err := os.ReadDir(own); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestHangup ends a mount whose terminal is closed as SIGTERM does: the mount is gone, and not left to fail.
func TestHangup(t *testing.T) {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGHUP) // as above
	defer signal.Stop(caught)
	v := newVolume(t)
	d := v.foreground(t)
	must(t, os.WriteFile(filepath.Join(v.plain, "f"), []byte("content"), 0o600))
	must(t, d.Process.Signal(unix.SIGHUP))
	if err := d.Wait(); err != nil {
		t.Errorf("the daemon: %v\n%s", err, d.Stderr)
	}
	if left := mounts(); len(left) > 0 {
		t.Errorf("mounts: %q", left)
	}
	v.mounted = false
	v.mount(t)
}
