package device

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/device/devicetest"
)

// What the kernel asks.
const (
	opLookup      = 1
	opForget      = 2
	opGetAttr     = 3
	opReadLink    = 5
	opSymlink     = 6
	opOpen        = 14
	opWrite       = 16
	opRelease     = 18
	opSetXattr    = 21
	opGetXattr    = 22
	opFlush       = 25
	opInit        = 26
	opBatchForget = 42
)

// Nodes.
const (
	root = 1
	file = 2
	link = 3
)

// A served file system is answered by this process. It has a file, by any name file…, and a symbolic link; any other name is looked up in vain, and tells when that is answered: hold… when the test lets it go, stop… when it is
// interrupted, then… at once, but something is left to do until the test lets it go, and anything else at once.
type served struct {
	t      *testing.T
	dir    string
	conn   *Conn
	kernel Kernel
	log    bytes.Buffer  // read it only after end
	done   chan struct{} // closed when Serve has returned
	held   chan string   // names that are being held
	let    chan struct{} // closed to let them go
	init   func()        // called before the first answer, unless nil
	watch  int           // inotify(7)

	mu      sync.Mutex
	asked   map[uint64]chan struct{} // requests under way, closed when interrupted
	content []byte                   // of the file
	target  []byte                   // of the link
	value   []byte                   // of the file's attribute
}

