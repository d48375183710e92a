package fs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/names"
	"github.com/kmsfs/kmsfs/volume"
)

// An openFile is the content of a file that somebody has open. All openers of an inode share it.
type openFile struct {
	fd       int           // of file: for its attributes
	file     *journal.File // the ciphertext
	data     *blockcrypt.File
	supply   *volume.Supply // of headers, for data
	refs     int            // users, deferred openers not among them; guarded by node.mu
	killed   bool           // file capabilities were looked for since the file was opened; guarded by node.mu
	shared   bool           // somebody has opened it since it was created, and may have the kernel cache it; guarded by node.mu
	mappable atomic.Bool    // somebody may have changed it through a mapping since it was opened
	mapped   atomic.Uint64  // how often pages were written that had been changed through mappings
}

// Open implements [fuse.RawFileSystem].
func (f *FS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	write := in.Flags&unix.O_ACCMODE != unix.O_RDONLY
	cached := !write && in.Flags&unix.O_DIRECT == 0
	out.OpenFlags, out.Fh = openFlags(write), handle(in.Flags)
	if cached && f.deferOpen(n) {
		out.Fh = deferred
		return fuse.OK
	}
	o, err := f.acquire(interrupt(cancel), n, write)
	if err != nil {
		return f.fail(n, "open", err)
	}
	o.openedWith(in.Flags)
	if cached {
		f.prefill(n)
	}
	return fuse.OK
}

// openedWith notes with which flags somebody has opened o.
func (o *openFile) openedWith(flags uint32) {
	if flags&unix.O_ACCMODE == unix.O_RDWR {
		o.mappable.Store(true)
	}
}

// openFlags says that cached pages stay valid: nobody else writes. Readers need not tell us when they close.
func openFlags(write bool) uint32 {
	if write {
		return fuse.FOPEN_KEEP_CACHE
	}
	return fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
}

// bufferSize is the size, in bytes, of the largest file that is given to the kernel when it is opened. No header is larger.
const bufferSize = 64 << 10

// prefill gives the content of a small file to the kernel's page cache before its first reader asks for it, who then asks for nothing. It is done once: what the
// kernel drops later it reads again. What is damaged is left for the reader to find.
//
// The kernel takes the bytes over whatever it has, so nobody else may have the file open: what a writer changed meanwhile would be lost to
// readers. While n.mu is held, nobody can become one. No page of the file is locked by a read that waits for an answer, and so for n.mu: the kernel releases a file
// only after the last answer.
func (f *FS) prefill(n *node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	o := n.open
	if n.given > 0 || o == nil || o.refs != 1 || f.stopped.Load() {
		return
	}
	size := o.data.Size()
	if size == 0 || size > bufferSize {
		return
	}
	n.given = 1
	buf := f.buffers.Get().(*[bufferSize]byte)
	defer f.buffers.Put(buf)
	if m, err := o.data.ReadAt(buf[:size], 0); int64(m) == size && (err == nil || err == io.EOF) {
		_ = f.kernel.Store(n.id, buf[:m]) // else its reader asks
		if f.stopped.Load() {             // Stop may have been here before
			n.given = 0
			_ = f.kernel.Invalidate(n.id, 0, 0)
		}
	}
}

// An opener authenticates the header of a file, which it does not keep, and returns the file's cipher.
type opener func(raw []byte) (*blockcrypt.Cipher, error)

// An unasked is the error of openKnown for a header whose data key is not known.
type unasked struct{ raw []byte }

// Error implements error.
func (*unasked) Error() string { return volume.ErrForgotten.Error() }

// openKnown is an opener that asks no CMK.
func (f *FS) openKnown(raw []byte) (*blockcrypt.Cipher, error) {
	c, err := f.vol.OpenKnown(raw)
	if errors.Is(err, volume.ErrForgotten) {
		return nil, &unasked{bytes.Clone(raw)}
	}
	return c, err
}

