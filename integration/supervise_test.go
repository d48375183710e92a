package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// superviseVariable makes this test binary run its arguments under a system call filter instead of tests, see [supervise].
const superviseVariable = "KMSFS_TEST_SUPERVISE"

// supervised are the system calls whose number goes to the supervisor: all by which the daemon reaches the ciphertext.
func supervised() map[uint32]string {
	return map[uint32]string{
		unix.SYS_OPENAT: "openat", unix.SYS_OPENAT2: "openat2", unix.SYS_PREAD64: "pread64", unix.SYS_PWRITE64: "pwrite64", unix.SYS_PWRITEV: "pwritev", unix.SYS_PREADV: "preadv",
		unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FALLOCATE: "fallocate", unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync",
		unix.SYS_SYNC_FILE_RANGE: "sync_file_range", unix.SYS_SYNCFS: "syncfs", unix.SYS_COPY_FILE_RANGE: "copy_file_range",
		unix.SYS_MKDIRAT: "mkdirat", unix.SYS_MKNODAT: "mknodat", unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_LINKAT: "linkat", unix.SYS_UNLINKAT: "unlinkat",
		unix.SYS_RENAMEAT2: "renameat2", unix.SYS_RENAMEAT: "renameat", unix.SYS_NEWFSTATAT: "newfstatat", unix.SYS_FSTAT: "fstat", unix.SYS_STATX: "statx",
		unix.SYS_READLINKAT: "readlinkat", unix.SYS_GETDENTS64: "getdents64", unix.SYS_LSEEK: "lseek",
		unix.SYS_FCHOWNAT: "fchownat", unix.SYS_FCHOWN: "fchown", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCHMODAT2: "fchmodat2", unix.SYS_FCHMOD: "fchmod",
		unix.SYS_UTIMENSAT: "utimensat", unix.SYS_FSETXATTR: "fsetxattr", unix.SYS_FREMOVEXATTR: "fremovexattr", unix.SYS_FGETXATTR: "fgetxattr",
		unix.SYS_LSETXATTR: "lsetxattr", unix.SYS_LREMOVEXATTR: "lremovexattr", unix.SYS_LGETXATTR: "lgetxattr",
	}
}

// supervise installs a filter that hands the supervised calls to whoever holds its listener, sends that through descriptor 3, and becomes
// the program in the arguments.
func supervise() error {
	runtime.LockOSThread() // the filter is this thread's; exec ends the others
	calls := supervised()
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // the number of the call
	for nr := range calls {
		program = append(program, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: nr},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	}
	program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&filter)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(listener)), nil, 0); err != nil {
		return err
	}
	unix.Close(3)
	os.Unsetenv(superviseVariable)
	return syscall.Exec(os.Args[1], os.Args[1:], os.Environ())
}

// A supervisor decides about the backing calls of a daemon; it implements [model.Fault].
type supervisor struct {
	errno  unix.Errno // what a call fails with; 0: it writes less than asked
	cipher string     // only calls that concern files below count

	mu    sync.Mutex
	armed bool
	at    int // the call that fails; guarded by mu
	calls int // since it was armed; guarded by mu
	hit   string
}

// Arm implements [model.Fault].
func (s *supervisor) Arm(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed, s.at, s.calls, s.hit = true, n, 0, ""
}

// Disarm implements [model.Fault].
func (s *supervisor) Disarm() (calls int, hit string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = false
	return s.calls, s.hit
}

// Allowed implements [model.Fault].
func (s *supervisor) Allowed(errno unix.Errno) bool {
	return s.errno != 0 && (errno == s.errno || errno == unix.EIO)
}

// Required implements [model.Fault]: a promise that was not kept must be known.
func (s *supervisor) Required(hit string) bool {
	return s.errno != unix.EINTR && s.errno != 0 && (strings.HasPrefix(hit, "fsync") || strings.HasPrefix(hit, "fdatasync"))
}

