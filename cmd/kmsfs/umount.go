package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/volume"
)

// releaseWait bounds how long umount waits for the daemon to finish.
const releaseWait = 30 * time.Second

func umountCommand() *cli.Command {
	return &cli.Command{
		Name:            "umount",
		Usage:           "unmount a volume; returns when it can be mounted again",
		ArgsUsage:       "MOUNTPOINT",
		Description:     "Example: kmsfs umount /srv/plain",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Action:          doUmount,
	}
}

func doUmount(c *cli.Context) error {
	args, err := operands(c, "MOUNTPOINT")
	if err != nil {
		return err
	}
	path, source, err := ownMount(args[0], "; use umount(8)")
	if err != nil {
		return err
	}
	if isStale(path) {
		return lazyUnmount(path)
	}
	if err := unmount(path); err != nil {
		return fail(exitMountpoint, "%s: %w", path, err)
	}
	return waitReleased(source)
}

// unmount takes a mount away: directly as root, through fusermount3 otherwise.
func unmount(path string) error {
	if os.Geteuid() != 0 {
		return fusermount("-u", path)
	}
	err := unix.Unmount(path, 0)
	if err == unix.EBUSY {
		return fmt.Errorf("in use; close what uses it (fuser -vm %s shows what)", path)
	}
	return err
}

func lazyUnmount(path string) error {
	if os.Geteuid() != 0 {
		return fusermount("-uz", path)
	}
	return unix.Unmount(path, unix.MNT_DETACH)
}

func fusermount(flag, path string) error {
	var stderr bytes.Buffer
	cmd := exec.Command("fusermount3", flag, path)
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// waitReleased waits until the daemon has given up the volume's lock.
func waitReleased(cipher string) error {
	fd, err := unix.Open(filepath.Join(cipher, volume.MetaDir), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // not ours to see
	}
	defer unix.Close(fd)
	for end := time.Now().Add(releaseWait); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			return nil
		}
	}
	return fail(exitInUse, "unmounted, but the daemon still holds the volume %s after %v", cipher, releaseWait)
}
