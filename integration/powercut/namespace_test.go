package powercut

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside is set in the process that runs the tests.
const inside = "KMSFS_POWERCUT_INSIDE"

// TestMain runs the tests again as the first process of new mount, process and IPC namespaces, so that whatever happens to them no
// mount, loop device, daemon or shared memory is left behind.
func TestMain(m *testing.M) {
	ServeImage()
	if dir := os.Getenv(inside); dir != "" {
		if err := prepare(dir); err != nil {
			fmt.Fprintln(os.Stderr, "powercut:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "kmsfs-powercut-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o711); err != nil { // servers that are not root get through
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "kmsfs"), "../../cmd/kmsfs").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), inside+"="+dir)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		runtime.LockOSThread() // the signal comes when the thread ends
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWIPC, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
		}
		err = cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			fmt.Fprintln(os.Stderr, "powercut:", err)
			return 1
		}
		return cmd.ProcessState.ExitCode()
	}())
}

// prepare mounts the process's own /proc and a memory filesystem for the images at dir/work.
func prepare(dir string) error {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o711); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", work, "tmpfs", 0, "size=75%,mode=0711"); err != nil {
		return fmt.Errorf("mount %s: %w", work, err)
	}
	return nil
}