// mount mounts one. Before says what happens before the first request is looked at, init what does before the kernel gets the answer to it, unless nil. Nothing else is answered before serve.
func mount(t *testing.T, before, init func()) *served {
	t.Helper()
	s := &served{t: t, dir: t.TempDir(), done: make(chan struct{}), held: make(chan string, 100), let: make(chan struct{}), init: init, asked: make(map[uint64]chan struct{})}
	var err error
	s.conn, err = Mount(s.dir, Options{Type: "served", Source: "served", Rings: true, Files: func() []uint64 { return []uint64{file} }, Logger: slog.New(slog.NewTextHandler(&s.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before()
	}
	if s.kernel, err = s.conn.Init(s.handle); err != nil {
		s.detach()
		t.Fatal(err)
	}
	return s
}

func (s *served) serve() {
	go func() {
		defer close(s.done)
		s.conn.Serve()
	}()
	s.t.Cleanup(s.end)
	// A watch keeps the file in the kernel, and does not keep the mount from being taken away.
	var err error
	if s.watch, err = unix.InotifyInit1(unix.IN_CLOEXEC); err != nil {
		s.t.Fatal(err)
	}
	if err := within(s.t, onProcessor(processor(s.t), func() error {
		_, err := unix.InotifyAddWatch(s.watch, filepath.Join(s.dir, "file"), unix.IN_DELETE_SELF)
		return err
	}), "the file"); err != nil {
		s.t.Fatal(err)
	}
}

// detach takes the mount away whoever uses it, and has the kernel refuse what is asked there.
func (s *served) detach() { _ = unix.Unmount(s.dir, unix.MNT_FORCE|unix.MNT_DETACH) }

// end ends it all, once.
func (s *served) end() {
	if s.conn == nil {
		return
	}
	s.release()
	s.detach()
	<-s.done
	s.conn.Close()
	unix.Close(s.watch)
	s.conn = nil
	if s.log.Len() > 0 {
		s.t.Logf("%s", &s.log)
	}
}

// release lets go what is held.
func (s *served) release() {
	select {
	case <-s.let:
	default:
		close(s.let)
	}
}

func (s *served) handle(in, out [][]byte) (n int, then func()) {
	request, answer := in[0], out[0]
	code, node := Asks(request)
	unique := *uint64At(request, 8)
	body := request[inHeaderSize:]
	reply := func(errno unix.Errno, size int) int {
		*uint32At(answer, 0), *uint32At(answer, 4), *uint64At(answer, 8) = uint32(outHeaderSize+size), uint32(-int32(errno)), unique
		return outHeaderSize + size
	}
	if code == opInterrupt {
		s.mu.Lock()
		defer s.mu.Unlock()
		stopped := s.asked[*uint64At(body, 0)]
		if stopped == nil {
			return reply(unix.EAGAIN, 0), nil
		}
		select {
		case <-stopped:
		default:
			close(stopped)
		}
		return 0, nil
	}
	stopped := make(chan struct{})
	s.mu.Lock()
	s.asked[unique] = stopped
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.asked, unique)
		s.mu.Unlock()
	}()

	a := answer[outHeaderSize:]
	switch code {
	case opInit:
		if s.init != nil {
			s.init()
		}
		const asyncRead, bigWrites, parallelDirOps, maxPages = 1 << 0, 1 << 5, 1 << 18, 1 << 22
		clear(a[:64])
		*uint32At(a, 0), *uint32At(a, 4), *uint32At(a, 8) = 7, 36, MaxRequest
		*uint32At(a, 12) = asyncRead | bigWrites | parallelDirOps | maxPages
		*uint32At(a, 20), *uint32At(a, 24), *uint32At(a, 28) = MaxRequest, 1, MaxRequest/page
		return reply(0, 64), nil
	case opForget, opBatchForget:
		return 0, nil
	case opGetAttr:
		clear(a[:16])
		putAttr(a[16:], node)
		return reply(0, 104), nil
	case opLookup:
		switch name, _, _ := bytes.Cut(body, []byte{0}); {
		case bytes.HasPrefix(name, []byte("file")):
			return reply(0, putEntry(a, file)), nil
		case string(name) == "link":
			return reply(0, putEntry(a, link)), nil
		case bytes.HasPrefix(name, []byte("hold")):
			s.held <- string(name)
			<-s.let
		case bytes.HasPrefix(name, []byte("stop")):
			s.held <- string(name)
			<-stopped
			return reply(unix.EINTR, 0), nil
		case bytes.HasPrefix(name, []byte("then")):
			name := string(name)
			return reply(unix.ENOENT, 0), func() {
				s.held <- name
				<-s.let
			}
		}
		return reply(unix.ENOENT, 0), nil
	case opOpen:
		const direct = 1 << 0
		clear(a[:16])
		*uint32At(a, 8) = direct
		return reply(0, 16), nil
	case opRead:
		off, size := int(*uint64At(body, 8)), int(*uint32At(body, 16))
		s.mu.Lock()
		defer s.mu.Unlock()
		return reply(0, copy(a[:size], s.content[min(off, len(s.content)):])), nil
	case opWrite:
		off, size := int(*uint64At(body, 8)), int(*uint32At(body, 16))
		s.mu.Lock()
		defer s.mu.Unlock()
		if grow := off + size - len(s.content); grow > 0 {
			s.content = append(s.content, make([]byte, grow)...)
		}
		copy(s.content[off:], body[writeInSize-inHeaderSize:][:size])
		*uint64At(a, 0) = uint64(size)
		return reply(0, 8), nil
	case opSymlink:
		_, target, _ := bytes.Cut(body, []byte{0})
		s.target = bytes.Clone(target[:len(target)-1])
		return reply(0, putEntry(a, link)), nil
	case opReadLink:
		return reply(0, copy(a, s.target)), nil
	case opSetXattr:
		_, value, _ := bytes.Cut(body[8:], []byte{0})
		s.value = bytes.Clone(value[:*uint32At(body, 0)])
		return reply(0, 0), nil
	case opGetXattr:
		return reply(0, copy(a[:*uint32At(body, 0)], s.value)), nil
	case opFlush, opRelease:
		return reply(0, 0), nil
	}
	return reply(unix.ENOSYS, 0), nil
}

// putAttr writes a node's attributes, of 88 bytes.
func putAttr(b []byte, node uint64) {
	clear(b[:88])
	mode := map[uint64]uint32{root: unix.S_IFDIR | 0o755, file: unix.S_IFREG | 0o644, link: unix.S_IFLNK | 0o777}[node]
	*uint64At(b, 0), *uint64At(b, 8), *uint32At(b, 60), *uint32At(b, 64) = node, 1<<30, mode, 1
}

// putEntry writes what answers a lookup, which the kernel does not keep.
func putEntry(b []byte, node uint64) (size int) {
	clear(b[:40])
	*uint64At(b, 0) = node
	putAttr(b[40:], node)
	return 128
}

// patient is how long is waited for what must come.
const patient = 2 * time.Minute

// offer has the kernel offer rings, or not, while something is done. It reports whether this kernel can, and whether we may use all processors. Other tests do likewise, one at a time.
func offer(t *testing.T, on bool, do func()) bool {
	t.Helper()
	if _, err := queues(); err != nil {
		t.Log(err)
		return false
	}
	if !devicetest.Mended() {
		t.Log("this kernel's rings have faults that could bring the machine down")
		return false
	}
	f, err := os.OpenFile(devicetest.Setting, os.O_RDWR, 0)
	if err != nil {
		t.Logf("this kernel has no rings to offer: %v", err)
		return false
	}
	defer f.Close()
	err = within(t, onProcessor(processor(t), func() error {
		r, err := newRing()
		if err == nil {
			r.close()
		}
		return err
	}), "a ring")
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSYS) { // as in most containers
		t.Logf("io_uring is not for us: %v", err)
		return false
	} else if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	was, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	defer setOffer(t, strings.TrimSpace(string(was)))
	setOffer(t, map[bool]string{true: "Y", false: "N"}[on])
	do()
	return true
}

