package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// A workplace is a directory in memory with everything that a run makes in it.
type workplace struct{ dir string }

func newWorkplace() (*workplace, error) {
	dir, err := os.MkdirTemp("/dev/shm", "kmsfs-bench-")
	return &workplace{dir}, err
}

func (w *workplace) path(name string) string { return filepath.Join(w.dir, name) }

// close detaches whatever is mounted here, the last mount first, and removes the rest. A loop device goes with its mount.
func (w *workplace) close() error {
	progress("cleaning up")
	defer progress("")
	var errs []error
	for deadline := time.Now().Add(10 * time.Second); ; {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(w.dir))
		if err != nil {
			return fmt.Errorf("%s is left: %w", w.dir, err)
		}
		if len(mounts) == 0 {
			break
		}
		flags := 0
		if time.Now().After(deadline) {
			flags = unix.MNT_DETACH
		}
		last := mounts[len(mounts)-1].Mountpoint
		if err := unix.Unmount(last, flags); errors.Is(err, unix.EBUSY) && flags == 0 {
			time.Sleep(50 * time.Millisecond) // a daemon that is ending
		} else if err != nil {
			return fmt.Errorf("%s is left: unmount %s: %w", w.dir, last, err)
		} else if flags != 0 {
			errs = append(errs, fmt.Errorf("%s was busy, and is detached", last))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}

// A disk is an ext4 in memory.
type disk struct{ image, dir string }

// newDisk makes and mounts one; the image is sparse. inodes 0 is as many as mkfs thinks fit.
func (w *workplace) newDisk(ctx context.Context, name string, gigabytes, inodes int) (*disk, error) {
	d := &disk{w.path(name + ".img"), w.path(name)}
	count := ""
	if inodes > 0 {
		count = fmt.Sprint("-N ", inodes)
	}
	if err := sh(ctx, w.dir, fmt.Sprintf("truncate -s %dG %s; mkfs.ext4 -q -m 0 %s %s; mkdir %s", gigabytes, d.image, count, d.image, d.dir)); err != nil {
		return nil, err
	}
	return d, d.mount(ctx)
}

// Without noinit_itable the kernel would write tables of inodes during the measurements.
func (d *disk) mount(ctx context.Context) error {
	return sh(ctx, "/", "mount -o loop,noinit_itable "+d.image+" "+d.dir)
}

func (d *disk) unmount(ctx context.Context) error { return unmount(ctx, d.dir) }

// cool makes the kernel forget everything that is cached of the disk. Nothing may be mounted on it.
func (d *disk) cool(ctx context.Context) error {
	if err := d.unmount(ctx); err != nil {
		return err
	}
	return d.mount(ctx)
}

// sync keeps what was written earlier out of the next measurement.
func (d *disk) sync() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

func (d *disk) remove(ctx context.Context) error {
	if err := d.unmount(ctx); err != nil {
		return err
	}
	return errors.Join(os.Remove(d.dir), os.Remove(d.image))
}

// unmount waits for daemons that end, and so use the disk, a moment after their mount does.
func unmount(ctx context.Context, path string) error {
	for {
		err := unix.Unmount(path, 0)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("unmount %s: busy: %w", path, err)
		}
	}
}

// awaitMount waits for a daemon that does not tell when it has mounted.
func awaitMount(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if ok, err := mountinfo.Mounted(path); ok || err != nil {
			return err
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("nothing is mounted on %s: %w", path, err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// sh runs a shell script in a process group of its own, which ends when ctx does. SIGTERM lets a kmsfs that is about to mount pass it on.
func sh(ctx context.Context, dir, script string) error {
	cmd := exec.CommandContext(ctx, "bash", "-ec", script)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", script, err, out)
	}
	return nil
}

// progress shows what is going on, on one line of a terminal.
func progress(format string, args ...any) {
	if term.IsTerminal(int(os.Stderr.Fd())) {
		fmt.Fprintf(os.Stderr, "\r\033[K"+format, args...)
	}
}

// note is a line that stays, of what the table does not tell.
func note(format string, args ...any) {
	progress("")
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
