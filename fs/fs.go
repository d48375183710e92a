// Package fs serves a volume as a FUSE tree of plaintext.
//
// It speaks go-fuse's raw protocol: every request names an inode by a number that this package gave out. The tree of known
// inodes is in [table]; directories are held open and addressed with *at calls that never follow a symbolic link ([dirs]); the
// content of an open file is a [blockcrypt.File] over its one descriptor ([node.open]).
//
// The mount is the volume's only writer (its lock says so), so the kernel may keep attributes, entries, absent entries, symbolic
// links, directory listings and data for as long as it likes.
//
// Lock order: FS.renames, then listing.mu of a listing that is in use, then node.mu, then those of blockcrypt and journal, then table.mu, dirs.mu or listings.mu. None of the last three is held over a
// system call.
package fs

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/device"
	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/names"
	"github.com/kmsfs/kmsfs/volume"
)

const (
	// maxBackground is how many asynchronous requests (read-ahead, direct I/O) the kernel keeps in flight.
	maxBackground = 64
	// lifetime is how long the kernel may keep attributes and entries: the mount is the only writer.
	lifetime = 24 * time.Hour
	// flushesMinor is the protocol of Linux 6.16, see FS.flushes. Earlier kernels write pages later than they tell.
	flushesMinor = 44
)

// Config says what to serve and how. The zero value of all fields but Volume is useful.
type Config struct {
	Volume     *volume.Volume // unlocked and locked
	AllowOther bool           // let users other than the one who mounts in; the kernel checks permissions
	ReadOnly   bool           // refuse every change
	// StorageReadOnly says that the ciphertext cannot be written to, so that nothing may be left to replay; ReadOnly must be set, too.
	StorageReadOnly bool
	Options         []string     // mount options as the kernel spells them, such as "suid" or "noexec"; nosuid,nodev is the default
	NoRings         bool         // read requests from the FUSE device, even where the kernel offers them over io_uring(7)
	Logger          *slog.Logger // default: slog.Default()
}

// A Server is a mounted volume.
type Server struct {
	fs     *FS
	served chan struct{} // closed when every request has been answered
}

// FS answers the kernel's requests; it implements [fuse.RawFileSystem].
type FS struct {
	fuse.RawFileSystem // answers what is not implemented here with ENOSYS

	vol      *volume.Volume
	names    *names.Keys
	plain    bool // names are stored as they are
	layout   blockcrypt.Layout
	readOnly bool
	chown    bool // new entries can be given to their caller
	log      *slog.Logger

	journal  *journal.Journal
	nodes    table
	dirs     dirs
	listings listings

	kernel    *device.Conn
	opensDirs bool // the kernel can open directories without asking; set, as are the next two, before any request but the first
	tellsACL  bool // the kernel says of a new ACL whether it takes the set-group-ID bit away; without that, other bytes are where it would
	flushes   bool // the kernel puts what was changed through mappings in place before a write past the page cache, and waits for that when it is told to drop it
	rings     bool // requests come over io_uring

	buffers sync.Pool // of *[bufferSize]byte

	stopped atomic.Bool // files' contents are not to be had, see Server.Stop

	// renames keeps paths still while a request resolves one: held for reading by whatever turns an inode into a
	// directory and a name, for writing by rename.
	renames sync.RWMutex
}

// Mount mounts the volume at mountpoint and starts to serve it; it returns when the kernel has the mount.
func Mount(mountpoint string, c Config) (*Server, error) {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	layout, err := c.Volume.Layout()
	if err != nil {
		return nil, err
	}
	// Modes come from the kernel with the caller's umask beside them, see FS.mode.
	unix.Umask(0)
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		vol:           c.Volume,
		names:         c.Volume.Names(),
		plain:         c.Volume.Header().PlaintextNames,
		layout:        layout,
		readOnly:      c.ReadOnly,
		chown:         os.Geteuid() == 0,
		log:           c.Logger,
	}
	f.buffers.New = func() any { return new([bufferSize]byte) }
	if err := f.openRoot(); err != nil {
		return nil, err
	}
	f.journal, err = journal.Open(c.Volume.RootFd(), c.Volume.MetaFd(), journal.Options{ReadOnly: c.StorageReadOnly, Logger: c.Logger})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Volume.Dir(), err)
	}
	if err := f.mount(mountpoint, c); err != nil {
		f.close()
		return nil, err
	}
	s := &Server{f, make(chan struct{})}
	go func() {
		defer close(s.served)
		f.kernel.Serve()
	}()
	f.readAheadPages(mountpoint)
	return s, nil
}

