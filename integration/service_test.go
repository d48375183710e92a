package integration

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serviceSetting returns the values of a setting of the unit.
func serviceSetting(t *testing.T, name string) (values []string) {
	t.Helper()
	unit, err := os.ReadFile("../contrib/kmsfs@.service")
	must(t, err)
	for _, m := range regexp.MustCompile(`(?m)^`+name+`=(.*)$`).FindAllSubmatch(unit, -1) {
		values = append(values, string(m[1]))
	}
	return values
}

// A service runs the unit's command as systemd would: its words, its specifiers and variables, its environment.
type service struct {
	cmd    *exec.Cmd
	notify *net.UnixConn
	stderr bytes.Buffer
}

func startService(t *testing.T, v *volume, environment map[string]string, extra ...string) *service {
	t.Helper()
	commands := serviceSetting(t, "ExecStart")
	if len(commands) != 1 || !strings.HasPrefix(commands[0], "/usr/local/bin/kmsfs ") {
		t.Fatalf("ExecStart: %q", commands)
	}
	words := strings.Fields(commands[0])
	for i, w := range words {
		w = strings.ReplaceAll(w, "%f", v.plain)
		words[i] = os.Expand(w, func(name string) string { return environment[name] })
	}
	s := &service{cmd: exec.Command(binary, words[1:]...)}
	socket := filepath.Join(v.dir, "notify")
	_ = os.Remove(socket)
	var err error
	s.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { s.notify.Close() })
	s.cmd.Env = append([]string{"PATH=/usr/bin:/bin", "NOTIFY_SOCKET=" + socket, "KMSFS_CONFIG_DIR=" + v.config}, extra...)
	s.cmd.Dir = "/"
	s.cmd.Stderr = &s.stderr
	must(t, s.cmd.Start())
	return s
}

// told waits for what the service tells systemd.
func (s *service) told(t *testing.T, want string) {
	t.Helper()
	must(t, s.notify.SetReadDeadline(time.Now().Add(time.Minute)))
	b := make([]byte, 4096)
	n, err := s.notify.Read(b)
	if err != nil || string(b[:n]) != want {
		t.Fatalf("systemd is told %q, %v, want %q", b[:n], err, want)
	}
}

// TestService runs the unit's command with a local CMK as a credential.
func TestService(t *testing.T) {
	v := newVolume(t)
	must(t, os.RemoveAll(v.config)) // the credential is all that is trusted
	credentials := filepath.Join(v.dir, "credentials")
	id := serviceSetting(t, "LoadCredential")
	if len(id) != 1 || !strings.HasSuffix(id[0], ".cmk") {
		t.Fatalf("LoadCredential: %q", id)
	}
	shell(t, v.dir, "mkdir -m 500 credentials; install -m 400 cmk credentials/"+id[0]+"; rm cmk")
	env := map[string]string{"CIPHERDIR": v.cipher}
	s := startService(t, v, env, "CREDENTIALS_DIRECTORY="+credentials)
	s.told(t, "READY=1")
	v.mounted = true
	must(t, os.Chmod(v.plain, 0o755))
	must(t, os.WriteFile(filepath.Join(v.plain, "f"), []byte("content"), 0o644))
	shell(t, v.dir, `test "$(setpriv --reuid=65534 --regid=65534 --clear-groups cat plain/f)" = content`) // allow_other
	must(t, s.cmd.Process.Signal(unix.SIGTERM))
	s.told(t, "STOPPING=1")
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("the stopped service: %v\n%s", err, s.stderr.String())
	}
	if slices.Contains(mounts(), v.plain) {
		t.Error("still mounted")
	}
	v.mounted = false
	if log := s.stderr.String(); !strings.Contains(log, "msg=mounted") || !strings.Contains(log, "msg=unmounted") {
		t.Errorf("log: %s", log)
	}

	// Options of the instance come after those of the unit.
	env["OPTIONS"] = "ro,noatime"
	s = startService(t, v, env, "CREDENTIALS_DIRECTORY="+credentials)
	s.told(t, "READY=1")
	v.mounted = true
	if err := os.WriteFile(filepath.Join(v.plain, "g"), nil, 0o644); err == nil {
		t.Error("a read-only instance can be written to")
	}
	v.umount(t)
	s.told(t, "STOPPING=1")
	must(t, s.cmd.Wait())

	// What does not mend itself is not tried again.
	prevent := strings.Fields(strings.Join(serviceSetting(t, "RestartPreventExitStatus"), " "))
	if len(prevent) == 0 {
		t.Error("every failure is tried again")
	}
	for what, c := range map[string]struct{ cipher, code, says string }{
		"no CIPHERDIR": {"", "2", "is empty"},
		"no volume":    {v.dir, "3", v.dir},
		"no CMK":       {v.cipher, "6", "--cmk"},
	} {
		s = startService(t, v, map[string]string{"CIPHERDIR": c.cipher})
		err := s.cmd.Wait()
		if err == nil || err.Error() != "exit status "+c.code || !strings.Contains(s.stderr.String(), c.says) {
			t.Errorf("%s: %v, %s", what, err, s.stderr.String())
		}
		if again := !slices.Contains(prevent, c.code); again != (c.code == "6") {
			t.Errorf("%s: tried again: %v", what, again)
		}
	}
}

// TestServiceUnit lets systemd check the unit, and the names that its comment tells.
func TestServiceUnit(t *testing.T) {
	unit, err := os.ReadFile("../contrib/kmsfs@.service")
	must(t, err)
	path := filepath.Join(t.TempDir(), "kmsfs@.service")
	must(t, os.WriteFile(path, bytes.ReplaceAll(unit, []byte("/usr/local/bin/kmsfs"), []byte(binary)), 0o644))
	// The instance that verify makes up has no configuration, which is no fault of the unit.
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", path).CombinedOutput()
	if err != nil || strings.Contains(string(out), "kmsfs@") {
		t.Errorf("verify: %v\n%s", err, out)
	}
	out, err = exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold=55", "--no-pager", path).CombinedOutput()
	if err != nil {
		t.Errorf("security: %v\n%s", err, out)
	}
	for path, instance := range map[string]string{"/srv/plain": "srv-plain", "/srv/my-plain": `srv-my\x2dplain`} {
		if got := shell(t, "/", "systemd-escape --path "+path); got != instance+"\n" {
			t.Errorf("%s is the instance %q", path, got)
		}
	}
	for _, want := range []string{"EnvironmentFile=/etc/kmsfs/%i.conf", "/etc/kmsfs/srv-plain.conf", "kmsfs@srv-plain.service"} {
		if !bytes.Contains(unit, []byte(want)) {
			t.Errorf("the unit does not say %s", want)
		}
	}
	// These would give the service a mount namespace of its own, and nobody else would see the volume.
	for _, never := range []string{"ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "ProtectKernelTunables", "ProtectKernelModules",
		"ProtectKernelLogs", "ProtectControlGroups", "ProtectProc", "ProcSubset", "ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths", "MountFlags", "RootDirectory"} {
		if values := serviceSetting(t, never); len(values) > 0 {
			t.Errorf("the unit has %s=%s", never, values[0])
		}
	}
}
