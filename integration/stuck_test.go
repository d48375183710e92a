package integration

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// TestManyBesideCalls has more programs than there are processors open files whose data keys are not known while the CMK does not answer. Nobody else waits; who is killed goes at once, as all do if the daemon is
// killed, and the others get what they asked for.
func TestManyBesideCalls(t *testing.T) {
	t.Parallel() // it waits for calls that are given up
	const many = 48
	c := newClouds(t, emulator.Options{CMKs: cloudCMKs()[:1]})
	c.init(t, "--data-key", "per-file")
	shell(t, c.mount(t), fmt.Sprintf("printf known > known; for n in $(seq 0 %d); do mkdir $n; for i in $(seq %d); do printf $i > $n/$i; done; done", tries-1, many))
	c.umount(t)

	opens := func(n int) (cats []*exec.Cmd) {
		c.ResetCalls()
		c.faults(t, emulator.Fault{Kind: emulator.Hang, Operation: "Decrypt"})
		for i := range many {
			cat := exec.Command("cat", filepath.Join(c.plain, fmt.Sprint(n), fmt.Sprint(i+1)))
			must(t, cat.Start())
			cats = append(cats, cat)
		}
		eventually(t, "the CMK is asked by all", func() bool { return c.Count("", "Decrypt") >= many })
		return cats
	}
	besideCalls(t, func(n int) bool {
		c.faults(t)
		shell(t, c.mount(t), "cat known")
		cats := opens(n)
		got := shell(t, c.plain, fmt.Sprintf("cat known; ls %d | wc -l; mkdir new%[1]d; mv known new%[1]d; mv new%[1]d/known .; stat -c %%s %[1]d/1; truncate -s 7 new%[1]d/f; stat -c %%s new%[1]d/f", n))
		if want := fmt.Sprintf("known%d\n1\n7\n", many); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		for i, cat := range cats[:many/2] {
			// SIGINT may be ignored, as it is in what a shell runs in the background.
			must(t, cat.Process.Signal([]unix.Signal{unix.SIGKILL, unix.SIGUSR1, unix.SIGTERM}[i%3]))
		}
		for _, cat := range cats[:many/2] {
			_ = cat.Wait()
		}
		waited := c.Count("", "Decrypt") == many
		must(t, unix.Kill(c.status(t).PID, unix.SIGKILL))
		for _, cat := range cats[many/2:] {
			if err := cat.Wait(); err == nil {
				t.Error("a file was read without its data key")
			}
		}
		eventually(t, "the mount is stale", func() bool { return unix.Statfs(c.plain, new(unix.Statfs_t)) == unix.ENOTCONN })
		c.umount(t)
		return waited
	})
	c.faults(t)
	shell(t, c.mount(t), fmt.Sprintf(`for i in $(seq %d); do test "$(cat 0/$i)" = $i; done`, many))
}
