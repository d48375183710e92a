package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// fsType is the type of our mounts in /proc/self/mountinfo.
const fsType = "fuse.kmsfs"

// checkMountpoint returns the mountpoint with symbolic links resolved. It refuses what cannot be mounted on, and clears away a mount
// whose daemon is gone.
func checkMountpoint(path, cipher string, nonEmpty bool) (string, error) {
	bad := func(format string, args ...any) (string, error) {
		return "", fail(exitMountpoint, "mountpoint "+format, args...)
	}
	path, err := resolveParent(path)
	if err != nil {
		return bad("%s: %w", path, err)
	}
	if isStale(path) {
		if kind, _, _ := mountAt(path); kind != fsType {
			return bad("%s: another file system there does not answer", path)
		}
		if err := lazyUnmount(path); err != nil {
			return bad("%s: cannot clear a stale mount: %w", path, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err == unix.ENOENT {
		return bad("%s does not exist; create it with: mkdir %s", path, path)
	} else if err != nil {
		return bad("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return bad("%s is not a directory", path)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return bad("%s: %w", path, err)
	}
	if within(path, cipher) || within(cipher, path) {
		return bad("%s and the ciphertext %s must not contain each other", path, cipher)
	}
	if nonEmpty {
		return path, nil
	}
	if kind, source, err := mountAt(path); err == nil && kind == fsType {
		return bad("%s has the volume %s mounted already; unmount it first", path, source)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return bad("%s: %w", path, err)
	}
	if len(entries) > 0 {
		return bad("%s is not empty; choose another, or mount over it with -o nonempty", path)
	}
	return path, nil
}

// resolveParent resolves the symbolic links above a mountpoint: a stale mount itself cannot be looked at.
func resolveParent(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return path, err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return abs, err
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// isStale reports whether path is on a FUSE mount whose daemon is gone, or just goes. The kernel may know the answer to stat; for
// statfs it asks.
func isStale(path string) bool {
	err := unix.Statfs(path, new(unix.Statfs_t))
	return err == unix.ENOTCONN || err == unix.ECONNABORTED
}

// mountAt returns the type and the source of the topmost mount at path, "" if there is none; it does not touch the mount.
func mountAt(path string) (kind, source string, err error) {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.Mountpoint != path, false })
	for _, top := range slices.Backward(infos) {
		below := slices.ContainsFunc(infos, func(i *mountinfo.Info) bool { return i.Parent == top.ID })
		if !below {
			return top.FSType, top.Source, nil
		}
	}
	return "", "", err
}

// ownMount returns the path and the source of a mount of ours that the command line names; instead is what to do with others. The mount is not
// touched: its daemon may hang.
func ownMount(operand, instead string) (path, source string, err error) {
	if path, err = resolveParent(operand); err != nil {
		return "", "", fail(exitMountpoint, "%w", err)
	}
	kind, source, err := mountAt(path)
	if err == nil && kind == "" { // a link to a mountpoint, perhaps
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		kind, source, err = mountAt(path)
	}
	switch {
	case err != nil:
		return "", "", err
	case kind == "":
		return "", "", fail(exitMountpoint, "%s is not mounted", path)
	case kind != fsType:
		return "", "", fail(exitMountpoint, "%s is a %s mount, not one of kmsfs%s", path, kind, instead)
	}
	return path, source, nil
}

// mountpointOf returns where the volume in dir is mounted, "" if it is not, as far as this process can see.
func mountpointOf(dir string) string {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.FSType != fsType || i.Source != dir, false
	})
	if err != nil || len(infos) == 0 {
		return ""
	}
	return infos[0].Mountpoint
}

// mountHint says what a failed mount may lack; "" if nothing comes to mind.
func mountHint(allowOther bool) string {
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); errors.Is(err, os.ErrNotExist) {
		return "\nhint: the kernel offers no FUSE: there is no /dev/fuse (modprobe fuse)"
	} else if err != nil {
		return fmt.Sprintf("\nhint: this user cannot open /dev/fuse: %v", err)
	} else {
		f.Close()
	}
	if os.Geteuid() == 0 {
		return ""
	}
	if conf, _ := os.ReadFile("/etc/fuse.conf"); allowOther && !strings.Contains("\n"+string(conf), "\nuser_allow_other") {
		return "\nhint: allow_other is root's, unless /etc/fuse.conf says user_allow_other"
	}
	return "\nhint: users other than root mount with fusermount3, of the package fuse3, on directories that they may write to"
}
