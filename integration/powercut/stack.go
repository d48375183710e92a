package powercut

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every command and mount, far above what a slow machine needs: nothing may hang.
const patience = 4 * time.Minute

// A stack is a filesystem on a device with, perhaps, an encrypting one on top.
type stack struct {
	backing string // ext4 or xfs
	crypt   string // kmsfs, gocryptfs or empty
	binary  string // kmsfs
	size    int64  // of the device, in bytes; 0 for little
	shared  bool   // with all users
	secret  string // directory of the CMK, the configuration and the password, which no power cut touches
	noting  bool   // the configuration, which notes the CMKs that are trusted, is on the backing filesystem instead
	plain   bool   // names are stored as they are
}

func (s stack) String() string {
	if s.crypt == "" {
		return s.backing
	}
	return s.crypt + " on " + s.backing
}

// format makes image, with the filesystem and an empty encrypted one in it; dir is for mounting.
func (s stack) format(image, dir string) error {
	size := cmp.Or(s.size, 64<<20)
	mkfs := []string{"mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", image}
	if s.backing == "xfs" {
		size = max(size, 300<<20) // the least that mkfs.xfs takes
		mkfs = []string{"mkfs.xfs", "-q", "-f", "-K", "-s", "size=4096", image}
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, size); err != nil {
		return err
	}
	if err := run(nil, mkfs...); err != nil {
		return err
	}
	lower, err := mountImage(image, dir, s.backing)
	if err != nil {
		return err
	}
	cipher := filepath.Join(lower, "cipher")
	err = os.Mkdir(cipher, 0o700)
	if err == nil {
		switch s.crypt {
		case "kmsfs":
			err = errors.Join(
				run(s.env(lower), s.binary, "key", "new", filepath.Join(s.secret, "cmk")),
				run(s.env(lower), s.binary, "init", "--cmk", "local:"+filepath.Join(s.secret, "cmk"), fmt.Sprint("--plaintext-names=", s.plain), cipher))
		case "gocryptfs":
			err = errors.Join(
				os.WriteFile(filepath.Join(s.secret, "password"), []byte("password"), 0o600),
				run(nil, "gocryptfs", "-init", "-q", "-scryptn", "10", "-passfile", filepath.Join(s.secret, "password"), cipher))
		}
	}
	return errors.Join(err, unmount(lower))
}

func (s stack) env(lower string) []string {
	dir := s.secret
	if s.noting {
		dir = filepath.Join(lower, "config")
	}
	return append(os.Environ(), "KMSFS_CONFIG_DIR="+dir)
}

// A mounted is a stack in use.
type mounted struct {
	lower  string // the backing filesystem
	top    string // where programs work
	daemon *exec.Cmd
	gone   chan struct{} // closed when the daemon has ended
	dog    *time.Timer
}

// mount mounts the stack that the image file holds under dir.
func (s stack) mount(image, dir string) (*mounted, error) {
	lower, err := mountImage(image, dir, s.backing)
	if err != nil {
		return nil, err
	}
	m := &mounted{lower: lower, top: filepath.Join(lower, "cipher")}
	if s.crypt == "" {
		return m, nil
	}
	cipher := m.top
	m.top = filepath.Join(dir, "top")
	if err := os.MkdirAll(m.top, 0o700); err != nil {
		return nil, errors.Join(err, m.unmount())
	}
	args := []string{s.binary, "mount", "--foreground"}
	if s.shared {
		args = append(args, "-o", "allow_other")
	}
	args = append(args, cipher, m.top)
	if s.crypt == "gocryptfs" {
		args = []string{"gocryptfs", "-fg", "-q", "-nosyslog", "-passfile", filepath.Join(s.secret, "password"), cipher, m.top}
	}
	if err := m.start(args, s.env(lower), filepath.Join(dir, "log")); err != nil {
		return nil, errors.Join(err, m.unmount())
	}
	return m, nil
}

// start runs a daemon and waits until it has mounted the top.
func (m *mounted) start(args, env []string, log string) error {
	out, err := os.Create(log)
	if err != nil {
		return err
	}
	defer out.Close()
	before, err := device(m.top)
	if err != nil {
		return err
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, out, out
	if err := cmd.Start(); err != nil {
		return err
	}
	gone := make(chan struct{})
	m.daemon, m.gone = cmd, gone
	go func() {
		_ = cmd.Wait()
		close(gone)
	}()
	// A request that is never answered ends when its daemon does.
	m.dog = time.AfterFunc(patience, m.kill)
	for {
		now, err := device(m.top)
		if err == nil && now != before {
			_, err := os.ReadDir(m.top) // unmounted before it has answered anything, gocryptfs does not end
			return err
		}
		select {
		case <-gone:
			b, _ := os.ReadFile(log)
			return fmt.Errorf("%s ended: %s", args[0], b)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// kill ends the daemon and whatever waits for it, itself included: a daemon may have a file of its own mount open, and would wait for
// its own answer while it dies.
func (m *mounted) kill() {
	_ = unix.Unmount(m.top, unix.MNT_FORCE|unix.MNT_DETACH)
	_ = m.daemon.Process.Kill()
}

// unmount takes the stack down, by force where it must.
func (m *mounted) unmount() (err error) {
	if m.daemon != nil {
		_ = unmount(m.top) // the daemon may be gone already
		select {
		case <-m.gone:
		case <-time.After(patience / 4):
			m.kill()
			<-m.gone
			err = errors.New("the daemon did not end after the unmount")
		}
		m.dog.Stop()
	}
	if e := unmount(m.lower); e != nil {
		err = errors.Join(err, e, unix.Unmount(m.lower, unix.MNT_DETACH))
	}
	return err
}

// unmount unmounts a filesystem once nobody uses it. A process that another goroutine is about to start has for a moment all files of
// this one open, and gocryptfs opens a file of its own just after it has mounted.
func unmount(dir string) error {
	for end := time.Now().Add(patience / 4); ; time.Sleep(time.Millisecond) {
		err := unix.Unmount(dir, 0)
		if err == nil {
			return nil
		}
		if err != unix.EBUSY || time.Now().After(end) {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}

// mountImage mounts the filesystem in a file on a loop device, as a machine does that comes up again.
func mountImage(image, dir, fstype string) (lower string, err error) {
	lower = filepath.Join(dir, "lower")
	if err := os.MkdirAll(lower, 0o700); err != nil {
		return "", err
	}
	device, err := attach(image, dir)
	if err != nil {
		return "", err
	}
	defer device.Close()
	options := ""
	if fstype == "xfs" {
		options = "nouuid"
	}
	if err := unix.Mount(device.Name(), lower, fstype, unix.MS_NOATIME, options); err != nil {
		return "", fmt.Errorf("mount %s: %w", image, err)
	}
	return lower, nil
}

// device is the number of the device that a directory is on.
func device(dir string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Lstat(dir, &st)
	return st.Dev, err
}

// run runs a command to its end.
func run(env []string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env, cmd.SysProcAttr = env, &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", args, err, out)
	}
	return nil
}
