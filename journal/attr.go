package journal

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Times runs set, which sets times of the file id, so that no checkpoint undoes it.
func (j *Journal) Times(id Inode, set func() error) error {
	f := j.find(id)
	if f == nil {
		return set()
	}
	f.op.Lock()
	defer f.op.Unlock()
	f.meta.Store(true)
	return set()
}

// Changed notes that attributes of a file, or its names, have changed: its next sync makes them durable, too.
func (j *Journal) Changed(id Inode) {
	if f := j.find(id); f != nil {
		f.meta.Store(true)
	}
}

func (j *Journal) find(id Inode) *File {
	j.present.RLock()
	defer j.present.RUnlock()
	return j.files[id]
}

// setTimes is futimens(3).
func setTimes(fd int, atime, mtime unix.Timespec) error {
	times := [2]unix.Timespec{atime, mtime}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
