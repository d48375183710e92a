package fs

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/device"
)

// content is opened for a request that reads or changes plaintext.
func (f *FS) content(id uint64) (*node, *openFile, fuse.Status) {
	if f.stopped.Load() {
		return nil, nil, fuse.EACCES
	}
	n := f.nodes.get(id)
	o, s := f.opened(n)
	return n, o, s
}

// Read implements [fuse.RawFileSystem].
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, o, s := f.content(in.NodeId)
	if o == nil {
		return nil, s
	}
	m, err := o.data.ReadAt(buf[:min(len(buf), int(in.Size))], int64(in.Offset))
	if err != nil && err != io.EOF {
		return nil, f.fail(n, "read", err)
	}
	return fuse.ReadResultData(buf[:m]), fuse.OK
}

// Write implements [fuse.RawFileSystem].
func (f *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, o, s := f.content(in.NodeId)
	if o == nil {
		return 0, s
	}
	// What comes from the page cache was written earlier through a mapping. That takes nothing away, and what has been given since must stay.
	if in.WriteFlags&fuse.WRITE_CACHE == 0 {
		if err := f.killPrivileges(n, in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0); err != nil {
			return 0, status(err)
		}
	}
	if err := o.prepare(); err != nil {
		return 0, f.fail(n, "write", err)
	}
	mapped := o.mapped.Load()
	m, err := o.data.WriteAt(data, int64(in.Offset))
	if in.WriteFlags&fuse.WRITE_CACHE != 0 {
		o.mapped.Add(1) // not earlier, see below
	}
	for m > 0 && in.Fh&uncached != 0 && f.shared(n) {
		// The kernel has dropped what it had of that before it asked, but may have read it again meanwhile.
		_ = f.kernel.Invalidate(n.id, int64(in.Offset), int64(m))
		// A page may have been read before this write, and changed through a mapping beside it: then it has taken back what this has written. The kernel has waited
		// for it when it was told to drop the page.
		now := o.mapped.Load()
		if now == mapped {
			break
		}
		mapped = now
		m, err = o.data.WriteAt(data[:m], int64(in.Offset))
	}
	if m > 0 {
		if failed := o.written(in.Fh, in.Flags); failed != nil {
			m, err = 0, failed
		}
	}
	if err != nil {
		s := f.fail(n, "write", err)
		if m > 0 {
			return uint32(m), fuse.OK // what was written counts; the next write meets the error
		}
		return 0, s
	}
	return uint32(m), fuse.OK
}

// shared reports whether the kernel may have pages of the file n, which is open.
func (f *FS) shared(n *node) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.open == nil || n.open.shared
}

// killPrivileges takes away what a change of content must not leave: file capabilities and, if setID, the set-ID bits.
func (f *FS) killPrivileges(n *node, setID bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	o := n.open
	if o == nil {
		return unix.EBADF
	}
	if !o.killed && n.attrs != attrsNone {
		if x, ok := f.names.XattrName(capabilityName); ok {
			err := unix.Fremovexattr(o.fd, x.Disk)
			if err == nil {
				f.journal.Changed(n.key())
			} else if err != unix.ENODATA && err != unix.EOPNOTSUPP && err != unix.EPERM {
				return err
			}
		}
		o.killed = true
	}
	if !setID {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(o.fd, &st); err != nil {
		return err
	}
	mode := withoutSetID(st.Mode)
	if mode == st.Mode&07777 {
		return nil
	}
	defer f.journal.Changed(n.key())
	if err := unix.Fchmod(o.fd, mode); err != nil {
		return err
	}
	// The kernel does not know of it after a write past the page cache, and would run the program with the bits.
	_ = f.kernel.Invalidate(n.id, -1, 0)
	return nil
}

// withoutSetID is the mode of a file after somebody without privileges has changed it.
func withoutSetID(mode uint32) uint32 {
	mode &= 07777 &^ unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		mode &^= unix.S_ISGID
	}
	return mode
}

// Flush implements [fuse.RawFileSystem]: somebody closes the file.
func (f *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if in.Fh&deferred != 0 {
		return fuse.OK
	}
	n := f.nodes.get(in.NodeId)
	o, _ := f.opened(n)
	if o == nil {
		return fuse.OK
	}
	return f.fail(n, "write", o.save())
}

// save makes sure that the end of the daemon does not cost what was written.
func (o *openFile) save() error {
	if err := o.data.Flush(); err != nil {
		return err
	}
	return o.file.Save()
}

// Fsync implements [fuse.RawFileSystem].
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n := f.nodes.get(in.NodeId)
	o, s := f.opened(n)
	if o == nil {
		return s
	}
	const dataOnly = 1 // FUSE_FSYNC_FDATASYNC
	return f.fail(n, "sync", o.sync(in.FsyncFlags&dataOnly != 0))
}

// sync makes what was written durable.
func (o *openFile) sync(dataOnly bool) error {
	if err := o.data.Flush(); err != nil {
		return err
	}
	return o.file.Sync(dataOnly)
}

