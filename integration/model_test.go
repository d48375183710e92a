package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kmsfs/kmsfs/integration/model"
	"golang.org/x/sys/unix"
)

// A child is a volume whose daemon is a child of the test, so that it can be killed.
type child struct {
	dir    string
	args   []string // of init
	daemon *exec.Cmd
	log    bytes.Buffer

	supervisor *supervisor // decides about the daemon's backing calls, if set
}

// newChild makes a volume below a directory of the test.
func newChild(t testing.TB, initArgs ...string) func() (model.Volume, error) {
	parent := t.TempDir()
	count := 0
	return func() (model.Volume, error) {
		count++
		c := &child{dir: filepath.Join(parent, strconv.Itoa(count))}
		if err := os.MkdirAll(c.plain(), 0o755); err != nil {
			return nil, err
		}
		if err := c.run("key", "new", c.path("cmk")); err != nil {
			return nil, err
		}
		return c, c.run(append(append([]string{"init", "--cmk", "local:" + c.path("cmk")}, initArgs...), c.path("cipher"))...)
	}
}

func (c *child) path(name string) string { return filepath.Join(c.dir, name) }
func (c *child) plain() string           { return c.path("plain") }

func (c *child) command(args ...string) *exec.Cmd {
	cmd := exec.Command(binary, withAlgorithm(args)...)
	cmd.Env = append(os.Environ(), "KMSFS_CONFIG_DIR="+c.path("config"))
	return cmd
}

func (c *child) run(args ...string) error {
	if out, err := c.command(args...).CombinedOutput(); err != nil {
		return fmt.Errorf("kmsfs %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Mount implements [model.Volume]. systemd's protocol tells when the daemon is ready.
func (c *child) Mount() (string, error) {
	ready, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(ready)
	name := "@kmsfs-test-" + strconv.Itoa(os.Getpid()) + c.dir
	if err := unix.Bind(ready, &unix.SockaddrUnix{Name: name}); err != nil {
		return "", err
	}
	c.log.Reset()
	c.daemon = c.command("mount", "--foreground", c.path("cipher"), c.plain())
	c.daemon.Env = append(c.daemon.Env, "NOTIFY_SOCKET="+name)
	c.daemon.Stderr = &c.log
	watch := func() error { return nil }
	if c.supervisor != nil {
		if watch, err = c.supervisor.wrap(c.daemon); err != nil {
			return "", err
		}
	}
	if err := c.daemon.Start(); err != nil {
		return "", err
	}
	if err := watch(); err != nil {
		return "", err
	}
	if err := c.waitReady(ready); err != nil {
		_ = c.daemon.Process.Kill()
		_ = c.daemon.Wait()
		return "", fmt.Errorf("mount: %w\n%s", err, c.log.String())
	}
	return c.plain(), nil
}

func (c *child) waitReady(socket int) error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		fds := []unix.PollFd{{Fd: int32(socket), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 100)
		if err != nil && err != unix.EINTR {
			return err
		}
		if n > 0 {
			return nil
		}
		// A daemon that has ended is a zombie until it is waited for.
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.daemon.Process.Pid)); err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return errors.New("the daemon ended")
		}
	}
	return errors.New("the daemon is not ready after a minute")
}

// Unmount implements [model.Volume].
func (c *child) Unmount() error {
	if err := c.run("umount", c.plain()); err != nil {
		return err
	}
	err := c.daemon.Wait()
	c.daemon = nil
	if err != nil {
		return fmt.Errorf("daemon: %w\n%s", err, c.log.String())
	}
	if c.supervisor == nil && strings.Contains(c.log.String(), "level=ERROR") {
		return fmt.Errorf("the daemon complains:\n%s", c.log.String())
	}
	return nil
}

// Kill implements [model.Volume].
func (c *child) Kill() error {
	if err := c.daemon.Process.Kill(); err != nil {
		return err
	}
	_ = c.daemon.Wait()
	c.daemon = nil
	return nil
}

// Close implements [model.Volume].
func (c *child) Close() error {
	if c.daemon != nil {
		_ = c.daemon.Process.Kill()
		_ = c.daemon.Wait()
	}
	if err := unix.Unmount(c.plain(), unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		return err
	}
	return os.RemoveAll(c.dir)
}