// mount mounts f and answers the kernel's first request.
func (f *FS) mount(mountpoint string, c Config) (err error) {
	options := append([]string{"default_permissions"}, c.Options...)
	if c.AllowOther {
		options = append(options, "allow_other")
	}
	if c.ReadOnly {
		options = append(options, "ro")
	}
	f.kernel, err = device.Mount(mountpoint, device.Options{Type: "kmsfs", Source: c.Volume.Dir(), Options: options, Rings: !c.NoRings, Files: f.nodes.files, Logger: c.Logger})
	if err != nil {
		return err
	}
	protocol := fuse.NewProtocolServer(f, &fuse.MountOptions{
		MaxBackground:            maxBackground,
		MaxWrite:                 device.MaxRequest,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		EnableAcl:                true,
		ExtraCapabilities:        fuse.CAP_DONT_MASK | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_SETXATTR_EXT,
		PanicHandler:             f.panicked,
		Logger:                   log.New(logWriter{c.Logger}, "", 0),
	})
	kernel, err := f.kernel.Init(func(in, out [][]byte) (int, func()) {
		n, _ := protocol.HandleRequest(in, out)
		return n, f.afterwards(in[0])
	})
	if err != nil {
		_ = f.kernel.Unmount()
		return fmt.Errorf("mount %s: the kernel's FUSE did not answer: %w", mountpoint, err)
	}
	f.opensDirs = kernel.Capabilities&fuse.CAP_NO_OPENDIR_SUPPORT != 0
	f.tellsACL = kernel.Capabilities&fuse.CAP_SETXATTR_EXT != 0
	f.flushes = kernel.Minor >= flushesMinor
	f.rings = kernel.Rings
	// Each worker of the device goes on at once if it kept its P while it waited for a request. Were there more of them than Ps, one would sleep until the scheduler's monitor
	// has taken a P from another. The last P is for everything else.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 2)
	return nil
}

// Wait returns when the volume is no longer mounted and every request has been answered. Then Close must be called.
func (s *Server) Wait() { <-s.served }

// Close puts in place what is not yet. Nobody may use the journal any more.
func (s *Server) Close() { s.fs.close() }

// Journal returns the journal through which ciphertext files are changed while the volume is mounted.
func (s *Server) Journal() *journal.Journal { return s.fs.journal }

// Rings reports whether the kernel was told that requests may come over io_uring(7).
func (s *Server) Rings() bool { return s.fs.rings }

// Unmount takes the mount away; it fails while the mount is in use.
func (s *Server) Unmount() error { return s.fs.kernel.Unmount() }

// close gives back what is still open: nothing, unless the connection was cut.
func (f *FS) close() {
	f.nodes.each(func(n *node) { f.forceClose(n) })
	if err := f.journal.Close(); err != nil {
		f.log.Error("cannot put all changes in place; the next mount will", "volume", f.vol.Dir(), "err", err)
	}
	f.listings.drop(nil)
	f.dirs.closeAll()
	if f.kernel != nil {
		f.kernel.Close()
	}
}

// Codes of requests, which go-fuse keeps to itself.
const (
	opReadDir     = 28
	opReadDirPlus = 44
)

// afterwards returns what is to be done once a request has been answered, nil for nothing.
func (f *FS) afterwards(request []byte) func() {
	code, node := device.Asks(request)
	if code != opReadDir && code != opReadDirPlus {
		return nil
	}
	l := f.listings.long(node)
	if l == nil {
		return nil
	}
	return func() {
		defer f.recovered()
		f.readAhead(l)
	}
}

// String names the file system in go-fuse's messages.
func (f *FS) String() string { return "kmsfs" }

// readAheadPages asks the kernel to read ahead a whole request at a time: its default is an eighth of that. It needs root; without, reads
// are merely smaller.
func (f *FS) readAheadPages(mountpoint string) {
	// The list of mounts tells the device without a request to this process. The mount may lie over others, and is the last one of ours.
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.Mountpoint != mountpoint || i.FSType != "fuse.kmsfs", false
	})
	if err != nil || len(infos) == 0 {
		return
	}
	m := infos[len(infos)-1]
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", m.Major, m.Minor)
	_ = os.WriteFile(path, []byte(fmt.Sprint(device.MaxRequest>>10)), 0)
}

// panicked turns a bug of ours into one failed request.
func (f *FS) panicked(v any) fuse.Status {
	f.log.Error("internal error: panic in a request", "panic", v, "stack", stack())
	return fuse.EIO
}

// recovered is to be deferred: after the answer, there is no request that a bug could fail.
func (f *FS) recovered() {
	if v := recover(); v != nil {
		f.log.Error("internal error: panic after a request", "panic", v, "stack", stack())
	}
}

// logWriter hands go-fuse's own messages to the log.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	w.log.Warn("fuse: " + strings.TrimSpace(string(b)))
	return len(b), nil
}

// interrupt is a context that ends when the kernel interrupts the request whose channel it is.
type interrupt <-chan struct{}

// Deadline implements [context.Context].
func (interrupt) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements [context.Context].
func (c interrupt) Done() <-chan struct{} { return c }

// Err implements [context.Context].
func (c interrupt) Err() error {
	select {
	case <-c:
		return context.Canceled
	default:
		return nil
	}
}

// Value implements [context.Context].
func (interrupt) Value(any) any { return nil }
