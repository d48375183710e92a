package fs

import (
	"fmt"
	"unsafe"

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

// listxattrat lists the extended attributes of an entry, not following a symbolic link. Kernels before 6.13 know no such call, and a filter of system calls may not: there it goes by a path, which
// takes the kernel three times as long.
func listxattrat(fd int, disk string, dst []byte) (int, error) {
	name, err := unix.BytePtrFromString(disk)
	if err != nil {
		return 0, err
	}
	n, _, errno := unix.Syscall6(unix.SYS_LISTXATTRAT, uintptr(fd), uintptr(unsafe.Pointer(name)), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(unsafe.SliceData(dst))), uintptr(len(dst)), 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.ENOSYS, unix.EPERM:
		return unix.Llistxattr(procPath(fd, disk), dst)
	}
	return 0, errno
}

// chmodat changes the mode of an entry, not following a symbolic link, on kernels before 6.6 too; of fd itself if disk is empty.
func chmodat(fd int, disk string, mode uint32) error {
	if disk == "" {
		return unix.Fchmod(fd, mode)
	}
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
