package journal

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// walk calls fn for every entry below the directory root, but for the volume's own, that is no directory.
func walk(root int, fn func(dir int, name string, ino uint64) error) error {
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return err
	}
	var down func(parent int, name string, top bool) error
	down = func(parent int, name string, top bool) (err error) {
		fd, lock, err := enter(parent, name, st.Dev)
		if fd < 0 || err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lock()) }()
		d := os.NewFile(uintptr(fd), name)
		defer d.Close()
		for {
			entries, err := d.ReadDir(1024)
			for _, e := range entries {
				if top && e.Name() == ".kmsfs" {
					continue
				}
				if e.IsDir() {
					if err := down(fd, e.Name(), false); err != nil {
						return err
					}
					continue
				}
				var st unix.Stat_t
				if e.Type().IsRegular() && unix.Fstatat(fd, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
					if err := fn(fd, e.Name(), st.Ino); err != nil {
						return err
					}
				}
			}
			if len(entries) == 0 {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
		}
	}
	return down(root, ".", true)
}

// enter opens a directory for the walk; fd is -1 if it is on another file system, or closed to us. One of ours that its mode closes to us, its owner, is open until lock is called:
// what it holds is not gone.
func enter(parent int, name string, dev uint64) (fd int, lock func() error, err error) {
	const flags = unix.O_DIRECTORY | unix.O_CLOEXEC
	at, err := unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|flags, 0)
	if err != nil {
		return -1, nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(at, &st); err != nil || st.Dev != dev {
		unix.Close(at)
		return -1, nil, err
	}
	fd, err = unix.Openat(at, ".", unix.O_RDONLY|flags, 0) // needs the right to list it, and to search it
	if err != unix.EACCES {
		unix.Close(at)
		return fd, func() error { return nil }, err
	}
	fd, restore, err := unlock(at, st.Mode, 0o500, unix.O_RDONLY|flags)
	if err != nil {
		unix.Close(at)
		if errors.Is(err, unix.EPERM) {
			err = nil // somebody else's
		}
		return -1, nil, err
	}
	return fd, func() error {
		defer unix.Close(at)
		if err := restore(); err != nil {
			return fmt.Errorf("%s: cannot restore mode %04o: %w", name, st.Mode&07777, err)
		}
		return nil
	}, nil
}

// unlock opens what the descriptor at leads to, which is ours and may be good for nothing else. Its mode has more permissions until lock is called.
func unlock(at int, mode, more uint32, flags int) (fd int, lock func() error, err error) {
	self := fmt.Sprintf("/proc/self/fd/%d", at)
	if err := unix.Chmod(self, mode&07777|more); err != nil {
		return -1, nil, err
	}
	lock = func() error { return unix.Chmod(self, mode&07777) }
	if fd, err = unix.Open(self, flags|unix.O_CLOEXEC, 0); err != nil {
		return -1, nil, errors.Join(err, lock())
	}
	return fd, lock, nil
}