func setOffer(t *testing.T, value string) {
	if err := os.WriteFile(devicetest.Setting, []byte(value), 0); err != nil {
		t.Errorf("the kernel does not take %s: %v", value, err)
	}
}

// onRings returns one whose requests come over rings, nil if this kernel has none, or we may not use all processors. Once the first answer is there, the kernel does not look at its parameter again.
func onRings(t *testing.T) *served {
	t.Helper()
	const tries = 20 // others, which do not ask us, may have the kernel offer no rings at the wrong moment
	for range tries {
		var s *served
		if !offer(t, true, func() { s = mount(t, nil, nil) }) {
			return nil
		}
		s.serve()
		if s.kernel.Rings && s.overRings() {
			return s
		}
		s.end()
	}
	t.Fatal("no request comes over a ring")
	return nil
}

// processor returns one on which we may run.
func processor(t *testing.T) int {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	for cpu := range maxQueues {
		if all.IsSet(cpu) {
			return cpu
		}
	}
	t.Fatal("there is no processor")
	return 0
}

// onProcessor does something on a thread that is bound to a processor, and returns what becomes of it.
func onProcessor(cpu int, do func() error) <-chan error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			result <- err
			return
		}
		result <- do()
	}()
	return result
}

// look looks a name up on a processor.
func (s *served) look(cpu int, name string) <-chan error {
	path := filepath.Join(s.dir, name)
	return onProcessor(cpu, func() error {
		var st unix.Stat_t
		return unix.Stat(path, &st)
	})
}

// within waits for something that must come, but not for ever: the kernel would wait for us.
func within[T any](t *testing.T, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patient):
		t.Fatalf("%s: nothing happens", what)
	}
	return v
}

// overRings has some names looked up, and reports whether nothing of that was read from the device.
func (s *served) overRings() bool {
	s.t.Helper()
	const several = 50
	before := s.conn.taken.Load()
	for i := range several {
		s.missing(s.look(processor(s.t), fmt.Sprint("name", i)), "a lookup")
	}
	read := s.conn.taken.Load() - before
	if read != 0 && read < several {
		s.t.Errorf("%d of %d requests were read from the device", read, several)
	}
	return read == 0
}

// missingHeld lets go what is held, and waits for the end of those lookups.
func (s *served) missingHeld(held []<-chan error) {
	s.t.Helper()
	s.release()
	for _, result := range held {
		s.missing(result, "a request that was held")
	}
}

// missing waits for the end of a lookup in vain.
func (s *served) missing(result <-chan error, what string) {
	s.t.Helper()
	if err := within(s.t, result, what); err != unix.ENOENT {
		s.t.Errorf("%s: %v", what, err)
	}
}
