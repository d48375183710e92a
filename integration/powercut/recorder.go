// Package powercut records every block that a filesystem writes and checks what is left when power fails at any of them.
//
// A [Recorder] serves one image file through FUSE; a loop device over it carries ext4 or XFS, on which a volume and a program run.
// The recorder keeps each write and each flush in order. A [Cutter] turns any moment of that record into the image that a disk
// could hold had power failed just then: all that the last flush covered, and any of the 4 KiB writes after it. So one run gives
// any number of power cuts. The program is a [workload], which notes what each fsync promised; check compares that with what
// the image, mounted afresh, gives back.
package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blockSize is the unit that a disk writes whole or not at all, in bytes.
const blockSize = 4096

// A record is a write of at most one block, or, without data, a flush.
type record struct {
	off  int64
	data []byte
}

// A Recorder has an image file served and what is done to it recorded, by a process of its own. That process uses nothing that lies
// on the image, so it can always be killed, and then whoever waits for the image gets EIO. A server in the tests' own process could not
// be: a thread of theirs that waits for the image would keep it half alive for ever, and with it the loop device, at whose file
// everybody who lists loop devices would hang.
type Recorder struct {
	dir      string
	records  string // path of the file of records
	position *position
	server   *exec.Cmd
	gone     chan struct{} // closed when the server has ended
	dog      *time.Timer
}

// NewRecorder serves the image as a file, at Path, in dir, which must be empty. The executable must call [ServeImage] first of all.
func NewRecorder(image, dir string) (*Recorder, error) {
	r := &Recorder{dir: dir, records: image + ".records", gone: make(chan struct{})}
	var err error
	if r.position, err = openPosition(r.records, os.O_CREATE|os.O_TRUNC); err != nil {
		return nil, err
	}
	ready, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, r.position.close())
	}
	defer ready.Close()
	r.server = exec.Command("/proc/self/exe")
	r.server.Env = append(os.Environ(), imageToServe+"="+image, imageServedIn+"="+dir)
	r.server.Stderr, r.server.ExtraFiles = os.Stderr, []*os.File{w}
	r.server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the signal comes when the thread ends, which waits for nothing on the image
		defer close(r.gone)
		err := r.server.Start()
		started <- err
		if err == nil {
			_ = r.server.Wait()
		}
	}()
	err = <-started
	w.Close()
	if err != nil {
		return nil, errors.Join(err, r.position.close())
	}
	// A system call that waits for the image ends when its server does.
	r.dog = time.AfterFunc(patience, func() { _ = r.server.Process.Kill() })
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		return nil, errors.Join(errors.New("the image is not served"), r.Close())
	}
	return r, nil
}

// Path is the file to put under a loop device.
func (r *Recorder) Path() string { return filepath.Join(r.dir, "image") }

// Position is the number of writes and flushes so far.
func (r *Recorder) Position() int { return int(r.position.count.Load()) }

// Records lists the writes and flushes so far.
func (r *Recorder) Records() ([]record, error) {
	n := r.Position()
	b, err := os.ReadFile(r.records)
	if err != nil {
		return nil, err
	}
	records := make([]record, 0, n)
	for b = b[blockSize:]; len(records) < n; {
		if len(b) < recordHeader {
			return nil, fmt.Errorf("%s ends at record %d of %d", r.records, len(records), n)
		}
		rec := record{off: int64(binary.LittleEndian.Uint64(b))}
		size := int(binary.LittleEndian.Uint64(b[8:]))
		b = b[recordHeader:]
		if size > 0 {
			rec.data = b[:size:size]
		}
		records, b = append(records, rec), b[size:]
	}
	return records, nil
}

// Close stops to serve the image. Nothing may use it any more.
func (r *Recorder) Close() error {
	err := unix.Unmount(r.dir, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) {
		err = nil // it never was mounted
	}
	select {
	case <-r.gone:
	case <-time.After(patience / 4):
		_ = r.server.Process.Kill()
		<-r.gone
		err = errors.Join(err, errors.New("the image's server did not end after the unmount"))
	}
	if !r.dog.Stop() {
		err = errors.Join(err, errors.New("the image was in use for too long"))
	}
	return errors.Join(err, r.position.close(), os.Remove(r.records))
}

// recordHeader is the length of what precedes a record's data in the file: its offset and its length, 8 bytes each.
const recordHeader = 16

// A position is the number of records, in the first block of their file, which the recorder and its server map.
type position struct {
	file  *os.File
	page  []byte
	count *atomic.Int64
}

func openPosition(path string, flags int) (*position, error) {
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(blockSize); err != nil {
		f.Close()
		return nil, err
	}
	page, err := unix.Mmap(int(f.Fd()), 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &position{file: f, page: page, count: (*atomic.Int64)(unsafe.Pointer(&page[0]))}, nil
}

func (p *position) close() error { return errors.Join(unix.Munmap(p.page), p.file.Close()) }