// ask returns an opener that asks CMKs.
func (f *FS) ask(ctx context.Context) opener {
	return func(raw []byte) (*blockcrypt.Cipher, error) { return f.vol.OpenFile(ctx, raw) }
}

// acquire returns the content of n for one more user, who calls release.
func (f *FS) acquire(ctx interrupt, n *node, write bool) (*openFile, error) {
	if f.stopped.Load() {
		return nil, unix.EACCES
	}
	return f.obtain(ctx, n, write)
}

// obtain is acquire even for a volume that is stopped. CMKs are asked while no lock is held, since a call may take seconds.
func (f *FS) obtain(ctx interrupt, n *node, write bool) (*openFile, error) {
	for open := f.openKnown; ; {
		o, err := f.obtainWith(open, n, write)
		var header *unasked
		if !errors.As(err, &header) {
			return o, err
		}
		_, err = f.vol.FileHeader(ctx, header.raw)
		if damaged(err) {
			open = f.ask(ctx) // whether a crash has torn it is found out under the locks
		} else if err != nil {
			return nil, err
		}
	}
}

func (f *FS) obtainWith(open opener, n *node, write bool) (*openFile, error) {
	f.renames.RLock()
	defer f.renames.RUnlock()
	return f.obtainLocked(open, n, write)
}

// obtainLocked is obtain for callers that hold renames, and an opener.
func (f *FS) obtainLocked(open opener, n *node, write bool) (*openFile, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open == nil {
		o, err := f.openNode(open, n, write)
		if err != nil {
			return nil, err
		}
		n.open = o
	} else if write && !n.open.file.Writable() {
		if err := f.upgrade(n); err != nil {
			return nil, err
		}
	}
	n.open.refs++
	n.open.shared = true
	return n.open, nil
}

// release takes back a use of n's content; the last one closes the file. The error, which is logged, is for whoever can still tell a caller.
func (f *FS) release(n *node) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return f.releaseLocked(n)
}

// releaseLocked is release for callers that hold n.mu.
func (f *FS) releaseLocked(n *node) error {
	if n.open == nil {
		return nil
	}
	n.open.refs--
	return f.closeUnused(n)
}

// closeUnused closes n unless it has users, or deferred openers. n.mu is held.
func (f *FS) closeUnused(n *node) error {
	o := n.open
	if o == nil || o.refs > 0 || n.deferred() > 0 {
		return nil
	}
	if f.nodes.nameless(n) {
		var st unix.Stat_t
		if f.statWith(&st, func() error { return unix.Fstat(o.fd, &st) }) == nil {
			f.nodes.remember(n, &st)
		}
	}
	n.open = nil
	err := errors.Join(o.data.Flush(), o.file.Release())
	if err != nil {
		sealed, plain := f.paths(n)
		f.log.Error("cannot finish file", "ciphertext", sealed, "plaintext", plain, "err", err)
	}
	return err
}

// forceClose closes a file whatever its users: the kernel has forgotten it, or the mount is gone.
func (f *FS) forceClose(n *node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.given = 0
	if n.open != nil {
		n.open.refs = 0
	}
	_ = f.closeUnused(n)
}

// withOpen calls fn with the content of n if somebody has it open; open says whether. It is opened for deferred openers, because it may lose its name.
func (f *FS) withOpen(n *node, fn func(o *openFile) error) (open bool, err error) {
	_, _ = f.opened(n) // if that fails, there still is the name
	return f.withOpenNow(n, fn)
}

// withOpenNow is withOpen for callers whom the kernel keeps its names for, and who may hold renames.
func (f *FS) withOpenNow(n *node, fn func(o *openFile) error) (open bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open == nil {
		return false, nil
	}
	return true, fn(n.open)
}

// using calls fn with the content of n, opened for the purpose if need be.
func (f *FS) using(cancel <-chan struct{}, n *node, write bool, fn func(o *openFile) error) error {
	o, err := f.acquire(interrupt(cancel), n, write)
	if err != nil {
		return err
	}
	err = fn(o)
	if released := f.release(n); err == nil {
		err = released
	}
	return err
}