// wrap makes cmd start under supervision; start must be called after it has started.
func (s *supervisor) wrap(cmd *exec.Cmd) (start func() error, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "listener")
	cmd.Path, cmd.Args = self, append([]string{self}, cmd.Args...)
	cmd.Args[1] = binary
	cmd.Env = append(cmd.Env, superviseVariable+"=1")
	cmd.ExtraFiles = []*os.File{theirs}
	return func() error {
		theirs.Close()
		defer unix.Close(pair[0])
		oob := make([]byte, 64)
		_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			return err
		}
		messages, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(messages) != 1 {
			return errors.New("no listener: does the kernel allow filters of system calls?")
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return err
		}
		go s.serve(fds[0])
		return nil
	}, nil
}

// A notification is struct seccomp_notif of linux/seccomp.h.
type notification struct {
	id         uint64
	tid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

// A response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	val   int64
	error int32
	flags uint32
}

// serve answers until the last thread under the filter is gone.
func (s *supervisor) serve(listener int) {
	defer unix.Close(listener)
	calls := supervised()
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			if fds[0].Revents != 0 {
				return
			}
			continue
		}
		var n notification
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
			continue // the thread is gone, or a signal came
		}
		r := response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if s.decide(&n, calls[uint32(n.nr)]) {
			r.flags, r.error = 0, -int32(s.errno)
			if s.errno == 0 {
				var err error
				if r.val, err = shortWrite(&n); err != nil {
					r.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
				}
			}
		}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	}
}

// decide counts a call and reports whether it is the one that fails.
func (s *supervisor) decide(n *notification, call string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.armed || s.errno == 0 && !(call == "pwrite64" && n.args[2] > 1) {
		return false
	}
	path := s.backing(n, call)
	if path == "" {
		return false
	}
	s.calls++
	if s.calls != s.at {
		return false
	}
	s.hit = call + "(" + path + ")"
	return true
}

// backing returns the path in the ciphertext that a call concerns, "" if there is none.
func (s *supervisor) backing(n *notification, call string) string {
	below := func(path string) string {
		if rest, ok := strings.CutPrefix(path, s.cipher); ok {
			return "CIPHERDIR" + rest
		}
		return ""
	}
	link := func(fd uint64) string {
		path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.tid, int32(fd)))
		if err != nil {
			return ""
		}
		return below(path)
	}
	text := func(at uint64) string {
		mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", n.tid))
		if err != nil {
			return ""
		}
		defer mem.Close()
		buf := make([]byte, unix.PathMax)
		m, _ := mem.ReadAt(buf, int64(at))
		buf, _, _ = bytes.Cut(buf[:m], []byte{0})
		return string(buf)
	}
	// A path through /proc/self/fd names a descriptor.
	through := func(path string) string {
		rest, ok := strings.CutPrefix(path, "/proc/self/fd/")
		if !ok {
			return below(path)
		}
		var fd uint64
		if _, err := fmt.Sscan(strings.SplitN(rest, "/", 2)[0], &fd); err != nil {
			return ""
		}
		return link(fd)
	}
	switch call {
	case "lgetxattr", "lsetxattr", "lremovexattr":
		return through(text(n.args[0]))
	case "symlinkat":
		return link(n.args[1])
	case "linkat":
		return link(n.args[2])
	case "openat", "openat2", "utimensat", "fchmodat", "newfstatat", "statx":
		if int32(n.args[0]) == unix.AT_FDCWD {
			return through(text(n.args[1]))
		}
		if dir := link(n.args[0]); dir != "" {
			return dir + "/" + text(n.args[1])
		}
		return ""
	}
	return link(n.args[0])
}

// shortWrite writes the first half of what a pwrite64 asks for.
func shortWrite(n *notification) (int64, error) {
	buf := make([]byte, n.args[2]/2)
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", n.tid))
	if err != nil {
		return 0, err
	}
	defer mem.Close()
	if _, err := mem.ReadAt(buf, int64(n.args[1])); err != nil {
		return 0, err
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", n.tid, int32(n.args[0])), os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	m, err := f.WriteAt(buf, int64(n.args[3]))
	return int64(m), err
}
