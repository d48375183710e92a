package fs

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// again repeats a system call that a signal interrupted.
func again(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// procPath is a path to what is called name in the open directory fd, or to the open file fd itself if name is empty, for
// system calls that take neither descriptors nor flags.
func procPath(fd int, name string) string {
	if name == "" {
		return fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
}

// chmodat changes the mode of an entry, not following a symbolic link, on kernels before 6.6 too.
func chmodat(fd int, disk string, mode uint32) error {
	err := unix.Fchmodat(fd, disk, mode, unix.AT_SYMLINK_NOFOLLOW)
	if err != unix.EOPNOTSUPP && err != unix.ENOSYS {
		return err
	}
	entry, err := unix.Openat(fd, disk, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(entry)
	var st unix.Stat_t
	if err := unix.Fstat(entry, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return unix.Chmod(procPath(entry, ""), mode)
}
