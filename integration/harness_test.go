// Package integration proves that the built binary behaves: every test drives it as a child process on real mounts.
package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// binary is the program under test, built by TestMain.
var binary string

func TestMain(m *testing.M) {
	if os.Getenv(superviseVariable) != "" {
		fmt.Fprintln(os.Stderr, supervise())
		os.Exit(1)
	}
	if os.Getenv(ringsVariable) == "other" {
		os.Exit(runTheOtherWay())
	}
	os.Exit(func() int {
		if left := mounts(); len(left) > 0 {
			fmt.Fprintln(os.Stderr, "kmsfs mounts from before:", left)
			return 1
		}
		unix.Umask(0o022) // tests have modes of their own in mind
		leave, err := onExt4()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer leave()
		dir, err := os.MkdirTemp("", "kmsfs-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "kmsfs")
		args := []string{"build", "-o", binary}
		if os.Getenv("KMSFS_RACE") != "" {
			args = append(args, "-race")
		}
		if out, err := exec.Command("go", append(args, "../cmd/kmsfs")...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		code := m.Run()
		if left := mounts(); len(left) > 0 {
			fmt.Fprintln(os.Stderr, "kmsfs mounts left behind:", left)
			for _, path := range left {
				_ = unix.Unmount(path, unix.MNT_DETACH)
			}
			return 1
		}
		return code
	}())
}

// onExt4 has temporary files on ext4 until leave is called. Tests compare with it, and need its long symbolic links, whatever the machine has there.
func onExt4() (leave func(), err error) {
	for _, dir := range []string{os.TempDir(), "/var/tmp"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.EXT4_SUPER_MAGIC {
			return func() {}, os.Setenv("TMPDIR", dir)
		}
	}
	dir, err := os.MkdirTemp("", "kmsfs-ext4-")
	if err != nil {
		return nil, err
	}
	script := exec.Command("sh", "-ec", "chmod 755 .; truncate -s 16G image; mkfs.ext4 -q -m 0 image; mkdir disk; mount -o loop image disk; chmod 1777 disk")
	script.Dir = dir
	if out, err := script.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("no ext4 for temporary files: %w\n%s", err, out)
	}
	disk := filepath.Join(dir, "disk")
	return func() {
		_ = unix.Unmount(disk, unix.MNT_DETACH)
		os.RemoveAll(dir)
	}, os.Setenv("TMPDIR", disk)
}

// mounts lists the mounted volumes.
func mounts() (paths []string) {
	infos, _ := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.FSType != "fuse.kmsfs", false })
	for _, i := range infos {
		paths = append(paths, i.Mountpoint)
	}
	return paths
}

// A result is what a run of the program gave.
type result struct {
	stdout, stderr string
	code           int
}

// run runs the program in the volume's environment.
func (v *volume) run(t testing.TB, args ...string) result {
	t.Helper()
	if settings, _ := os.ReadFile(filepath.Join(v.config, "kmsfs.toml")); !bytes.Contains(settings, []byte("algorithm")) {
		args = withAlgorithm(args)
	}
	cmd := exec.Command(binary, args...)
	cmd.Env = append(append(os.Environ(), "KMSFS_CONFIG_DIR="+v.config), v.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	v.printed.Write(stdout.Bytes())
	v.printed.Write(stderr.Bytes())
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// ok runs the program and fails the test if it fails.
func (v *volume) ok(t testing.TB, args ...string) string {
	t.Helper()
	r := v.run(t, args...)
	if r.code != 0 {
		t.Fatalf("kmsfs %s: exit code %d\n%s", strings.Join(args, " "), r.code, r.stderr)
	}
	return r.stdout
}

// refused runs the program and expects an exit code and a message with all of words.
func (v *volume) refused(t testing.TB, code int, words []string, args ...string) {
	t.Helper()
	r := v.run(t, args...)
	if r.code != code {
		t.Errorf("kmsfs %s: exit code %d, want %d\n%s", strings.Join(args, " "), r.code, code, r.stderr)
	}
	if !strings.HasPrefix(r.stderr, "kmsfs: ") {
		t.Errorf("kmsfs %s: message %q does not start with kmsfs:", strings.Join(args, " "), r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			t.Errorf("kmsfs %s: message %q does not name %q", strings.Join(args, " "), r.stderr, w)
		}
	}
}

// A volume is a ciphertext directory with its CMK, configuration and mountpoint.
type volume struct {
	dir, cmk, config, cipher, plain, log string
	mounted                              bool
	env                                  []string     // beyond the test's own
	printed                              bytes.Buffer // by every run
}

// withAlgorithm has init make a volume of the algorithm that KMSFS_ALGORITHM names unless the test names one: so all tests run on each.
func withAlgorithm(args []string) []string {
	algorithm := os.Getenv("KMSFS_ALGORITHM")
	if algorithm == "" || args[0] != "init" || slices.Contains(args, "--algorithm") {
		return args
	}
	return slices.Insert(slices.Clone(args), 1, "--algorithm", algorithm)
}

// newVolume creates a volume with a local CMK.
func newVolume(t testing.TB, initArgs ...string) *volume {
	t.Helper()
	v := bareVolume(t)
	v.ok(t, "key", "new", v.cmk)
	v.ok(t, append(append([]string{"init", "--cmk", "local:" + v.cmk}, initArgs...), v.cipher)...)
	return v
}

// bareVolume is a volume that has not been created yet.
func bareVolume(t testing.TB) *volume {
	t.Helper()
	dir := t.TempDir()
	// Other users must be able to reach the mountpoint.
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	v := &volume{
		dir: dir, cmk: filepath.Join(dir, "cmk"), config: filepath.Join(dir, "config"),
		cipher: filepath.Join(dir, "cipher"), plain: filepath.Join(dir, "plain"), log: filepath.Join(dir, "log"),
	}
	if err := os.Mkdir(v.plain, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if v.mounted {
			if r := v.run(t, "umount", v.plain); r.code != 0 {
				t.Errorf("umount: %s", r.stderr)
				_ = unix.Unmount(v.plain, unix.MNT_DETACH)
			}
		}
		if t.Failed() {
			if b, err := os.ReadFile(v.log); err == nil {
				t.Logf("log:\n%s", b)
			}
		}
	})
	return v
}

// mount mounts the volume and returns the mountpoint.
func (v *volume) mount(t testing.TB, options ...string) string {
	t.Helper()
	v.ok(t, "mount", "-o", strings.Join(append(options, "log="+v.log), ","), v.cipher, v.plain)
	v.mounted = true
	return v.plain
}

func (v *volume) umount(t testing.TB) {
	t.Helper()
	v.ok(t, "umount", v.plain)
	v.mounted = false
}

// remount empties every cache between the program and the ciphertext.
func (v *volume) remount(t testing.TB) string {
	t.Helper()
	v.umount(t)
	return v.mount(t)
}

// sealedFiles returns the ciphertext files of the volume, side files apart.
func (v *volume) sealedFiles(t testing.TB) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(v.cipher, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == ".kmsfs" {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() {
			paths = append(paths, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// shell runs a script in dir and returns its output.
func shell(t testing.TB, dir, script string) string {
	t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "GIT_CONFIG_GLOBAL=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return string(out)
}

// eventually waits until cond holds; a loaded machine and retries take their time.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