// Fallocate implements [fuse.RawFileSystem]: plain, KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE; the kernel passes no other mode.
func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	n, o, s := f.content(in.NodeId)
	if o == nil {
		return s
	}
	off, size := int64(in.Offset), int64(in.Length)
	if off < 0 || size <= 0 || off > blockcrypt.MaxSize-size {
		return fuse.Status(unix.EFBIG)
	}
	// The kernel does not say whether the caller may leave set-ID bits, as it does for writes.
	if err := f.killPrivileges(n, in.Caller.Uid != 0); err != nil {
		return status(err)
	}
	var err error
	if in.Mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		err = o.prepare()
	}
	if err == nil {
		err = errors.Join(allocate(o, off, size, in.Mode), o.changed(in.Fh))
	}
	return f.fail(n, "allocate in", err)
}

func allocate(o *openFile, off, size int64, mode uint32) error {
	keep := mode&unix.FALLOC_FL_KEEP_SIZE != 0
	switch mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
		if keep && off+size > o.data.Size() {
			// Space past the end is only a promise: the backing keeps it as far as it can.
			if o.data.Size() == 0 {
				return o.file.Preallocate(off, size)
			}
			return o.file.Preallocate(off, size+size/64)
		}
		return o.data.Allocate(off, size)
	case unix.FALLOC_FL_PUNCH_HOLE:
		return o.data.PunchHole(off, size)
	case unix.FALLOC_FL_ZERO_RANGE:
		if err := o.data.PunchHole(off, size); err != nil {
			return err
		}
		if !keep {
			return o.data.Allocate(off, size)
		}
		if inside := min(size, o.data.Size()-off); inside > 0 {
			return o.data.Allocate(off, inside)
		}
		return nil
	}
	return unix.EOPNOTSUPP
}

// Lseek implements [fuse.RawFileSystem]: SEEK_DATA and SEEK_HOLE, at the granularity of segments.
func (f *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	n, o, s := f.content(in.NodeId)
	if o == nil {
		return s
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	at, err := f.seek(n, o, int64(in.Offset), in.Whence == unix.SEEK_HOLE)
	if err != nil {
		return f.fail(n, "seek in", err)
	}
	out.Offset = uint64(at)
	return fuse.OK
}

// seek returns where the next hole or the next data is. What has been written to a hole through a mapping is data, too: a copy would else go without. The kernel may not have passed it on,
// and does not before it asks, so it is told to drop what it has of the hole that is found, whereupon it writes what has changed.
func (f *FS) seek(n *node, o *openFile, off int64, hole bool) (at int64, err error) {
	for passed := off; ; { // what was changed up to there has been passed on
		from := off
		if hole {
			at, err = o.data.SeekHole(off)
			from = at
		} else {
			at, err = o.data.SeekData(off)
		}
		if err != nil || from < passed || !o.mappable.Load() {
			return at, err
		}
		end, failed := o.data.SeekData(from)
		if failed != nil || end <= from {
			return at, nil // no hole: at the end, or data
		}
		_ = f.kernel.Invalidate(n.id, from, end-from)
		passed = end
	}
}

// maxCopy bounds one copy_file_range, in bytes, so that it can be interrupted; the caller asks for the rest.
const maxCopy = 64 << 20

// CopyFileRange implements [fuse.RawFileSystem]: it copies without a round trip for each request's worth of data, and keeps
// holes.
func (f *FS) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from, src, s := f.content(in.NodeId)
	if src == nil {
		return 0, s
	}
	to, dst, s := f.content(in.NodeIdOut)
	if dst == nil {
		return 0, s
	}
	if in.Flags != 0 {
		return 0, fuse.EINVAL
	}
	if err := f.killPrivileges(to, true); err != nil {
		return 0, status(err)
	}
	if err := dst.prepare(); err != nil {
		return 0, f.fail(to, "copy to", err)
	}
	copied, err := copyRange(interrupt(cancel), dst.data, src.data, int64(in.OffOut), int64(in.OffIn), int64(min(in.Len, maxCopy)))
	if copied > 0 {
		if failed := dst.changed(in.FhOut); failed != nil {
			copied, err = 0, failed
		}
	}
	if copied > 0 {
		return uint32(copied), fuse.OK
	}
	if errors.Is(err, blockcrypt.ErrAuth) || errors.Is(err, blockcrypt.ErrSize) {
		return 0, f.fail(from, "copy from", err)
	}
	return 0, f.fail(to, "copy to", err)
}

// copyRange copies up to n bytes and returns how many it did. A signal cuts it short but, as on other file systems, not to nothing: programs
// do not expect EINTR here.
func copyRange(ctx interrupt, dst, src *blockcrypt.File, to, from, n int64) (done int64, err error) {
	n = min(n, src.Size()-from)
	buf := make([]byte, max(min(n, device.MaxRequest), 0))
	for done < n {
		if done > 0 && ctx.Err() != nil {
			break
		}
		data, err := src.SeekData(from + done)
		if err != nil {
			return done, err
		}
		if hole := min(data-from, n) - done; hole > 0 {
			if err := dst.PunchHole(to+done, hole); err != nil {
				return done, err
			}
			if end := to + done + hole; end > dst.Size() {
				if err := dst.Truncate(end); err != nil {
					return done, err
				}
			}
			done += hole
			continue
		}
		m, err := src.ReadAt(buf[:min(n-done, int64(len(buf)))], from+done)
		if m > 0 {
			w, werr := dst.WriteAt(buf[:m], to+done)
			done += int64(w)
			if werr != nil {
				return done, werr
			}
		}
		if err == io.EOF {
			break
		} else if err != nil {
			return done, err
		}
	}
	return done, nil
}