// TestModel runs random operations on two volumes, one of which is killed now and then, and compares with a model. `make model` runs a
// million for each seed. These variables choose others: KMSFS_MODEL_OPS, KMSFS_MODEL_SEED, KMSFS_MODEL_KILLS=0 or 1 (both if unset), and KMSFS_MODEL_SCRIPT, a file
// with a script that a failure has printed.
func TestModel(t *testing.T) {
	ops := number(t, "KMSFS_MODEL_OPS", 10_000)
	seed := number(t, "KMSFS_MODEL_SEED", 1)
	if path := os.Getenv("KMSFS_MODEL_SCRIPT"); path != "" {
		f, err := os.Open(path)
		must(t, err)
		defer f.Close()
		script, err := model.Parse(f)
		must(t, err)
		must(t, model.Run(model.Config{New: newChild(t)}, script))
		return
	}
	for i, kills := range []bool{false, true} {
		if want := os.Getenv("KMSFS_MODEL_KILLS"); want != "" && want != strconv.Itoa(i) {
			continue
		}
		t.Run(fmt.Sprintf("Kills=%v", kills), func(t *testing.T) {
			c := model.Config{New: newChild(t), Ops: ops, Seed: uint64(seed), Kills: kills}
			if ops > 100_000 {
				c.Progress = func(done int) {
					if done%50_000 == 0 {
						t.Logf("%d of %d operations", done, ops)
					}
				}
			}
			if err := model.Random(c); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		})
	}
}

// number reads a variable of the environment.
func number(t *testing.T, name string, otherwise int) int {
	word := os.Getenv(name)
	if word == "" {
		return otherwise
	}
	n, err := strconv.Atoi(word)
	must(t, err)
	return n
}

// TestSequences runs every sequence of up to three operations on a file that is open, and kills the daemon after each.
func TestSequences(t *testing.T) {
	parse := func(text string) model.Script {
		s, err := model.Parse(strings.NewReader(text))
		must(t, err)
		return s
	}
	beginning := parse(`
		open 0 a rw,creat
		write 0 0 6000 1
		fsync 0`)
	alphabet := parse(`
		write 0 4000 200 2       # over the boundary of two segments
		write 0 20000 100 3      # an append that leaves a hole
		ftruncate 0 100
		fallocate 0 4096 9000 punch
		fsync 0
		rename a b plain
		open 1 a rw,creat,trunc`)
	count, err := model.Sequences(model.Config{New: newChild(t)}, beginning, alphabet, 3)
	must(t, err)
	if want := 1 + 7 + 7*7 + 7*7*7; count != want {
		t.Errorf("%d sequences, want %d", count, want)
	}
}

// plainVolume is a directory of the backing file system: the model is right if it predicts that, too.
type plainVolume struct{ dir string }

func (v plainVolume) Mount() (string, error) { return v.dir, nil }
func (v plainVolume) Unmount() error         { return nil }
func (v plainVolume) Kill() error            { return nil }
func (v plainVolume) Close() error           { return os.RemoveAll(v.dir) }

// TestModelLikeExt4 checks the model itself, and that it sees and shrinks a fault.
func TestModelLikeExt4(t *testing.T) {
	fresh := func() (model.Volume, error) {
		dir, err := os.MkdirTemp("", "kmsfs-model-")
		return plainVolume{dir}, err
	}
	must(t, model.Random(model.Config{New: fresh, Ops: 20_000, Seed: 7, Buffered: true}))

	err := model.Random(model.Config{Seed: 7, Buffered: true, New: func() (model.Volume, error) {
		v, err := fresh()
		return &faulty{Volume: v}, err
	}})
	var failure *model.Failure
	if !errors.As(err, &failure) {
		t.Fatalf("a file that was damaged between two mounts was not seen: %v", err)
	}
	if len(failure.Script) > 6 {
		t.Errorf("not shrunk: %v", err)
	}
	again, err := model.Parse(strings.NewReader(failure.Script.String()))
	if err != nil || again.String() != failure.Script.String() {
		t.Errorf("the script does not read back: %v\n%s", err, failure.Script)
	}
}

// faulty changes a byte of some file between two mounts.
type faulty struct{ model.Volume }

func (v *faulty) Unmount() error {
	dir, err := v.Mount()
	if err != nil {
		return err
	}
	done := errors.New("done")
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil || len(b) == 0 {
			return err
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(path, b, 0o644); err != nil {
			return err
		}
		return done
	})
	if errors.Is(err, done) {
		return nil
	}
	return err
}
