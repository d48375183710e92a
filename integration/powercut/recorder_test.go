package powercut

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRecorderEnds sees that when an image's server ends, even one that answers no more, those who wait for the image get an error, and
// that the loop device goes.
func TestRecorderEnds(t *testing.T) {
	s, formatted := newStack(t, "ext4", "")
	dir := workdir(t)
	live, served := filepath.Join(dir, "live"), filepath.Join(dir, "recorder")
	must(t, errors.Join(os.Mkdir(served, 0o700), copySparse(formatted, live)))
	r, err := NewRecorder(live, served)
	must(t, err)
	var image unix.Stat_t
	must(t, unix.Stat(r.Path(), &image))
	m, err := s.mount(r.Path(), dir)
	must(t, err)
	number, err := device(m.lower)
	must(t, err)
	f, err := os.Create(filepath.Join(m.top, "file"))
	must(t, err)
	_, err = f.WriteString("content")
	must(t, err)

	must(t, r.server.Process.Signal(syscall.SIGSTOP))
	synced := make(chan error)
	go func() { synced <- f.Sync() }()
	must(t, r.server.Process.Kill())
	if err := <-synced; err == nil {
		t.Error("fsync succeeded without a disk")
	}
	f.Close()
	must(t, m.unmount())
	must(t, r.Close())

	node := filepath.Join(dir, "node")
	must(t, unix.Mknod(node, unix.S_IFBLK|0o600, int(number)))
	for end := time.Now().Add(patience); bound(t, node, &image); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("loop device %d still has the image", unix.Minor(number))
		}
	}
}

// bound reports whether a loop device has a file. Others may have taken the device by now.
func bound(t *testing.T, node string, file *unix.Stat_t) bool {
	f, err := os.Open(node)
	if errors.Is(err, unix.ENXIO) {
		return false
	}
	must(t, err)
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return false
	}
	if errors.Is(err, unix.ENOTCONN) {
		return true // it asks the file, whose server is gone
	}
	must(t, err)
	return info.Device == file.Dev && info.Inode == file.Ino
}