// openNode opens the ciphertext file of n, reads its header and checks it. renames and n.mu are held.
//
// A file is opened for writing whenever possible, so that a later writer can share the descriptor.
func (f *FS) openNode(open opener, n *node, write bool) (*openFile, error) {
	if n.kind != unix.DT_REG {
		return nil, unix.EINVAL
	}
	var fd int
	writable := !f.readOnly
	err := f.resolve(n, func(d *dir, e names.Entry) (err error) {
		if writable {
			fd, err = cipherdir.OpenFd(d.fd, e.Disk, unix.O_RDWR)
			if err == nil || write || !refused(err) {
				return err
			}
			writable = false
		}
		fd, err = cipherdir.OpenFd(d.fd, e.Disk, unix.O_RDONLY)
		return err
	})
	if err != nil {
		return nil, err
	}
	return f.openOn(open, n, fd, writable)
}

// refused reports whether an open for writing failed in a way that one for reading may not.
func refused(err error) bool {
	return err == unix.EACCES || err == unix.EPERM || err == unix.EROFS || err == unix.ETXTBSY
}

// openOn makes the content of n over its descriptor, which it takes over.
func (f *FS) openOn(open opener, n *node, fd int, writable bool) (*openFile, error) {
	file, err := f.journal.Open(fd, n.key(), writable, func() string { return f.diskPath(n) })
	if err != nil {
		return nil, err
	}
	supply := f.vol.Supply()
	data, err := f.plaintext(open, file, supply)
	if f.journal.Suspect(file.Fd()) {
		data, err = f.examine(n, file, supply, data, err)
	}
	if err != nil {
		return nil, errors.Join(err, file.Release())
	}
	return &openFile{fd: file.Fd(), file: file, data: data, supply: supply}, nil
}

// prepare is called before a change that may give a file its first bytes. Where every file has a data key of its own, CMKs make and wrap one, which no lock must wait for. A signal does not cut that
// short: programs do not expect EINTR from a write to a file, and the calls end by themselves.
func (o *openFile) prepare() error {
	if !o.supply.Asks() || o.data.Size() > 0 {
		return nil
	}
	return o.supply.Ready(context.Background())
}

// plaintext reads the header of a ciphertext file, if it has one, and checks it.
func (f *FS) plaintext(open opener, file *journal.File, supply *volume.Supply) (*blockcrypt.File, error) {
	size, err := file.Size()
	if err != nil {
		return nil, err
	}
	var c *blockcrypt.Cipher
	if size > 0 {
		buf := f.buffers.Get().(*[bufferSize]byte)
		defer f.buffers.Put(buf)
		raw := buf[:f.vol.Header().Size]
		m, err := file.ReadAt(raw, 0)
		if err != nil && err != io.EOF {
			return nil, err
		}
		if c, err = open(raw[:m]); err != nil {
			return nil, err
		}
	}
	return blockcrypt.Open(file, f.layout, c, supply.NewFile)
}

// upgrade reopens a file that was opened for reading only, now for writing as well. n.mu is held.
func (f *FS) upgrade(n *node) error {
	if f.readOnly {
		return unix.EROFS
	}
	fd, err := unix.Open(procPath(n.open.fd, ""), unix.O_RDWR|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	// The descriptor number stays, so that requests under way are not disturbed.
	err = unix.Dup3(fd, n.open.fd, unix.O_CLOEXEC)
	unix.Close(fd)
	if err == nil {
		n.open.file.SetWritable()
	}
	return err
}

// Release implements [fuse.RawFileSystem].
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	switch n := f.nodes.get(in.NodeId); {
	case n == nil:
	case in.Fh&deferred != 0:
		f.releaseDeferred(n)
	default:
		f.release(n)
	}
}
