// Package devicetest tells tests and benchmarks of the machine's setting by which its kernel offers requests over io_uring(7).
package devicetest

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Setting is the path of the setting, which is Y while the kernel offers rings to who mounts. It is the whole machine's.
const Setting = "/sys/module/fuse/parameters/enable_uring"

// Mended reports whether this kernel's side of io_uring is without the faults with memory that were mended in Linux 6.18.42 and 7.1.6. Where it is not, rings could bring the machine down.
func Mended() bool {
	var u unix.Utsname
	var major, minor, patch int
	_ = unix.Uname(&u)
	_, _ = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d.%d", &major, &minor, &patch)
	switch version := [2]int{major, minor}; version {
	case [2]int{6, 18}:
		return patch >= 42
	case [2]int{7, 1}:
		return patch >= 6
	default:
		return major > 7 || major == 7 && minor > 1
	}
}
