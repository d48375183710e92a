// Package device carries requests between the kernel's FUSE device and whoever answers them.
//
// A request costs a program two switches between threads, and the daemon as many, which take longer than most answers. So whoever has answered a
// request looks for the next one for a moment before it sleeps ([Conn.Serve]). Where the kernel hands requests over io_uring(7), whoever answers is on the processor of the one who asks, and nobody is
// woken on another.
package device

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// MaxRequest is the size of the largest read or write, in bytes; the kernel allows no more by default.
const MaxRequest = 1 << 20

// Options say how a file system is mounted.
type Options struct {
	Type    string          // the subtype: the kernel shows fuse.Type
	Source  string          // what the table of mounts shows as the device
	Options []string        // as the kernel spells them, such as "suid", "noexec", "ro" or "allow_other"; nosuid,nodev is the default
	Rings   bool            // take requests over io_uring(7) where the kernel offers that
	Files   func() []uint64 // for Rings: some files that the kernel has, unless it has forgotten them meanwhile; may be called at any time
	Logger  *slog.Logger    // default: slog.Default()
}

// A Conn is the kernel's side of a mounted file system. Its methods may be called by several goroutines at once.
type Conn struct {
	fd         int // of /dev/fuse; reads do not wait
	mountpoint string
	direct     bool // mounted without fusermount3
	log        *slog.Logger

	serving
}

// flag returns what an option that mount(2) takes as a bit does with it.
func flag(option string) (bit uintptr, set, ok bool) {
	switch option {
	case "ro":
		return unix.MS_RDONLY, true, true
	case "rw":
		return unix.MS_RDONLY, false, true
	}
	name, set := strings.CutPrefix(option, "no")
	bit, ok = map[string]uintptr{"dev": unix.MS_NODEV, "suid": unix.MS_NOSUID, "exec": unix.MS_NOEXEC}[name]
	return bit, set, ok
}

// Mount mounts a file system at a directory. Nothing answers yet, so nobody may look at the mountpoint before [Conn.Init].
func Mount(mountpoint string, o Options) (*Conn, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	c := &Conn{mountpoint: mountpoint, log: o.Logger}
	var err error
	if c.fd, err = mountDirect(mountpoint, o); err == nil {
		c.direct = true
	} else if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		c.fd, err = mountByHelper(mountpoint, o)
	}
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", mountpoint, err)
	}
	c.rings, c.files = o.Rings, o.Files
	c.stirred = make(chan struct{}, 1)
	return c, nil
}

// mountDirect is mount(2), which needs privileges.
func mountDirect(mountpoint string, o Options) (fd int, err error) {
	var st unix.Stat_t
	if err := unix.Stat(mountpoint, &st); err != nil {
		return -1, err
	}
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	data := []string{
		fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d", fd, st.Mode&unix.S_IFMT, os.Geteuid(), os.Getegid(), MaxRequest),
	}
	for _, option := range o.Options {
		bit, set, ok := flag(option)
		switch {
		case !ok:
			data = append(data, option)
		case set:
			flags |= bit
		default:
			flags &^= bit
		}
	}
	if err := unix.Mount(o.Source, mountpoint, "fuse."+o.Type, flags, strings.Join(data, ",")); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// mountByHelper has fusermount3, which is setuid, mount for an ordinary user. It sends back the descriptor over a socket.
func mountByHelper(mountpoint string, o Options) (fd int, err error) {
	helper, err := fusermount()
	if err != nil {
		return -1, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	defer theirs.Close()
	options := append([]string{"fsname=" + escape(o.Source), "subtype=" + o.Type, fmt.Sprintf("max_read=%d", MaxRequest)}, o.Options...)
	cmd := exec.Command(helper, "-o", strings.Join(options, ","), "--", mountpoint)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = []string{"_FUSE_COMMFD=3"} // where ExtraFiles begin
	said, err := run(cmd)
	if err != nil {
		return -1, err
	}
	if said != "" {
		o.Logger.Warn(said, "mountpoint", mountpoint)
	}
	if fd, err = receive(pair[0]); err != nil {
		_, _ = run(exec.Command(helper, "-u", "-z", "--", mountpoint)) // nobody would ever answer there
		return -1, fmt.Errorf("%s sent no descriptor: %w", helper, err)
	}
	return fd, nil
}

// receive takes the descriptor that has been sent over a socket; reads of it will not wait.
func receive(socket int) (fd int, err error) {
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return -1, unix.EBADMSG
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, unix.EBADMSG
	}
	return fds[0], unix.SetNonblock(fds[0], true)
}

// escape protects what separates options.
func escape(s string) string { return strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(s) }

// fusermount returns the path of fusermount3.
func fusermount() (string, error) {
	path, err := exec.LookPath("fusermount3")
	if err != nil {
		path, err = exec.LookPath("/bin/fusermount3")
	}
	if err != nil {
		return "", errors.New("not permitted, and there is no fusermount3 that could do it")
	}
	return path, nil
}

// run runs a command and returns what it says; if it fails, that is its error. It gets nothing of our environment, which may hold secrets.
func run(cmd *exec.Cmd) (said string, err error) {
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	out, err := cmd.CombinedOutput()
	said = string(bytes.TrimSpace(out))
	if err != nil && said != "" {
		return "", errors.New(said)
	} else if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err)
	}
	return said, nil
}

// Unmount takes the mount away; it fails if that is still in use after a moment, since the last user may just be leaving.
func (c *Conn) Unmount() error {
	delay := 5 * time.Millisecond
	for {
		err := c.unmount()
		if err == nil || delay > 100*time.Millisecond {
			return err
		}
		time.Sleep(delay)
		delay *= 2
	}
}

func (c *Conn) unmount() error {
	if c.direct {
		return unix.Unmount(c.mountpoint, unix.UMOUNT_NOFOLLOW)
	}
	helper, err := fusermount()
	if err != nil {
		return err
	}
	_, err = run(exec.Command(helper, "-u", "--", c.mountpoint))
	return err
}
