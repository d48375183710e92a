package main

import (
	"bytes"
	"errors"
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

const (
	// releaseWait bounds how long umount waits for the daemon to finish.
	releaseWait = 30 * time.Second

	// busyWait bounds how long umount waits for others to leave the mount. Some are just about to: a process between fork and exec
	// still holds every file that its parent had open.
	busyWait = 3 * time.Second
)

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
	for end := time.Now().Add(busyWait); ; time.Sleep(20 * time.Millisecond) {
		var err error
		if os.Geteuid() != 0 {
			err = fusermount("-u", path)
		} else {
			err = unix.Unmount(path, 0)
		}
		switch {
		case !errors.Is(err, unix.EBUSY):
			return err
		case time.Now().After(end):
			return fmt.Errorf("in use; close what uses it (fuser -vm %s shows what)", path)
		}
	}
}

func lazyUnmount(path string) error {
	if os.Geteuid() != 0 {
		return fusermount("-uz", path)
	}
	return unix.Unmount(path, unix.MNT_DETACH)
}

// fusermount runs fusermount3; its error is EBUSY if the mount is in use.
func fusermount(flag, path string) error {
	var stderr bytes.Buffer
	cmd := exec.Command("fusermount3", flag, path)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stderr = &stderr
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case strings.Contains(stderr.String(), "Device or resource busy"):
		return unix.EBUSY
	}
	return fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
}

// waitReleased waits until the daemon has given up the volume's lock, unless it goes on serving another mount, such as a bind mount.
func waitReleased(cipher string) error {
	fd, err := unix.Open(filepath.Join(cipher, volume.MetaDir), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // not ours to see
	}
	defer unix.Close(fd)
	for end := time.Now().Add(releaseWait); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil || mountpointOf(cipher) != "" {
			return nil
		}
	}
	return fail(exitInUse, "unmounted, but the daemon still holds the volume %s after %v", cipher, releaseWait)
}
