package powercut

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The environment of an image's server.
const (
	imageToServe  = "KMSFS_POWERCUT_IMAGE"
	imageServedIn = "KMSFS_POWERCUT_IMAGE_DIR"
)

// ServeImage does the work of a process that a [Recorder] has started, and does not return from it; in any other it does nothing.
func ServeImage() {
	image := os.Getenv(imageToServe)
	if image == "" {
		return
	}
	if err := serve(image, os.Getenv(imageServedIn), os.NewFile(3, "ready")); err != nil {
		fmt.Fprintf(os.Stderr, "powercut: serve %s: %v\n", image, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// An imageServer serves an image file and records what is done to it.
type imageServer struct {
	image *os.File
	size  int64

	mu       sync.Mutex
	position *position     // guarded by mu
	records  *bufio.Writer // guarded by mu
}

// serve serves the image until it is unmounted, and closes ready when it is mounted.
func serve(image, dir string, ready *os.File) error {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	s := &imageServer{image: f, size: st.Size()}
	if s.position, err = openPosition(image+".records", 0); err != nil {
		return err
	}
	if _, err := s.position.file.Seek(blockSize, 0); err != nil {
		return err
	}
	s.records = bufio.NewWriterSize(s.position.file, 1<<20)
	root := &fs.Inode{}
	srv, err := fs.Mount(dir, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMount: true, FsName: "powercut", Name: "powercut", MaxWrite: 1 << 20, DisableSplice: true},
		OnAdd: func(ctx context.Context) {
			root.AddChild("image", root.NewPersistentInode(ctx, &imageFile{s: s}, fs.StableAttr{Mode: fuse.S_IFREG}), true)
		},
	})
	if err != nil {
		return err
	}
	if _, err := ready.Write([]byte{1}); err != nil {
		return err
	}
	ready.Close()
	srv.Wait()
	return nil
}

// zeroes writes zeroes, which is what discarding and zeroing come to.
func (s *imageServer) zeroes(off, size int64) error {
	buf := make([]byte, blockSize)
	for end := min(off+size, s.size); off < end; {
		n := min(blockSize-off%blockSize, end-off)
		if err := s.write(buf[:n], off); err != nil {
			return err
		}
		off += n
	}
	return nil
}

func (s *imageServer) write(data []byte, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.image.WriteAt(data, off); err != nil {
		return err
	}
	n := int64(0)
	for len(data) > 0 {
		size := min(blockSize-off%blockSize, int64(len(data)))
		if err := s.record(data[:size], off); err != nil {
			return err
		}
		data, off, n = data[size:], off+size, n+1
	}
	return s.recorded(n)
}

func (s *imageServer) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.record(nil, 0); err != nil {
		return err
	}
	return s.recorded(1)
}

func (s *imageServer) record(data []byte, off int64) error {
	var header [recordHeader]byte
	binary.LittleEndian.PutUint64(header[:], uint64(off))
	binary.LittleEndian.PutUint64(header[8:], uint64(len(data)))
	if _, err := s.records.Write(header[:]); err != nil {
		return err
	}
	_, err := s.records.Write(data)
	return err
}

// recorded lets n new records be seen.
func (s *imageServer) recorded(n int64) error {
	if err := s.records.Flush(); err != nil {
		return err
	}
	s.position.count.Add(n)
	return nil
}

// imageFile is the file that the recorder serves. The kernel's loop driver turns a flush of the device, and the second half of a
// forced write, into fsync.
type imageFile struct {
	fs.Inode
	s *imageServer
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
	out.Mode, out.Size, out.Blksize = fuse.S_IFREG|0o600, uint64(f.s.size), blockSize
	return 0
}

func (f *imageFile) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := f.s.image.ReadAt(dest, off)
	if n == 0 && err != nil && off < f.s.size {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (f *imageFile) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if off+int64(len(data)) > f.s.size {
		return 0, syscall.ENOSPC
	}
	if f.s.write(data, off) != nil {
		return 0, syscall.EIO
	}
	return uint32(len(data)), 0
}

func (f *imageFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	if f.s.flush() != nil {
		return syscall.EIO
	}
	return 0
}

func (f *imageFile) Allocate(_ context.Context, _ fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) == 0 {
		return syscall.EOPNOTSUPP
	}
	if f.s.zeroes(int64(off), int64(size)) != nil {
		return syscall.EIO
	}
	return 0
}
