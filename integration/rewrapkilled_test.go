package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRewrapKilledAnywhere kills the command, or the daemon that does it, at random instants: the volume opens with what the machine trusts, every file is as it was, and the same command, run again,
// completes.
func TestRewrapKilledAnywhere(t *testing.T) {
	for _, live := range []bool{false, true} {
		t.Run(fmt.Sprint("live=", live), func(t *testing.T) {
			v := newVolume(t)
			cmks, uris := []string{"local:" + v.cmk}, []string{v.uriOf(t)}
			b, bURI := v.newCMK(t, "b")
			cmks, uris = append(cmks, b), append(uris, bURI)
			fill(t, v.mount(t), 300)
			want := contents(t, v.plain)
			args := func(round int) []string {
				return []string{"rewrap", "--replace", cmks[round%2] + "=" + cmks[(round+1)%2], v.cipher}
			}
			place := func() { // as it is to be for the command
				t.Helper()
				if live && !v.mounted {
					v.mount(t)
				} else if !live && v.mounted {
					v.umount(t)
				}
			}
			place()
			started := time.Now()
			v.ok(t, args(0)...)
			took := time.Since(started) // the instants are spread over about that; what they hit does not matter
			rng := rand.New(rand.NewPCG(1, 1))
			for round := 1; round <= 6; round++ {
				place()
				cmd := exec.Command(binary, args(round)...)
				cmd.Env = append(os.Environ(), "KMSFS_CONFIG_DIR="+v.config)
				daemon := 0
				if live && round%2 == 0 {
					daemon = v.status(t).PID
				}
				must(t, cmd.Start())
				time.AfterFunc(time.Duration(rng.Int64N(int64(took))), func() {
					if daemon > 0 {
						_ = unix.Kill(daemon, unix.SIGKILL)
					} else {
						_ = cmd.Process.Kill()
					}
				})
				_ = cmd.Wait()
				if daemon > 0 {
					eventually(t, "the daemon is gone", func() bool { return unix.Statfs(v.plain, new(unix.Statfs_t)) == unix.ENOTCONN })
					must(t, unix.Unmount(v.plain, unix.MNT_DETACH))
					v.mounted = false
				}
				if !v.mounted {
					v.mount(t)
				}
				if got := contents(t, v.plain); got != want {
					t.Fatalf("round %d: the tree has changed:\n%s", round, difference(want, got))
				}
				place()
				// A daemon whose caller was killed may still be giving up.
				eventually(t, "the rewrap ends", func() bool {
					r := v.run(t, args(round)...)
					if r.code != 0 && r.code != 7 {
						t.Fatalf("round %d: %s", round, r.stderr)
					}
					return r.code == 0
				})
				v.listEverywhere(t, 300, uris[(round+1)%2])
			}
			if v.mounted {
				v.umount(t)
			}
			v.ok(t, "fsck", v.cipher)
		})
	}
}
