package reencrypt

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/journal"
)

// Flags of inodes, as chattr(1) sets them, and the calls that read and change them (linux/fs.h).
const (
	getFlags = 0x80086601 // FS_IOC_GETFLAGS
	setFlags = 0x40086602 // FS_IOC_SETFLAGS

	flagSync      = 0x8
	flagImmutable = 0x10
	flagAppend    = 0x20
	flagNoDump    = 0x40
	flagNoAtime   = 0x80
)

// changeable refuses a file that chattr(1) protects.
func changeable(f *os.File) error {
	flags, err := unix.IoctlGetInt(int(f.Fd()), getFlags)
	if err == nil && flags&(flagImmutable|flagAppend) != 0 {
		return errors.New("it must not be replaced: chattr -i -a allows it")
	}
	return nil
}

// copyAttributes gives the file to the owner, group, extended attributes, access control lists, mode, flags and times of from, whose state was st before it was read, and makes sure that it
// has them.
func copyAttributes(from, to *os.File, st *unix.Stat_t) error {
	fd := int(to.Fd())
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("give it to user %d and group %d: %w", st.Uid, st.Gid, err)
	}
	want, err := attributes(from)
	if err != nil {
		return err
	}
	delete(want, journal.MarkName) // the new file is durable before it has a name
	have, err := attributes(to)
	if err != nil {
		return err
	}
	// Those that may take away the right to set others come last: security.* and system.*.
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(want))) {
		if v, ok := have[name]; ok && bytes.Equal(v, want[name]) {
			continue
		}
		if err := unix.Fsetxattr(fd, name, want[name], 0); err != nil {
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	for name := range have {
		if _, ok := want[name]; !ok {
			_ = unix.Fremovexattr(fd, name)
		}
	}
	if err := unix.Fchmod(fd, st.Mode&07777); err != nil {
		return fmt.Errorf("set the mode: %w", err)
	}
	copyFlags(from, to)
	if err := setTimes(fd, st); err != nil {
		return fmt.Errorf("set the times: %w", err)
	}
	return checkAttributes(to, st, want)
}

// checkAttributes says which attribute a file has not kept.
func checkAttributes(f *os.File, want *unix.Stat_t, attrs map[string][]byte) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Uid != want.Uid || st.Gid != want.Gid || st.Mode != want.Mode || st.Mtim != want.Mtim || st.Atim != want.Atim {
		return errors.New("its owner, mode or times cannot be kept")
	}
	have, err := attributes(f)
	if err != nil {
		return err
	}
	maps.DeleteFunc(have, func(name string, _ []byte) bool {
		_, ok := attrs[name]
		return !ok && strings.HasPrefix(name, "security.") // a label that the kernel gives every file
	})
	if !maps.EqualFunc(have, attrs, bytes.Equal) {
		return errors.New("its extended attributes cannot be kept")
	}
	return nil
}

// setTimes sets the access and the modification time.
func setTimes(fd int, st *unix.Stat_t) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// copyFlags copies the flags that chattr(1) may have set and that say how a file is to be treated, as far as the file system lets it.
func copyFlags(from, to *os.File) {
	const kept = flagSync | flagNoDump | flagNoAtime
	want, err := unix.IoctlGetInt(int(from.Fd()), getFlags)
	if err != nil || want&kept == 0 {
		return
	}
	if have, err := unix.IoctlGetInt(int(to.Fd()), getFlags); err == nil {
		_ = unix.IoctlSetPointerInt(int(to.Fd()), setFlags, have&^kept|want&kept)
	}
}

// attributes returns the extended attributes of a file.
func attributes(f *os.File) (map[string][]byte, error) {
	fd := int(f.Fd())
	list, err := cipherdir.Whole(func(dst []byte) (int, error) { return unix.Flistxattr(fd, dst) })
	if err == unix.EOPNOTSUPP {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	attrs := make(map[string][]byte)
	for name := range bytes.SplitSeq(list, []byte{0}) {
		if len(name) == 0 {
			continue
		}
		v, err := cipherdir.Whole(func(dst []byte) (int, error) { return unix.Fgetxattr(fd, string(name), dst) })
		if err != nil {
			return nil, fmt.Errorf("read attribute %s: %w", name, err)
		}
		attrs[string(name)] = v
	}
	return attrs, nil
}
