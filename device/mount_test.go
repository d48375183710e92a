package device

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHelperSendsNothing has a fusermount3 that seems to mount, but sends no descriptor: it is asked to unmount, so that nothing is left. It gets no secrets, and what it says is
// logged.
func TestHelperSendsNothing(t *testing.T) {
	dir := t.TempDir()
	asked := filepath.Join(dir, "asked")
	script := "#!/bin/sh\nprintf '%s, %s\\n' \"$*\" \"${KMSFS_SECRET-}\" >>" + asked + "\necho said >&2\n"
	if err := os.WriteFile(filepath.Join(dir, "fusermount3"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("KMSFS_SECRET", "secret")
	var log bytes.Buffer
	_, err := mountByHelper("/somewhere", Options{Type: "t", Source: `a,b\c`, Options: []string{"ro"}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err == nil || !strings.Contains(err.Error(), "no descriptor") {
		t.Errorf("error %v", err)
	}
	if !strings.Contains(log.String(), "said") {
		t.Errorf("log: %s", &log)
	}
	got, err := os.ReadFile(asked)
	if err != nil {
		t.Fatal(err)
	}
	want := `-o fsname=a\,b\\c,subtype=t,max_read=1048576,ro -- /somewhere, ` + "\n-u -z -- /somewhere, \n"
	if string(got) != want {
		t.Errorf("fusermount3 was asked\n%s, want\n%s", got, want)
	}
}

// TestReceive has a descriptor sent as fusermount3 sends it.
func TestReceive(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if fd, err := receive(pair[0]); err != unix.EAGAIN {
		t.Errorf("nothing was sent: %d, %v", fd, err)
	}
	if err := unix.Sendmsg(pair[1], []byte{0}, nil, nil, 0); err != nil {
		t.Fatal(err)
	}
	if fd, err := receive(pair[0]); err != unix.EBADMSG {
		t.Errorf("a byte was sent: %d, %v", fd, err)
	}
	if err := unix.Sendmsg(pair[1], []byte{0}, unix.UnixRights(pair[1]), nil, 0); err != nil {
		t.Fatal(err)
	}
	fd, err := receive(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	status, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || status&unix.O_NONBLOCK == 0 {
		t.Errorf("reads of it wait: %#x, %v", status, err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("children get it: %#x, %v", flags, err)
	}
}
