package journal

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// A kernel carries out the system calls that durability depends on, all that change a ciphertext file or make it durable, and what tells which of them
// are needed, and on which file. Tests put one in its place that records them.
type kernel interface {
	pwrite(fd int, p []byte, off int64) (int, error)
	ftruncate(fd int, size int64) error
	fallocate(fd int, mode uint32, off, n int64) error
	setModified(fd int, t unix.Timespec) error
	setMark(fd int, epoch []byte) error
	removeMark(fd int) error
	fdatasync(fd int) error
	fsync(fd int) error
	syncfs(fd int) error
	writeOut(fd int) error
	seekHole(fd int) (int64, error) // the first hole
	version(fd int) (uint32, error) // generation of the inode number
	links(fd int) (uint64, error)   // names
}

// getVersion is the ioctl FS_IOC_GETVERSION.
const getVersion = 0x80087601

// linux is the kernel itself.
type linux struct{}

func (linux) pwrite(fd int, p []byte, off int64) (int, error) { return unix.Pwrite(fd, p, off) }
func (linux) ftruncate(fd int, size int64) error              { return unix.Ftruncate(fd, size) }
func (linux) setMark(fd int, epoch []byte) error              { return unix.Fsetxattr(fd, MarkName, epoch, 0) }
func (linux) removeMark(fd int) error                         { return unix.Fremovexattr(fd, MarkName) }
func (linux) fdatasync(fd int) error                          { return unix.Fdatasync(fd) }
func (linux) fsync(fd int) error                              { return unix.Fsync(fd) }
func (linux) syncfs(fd int) error                             { return unix.Syncfs(fd) }
func (linux) seekHole(fd int) (int64, error)                  { return unix.Seek(fd, 0, unix.SEEK_HOLE) }

func (linux) version(fd int) (uint32, error) {
	v, err := unix.IoctlGetInt(fd, getVersion)
	return uint32(v), err
}

func (linux) links(fd int) (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return uint64(st.Nlink), err
}

func (linux) fallocate(fd int, mode uint32, off, n int64) error {
	return unix.Fallocate(fd, mode, off, n)
}

// setModified is futimens(3), which leaves the access time alone.
func (linux) setModified(fd int, t unix.Timespec) error {
	times := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, t}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func (linux) writeOut(fd int) error {
	return unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
}
