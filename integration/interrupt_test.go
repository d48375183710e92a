package integration

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// TestInterruptedCalls opens a file whose data key is not known while the CMK does not answer. The call is given up, and not made again, when the program is killed, and when the mount's connection to
// the kernel is cut, whereupon the daemon ends.
func TestInterruptedCalls(t *testing.T) {
	t.Parallel()
	c := newClouds(t, emulator.Options{CMKs: cloudCMKs()[:1]})
	c.init(t, "--data-key", "per-file")
	shell(t, c.mount(t), fmt.Sprintf("for n in $(seq 0 %d); do printf killed > killed$n; printf cut > cut$n; done", tries-1))
	c.umount(t)
	opens := func(name string) *exec.Cmd {
		c.ResetCalls()
		c.faults(t, emulator.Fault{Kind: emulator.Hang, Operation: "Decrypt"})
		cat := exec.Command("cat", filepath.Join(c.plain, name))
		must(t, cat.Start())
		eventually(t, "the CMK is asked", func() bool { return c.Count("", "Decrypt") > 0 })
		return cat
	}
	c.mount(t)
	besideCalls(t, func(n int) bool {
		cat := opens(fmt.Sprint("killed", n))
		must(t, cat.Process.Kill())
		err := cat.Wait()
		once := c.Count("", "Decrypt") == 1
		if once && (cat.ProcessState.Exited() || err == nil) {
			t.Errorf("cat was not killed: %v", err)
		}
		return once
	})
	besideCalls(t, func(n int) bool {
		c.faults(t)
		if !c.mounted {
			c.mount(t)
		}
		cat := opens(fmt.Sprint("cut", n))
		if err := unix.Unmount(c.plain, unix.MNT_FORCE); err != nil && err != unix.EBUSY {
			t.Fatal(err)
		}
		if err := cat.Wait(); err == nil {
			t.Error("a file was read without its data key")
		}
		eventually(t, "the daemon has ended", func() bool {
			var exit *exec.ExitError
			return errors.As(exec.Command("pgrep", "-f", "^[^ ]*kmsfs mount.*"+c.cipher).Run(), &exit) && exit.ExitCode() == 1
		})
		_ = unix.Unmount(c.plain, unix.MNT_DETACH)
		c.mounted = false
		return c.Count("", "Decrypt") == 1
	})
}
