package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A system is something to measure.
type system struct {
	name    string
	peer    bool                                                 // may fail
	mount   func(ctx context.Context, below, above string) error // prepares below if it is empty
	unmount func(ctx context.Context, above string) error
}

// A kmsfs is the program, built for the run, and a CMK.
type kmsfs struct{ program, cmk string }

func (w *workplace) newKmsfs(ctx context.Context) (*kmsfs, error) {
	k := &kmsfs{w.path("kmsfs"), w.path("cmk")}
	if err := sh(ctx, ".", "go build -o "+k.program+" ../../cmd/kmsfs"); err != nil {
		return nil, err
	}
	os.Setenv("KMSFS_CONFIG_DIR", w.path("config"))
	return k, sh(ctx, w.dir, k.program+" key new "+k.cmk)
}

// volume is a system of volumes made with flags of init, and mounted with flags of mount.
func (k *kmsfs) volume(name, init, mount string) system {
	return system{name, false, func(ctx context.Context, below, above string) error {
		if _, err := os.Stat(filepath.Join(below, ".kmsfs")); err != nil {
			if err := sh(ctx, "/", fmt.Sprintf("%s init --cmk local:%s %s %s", k.program, k.cmk, init, below)); err != nil {
				return err
			}
		}
		return sh(ctx, "/", fmt.Sprintf("%s mount %s --log /dev/null %s %s", k.program, mount, below, above))
	}, func(ctx context.Context, above string) error {
		return sh(ctx, "/", k.program+" umount "+above)
	}}
}

// daemon returns the process that serves a mount.
func (k *kmsfs) daemon(ctx context.Context, above string) (process, error) {
	out, err := exec.CommandContext(ctx, k.program, "status", "--json", above).Output()
	if err != nil {
		return 0, fmt.Errorf("kmsfs status %s: %w", above, err)
	}
	var status struct{ PID process }
	return status.PID, json.Unmarshal(out, &status)
}

// peers are the others: what bounds kmsfs, and what it is compared with. One that is not installed is an error, since its ratios
// are what the table is for.
func (w *workplace) peers(ctx context.Context) ([]system, error) {
	for _, peer := range []string{"gocryptfs", "securefs"} {
		if _, err := exec.LookPath(peer); err != nil {
			return nil, fmt.Errorf("%w; scripts/deps-bench.sh installs it", err)
		}
	}
	if err := sh(ctx, ".", "go build -o "+w.path("loopback")+" ./loopback"); err != nil {
		return nil, err
	}
	return []system{
		{"ext4", true, func(ctx context.Context, below, above string) error {
			return sh(ctx, "/", "mount --bind "+below+" "+above)
		}, unmount},
		{"loopback", true, func(ctx context.Context, below, above string) error {
			if err := sh(ctx, w.dir, "setsid ./loopback "+above+" "+below+" >/dev/null 2>&1 &"); err != nil {
				return err
			}
			return awaitMount(ctx, above)
		}, unmount},
		{"gocryptfs", true, func(ctx context.Context, below, above string) error {
			return sh(ctx, "/", "test -f "+below+"/gocryptfs.conf || gocryptfs -q -init -scryptn 10 -extpass 'echo x' "+below+
				"; gocryptfs -q -extpass 'echo x' "+below+" "+above)
		}, unmount},
		{"securefs", true, func(ctx context.Context, below, above string) error {
			err := sh(ctx, "/", `test -n "$(ls -A `+below+`)" || securefs create --pass x --format 4 `+below+
				"; securefs mount -b --pass x "+below+" "+above+" >/dev/null 2>&1")
			if err != nil {
				return err
			}
			return awaitMount(ctx, above)
		}, unmount},
	}, nil
}

// versions names what was measured, and where, in a line.
func versions(ctx context.Context) string {
	line := func(script string) string {
		out, err := exec.CommandContext(ctx, "bash", "-c", script).Output()
		if text := strings.TrimSpace(string(out)); err == nil && text != "" {
			return text
		}
		return "unknown"
	}
	facts := []string{
		line("date +%F"),
		line("uname -m") + ", " + line("nproc") + " CPUs (" + line("sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n1") + ")",
		line("free -g | awk '/^Mem/{print $2}'") + " GiB of memory",
		"Linux " + line("uname -r"),
		line("go env GOVERSION"),
		"kmsfs " + line("git rev-parse --short HEAD"),
		"go-fuse " + line("go list -m -f '{{.Version}}' github.com/hanwen/go-fuse/v2"),
		"gocryptfs " + line(`dpkg-query -W -f '${Version}' gocryptfs || gocryptfs -version | sed 's/;.*//; s/gocryptfs //'`),
		"securefs " + line(`dpkg-query -W -f '${Version}' securefs || securefs version | sed -n '1s/securefs //p'`),
	}
	return strings.Join(facts, "; ")
}
