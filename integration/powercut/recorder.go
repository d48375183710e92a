// Package powercut records every block that a filesystem writes and checks what is left when power fails at any of them.
//
// A [Recorder] serves one image file through FUSE; a loop device over it carries ext4 or XFS, on which a volume and a program run.
// The recorder keeps each write and each flush in order. A [Cutter] turns any moment of that record into the image that a disk
// could hold had power failed just then: all that the last flush covered, and any of the 4 KiB writes after it. So one run gives
// any number of power cuts. The program is a [workload], which notes what each fsync promised; check compares that with what
// the image, mounted afresh, gives back.
package powercut

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// blockSize is the unit that a disk writes whole or not at all, in bytes.
const blockSize = 4096

// A record is a write of at most one block, or, without data, a flush.
type record struct {
	off  int64
	data []byte
}

// A Recorder serves an image file and records what is done to it.
type Recorder struct {
	image *os.File
	size  int64
	srv   *fuse.Server
	dir   string

	mu      sync.Mutex
	records []record // guarded by mu
}

// NewRecorder serves the image as a file, at Path, in dir, which must be empty.
func NewRecorder(image, dir string) (*Recorder, error) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	r := &Recorder{image: f, size: st.Size(), dir: dir}
	root := &fs.Inode{}
	r.srv, err = fs.Mount(dir, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMount: true, FsName: "powercut", Name: "powercut", MaxWrite: 1 << 20},
		OnAdd: func(ctx context.Context) {
			root.AddChild("image", root.NewPersistentInode(ctx, &imageFile{r: r}, fs.StableAttr{Mode: fuse.S_IFREG}), true)
		},
	})
	if err != nil {
		f.Close()
		return nil, err
	}
	return r, nil
}

// Path is the file to put under a loop device.
func (r *Recorder) Path() string { return filepath.Join(r.dir, "image") }

// Position is the number of writes and flushes so far.
func (r *Recorder) Position() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.records)
}

// Close stops to serve the image. Nothing may use it any more.
func (r *Recorder) Close() error {
	err := unix.Unmount(r.dir, unix.MNT_DETACH)
	if err == nil {
		r.srv.Wait()
	}
	r.image.Close()
	return err
}

// zeroes writes zeroes, which is what discarding and zeroing come to.
func (r *Recorder) zeroes(off, size int64) error {
	buf := make([]byte, blockSize)
	for end := min(off+size, r.size); off < end; {
		n := min(blockSize-off%blockSize, end-off)
		if err := r.write(buf[:n], off); err != nil {
			return err
		}
		off += n
	}
	return nil
}

func (r *Recorder) write(data []byte, off int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.image.WriteAt(data, off); err != nil {
		return err
	}
	kept := append([]byte(nil), data...)
	for len(kept) > 0 {
		n := min(blockSize-off%blockSize, int64(len(kept)))
		r.records = append(r.records, record{off, kept[:n:n]})
		kept, off = kept[n:], off+n
	}
	return nil
}

func (r *Recorder) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, record{})
}

// imageFile is the file that the recorder serves. The kernel's loop driver turns a flush of the device, and the second half of a
// forced write, into fsync.
type imageFile struct {
	fs.Inode
	r *Recorder
}

var (
	_ fs.NodeOpener    = (*imageFile)(nil)
	_ fs.NodeReader    = (*imageFile)(nil)
	_ fs.NodeWriter    = (*imageFile)(nil)
	_ fs.NodeFsyncer   = (*imageFile)(nil)
	_ fs.NodeAllocater = (*imageFile)(nil)
	_ fs.NodeGetattrer = (*imageFile)(nil)
)

func (f *imageFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *imageFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blksize = fuse.S_IFREG|0o600, uint64(f.r.size), blockSize
	return 0
}

func (f *imageFile) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := f.r.image.ReadAt(dest, off)
	if n == 0 && err != nil && off < f.r.size {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (f *imageFile) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if off+int64(len(data)) > f.r.size {
		return 0, syscall.ENOSPC
	}
	if f.r.write(data, off) != nil {
		return 0, syscall.EIO
	}
	return uint32(len(data)), 0
}

func (f *imageFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.r.flush()
	return 0
}

func (f *imageFile) Allocate(_ context.Context, _ fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) == 0 {
		return syscall.EOPNOTSUPP
	}
	if f.r.zeroes(int64(off), int64(size)) != nil {
		return syscall.EIO
	}
	return 0
}
