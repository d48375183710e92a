package device

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

// A served is a file system, answered by this process, with a file and a symbolic link. Any other name is looked up in vain, and tells when that is answered: hold… when the test lets it go, stop… when it is interrupted, then… at once, but
// something is left to do until the test lets it go, and anything else at once.
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
		case string(name) == "file":
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

const parameter = "/sys/module/fuse/parameters/enable_uring"

// offer has the kernel offer rings, or not, while something is done. It reports whether this kernel can. Other tests do likewise, one at a time.
func offer(t *testing.T, on bool, do func()) bool {
	t.Helper()
	f, err := os.OpenFile(parameter, os.O_RDWR, 0)
	if err != nil {
		t.Logf("this kernel has no rings to offer: %v", err)
		return false
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	was, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	defer setParameter(t, strings.TrimSpace(string(was)))
	setParameter(t, map[bool]string{true: "Y", false: "N"}[on])
	do()
	return true
}

func setParameter(t *testing.T, value string) {
	if err := os.WriteFile(parameter, []byte(value), 0); err != nil {
		t.Errorf("the kernel does not take %s: %v", value, err)
	}
}

// onRings returns one whose requests come over rings, nil if this kernel has none, or we may not use all processors. Once the first answer is there, the kernel does not look at its parameter again.
func onRings(t *testing.T) *served {
	t.Helper()
	if _, err := queues(); err != nil {
		t.Log(err)
		return nil
	}
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

// missing waits for the end of a lookup in vain.
func (s *served) missing(result <-chan error, what string) {
	s.t.Helper()
	if err := within(s.t, result, what); err != unix.ENOENT {
		s.t.Errorf("%s: %v", what, err)
	}
}

// TestRings has requests answered over rings, on each processor, and the mount taken away when it is idle.
func TestRings(t *testing.T) {
	s := onRings(t)
	if s == nil {
		return
	}
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	for cpu, q := range s.conn.queues {
		if all.IsSet(cpu) {
			s.missing(s.look(cpu, "name"), "a lookup")
		}
		if n := q.workers.Load(); n < 1 {
			t.Errorf("processor %d has %d workers", cpu, n)
		}
	}
	if err := s.conn.Unmount(); err != nil {
		t.Fatal(err)
	}
	within(t, s.done, "the end")
	for cpu, q := range s.conn.queues {
		if n, free := q.workers.Load(), q.free.Load(); n != 0 {
			t.Errorf("processor %d still has %d workers, %d of them free", cpu, n, free)
		}
	}
}

// TestOthersGoOnOverRings has many requests of one processor held: others of that processor are answered all the same. So they are while something is done after an answer.
func TestOthersGoOnOverRings(t *testing.T) {
	for _, kind := range []string{"hold", "then"} {
		s := onRings(t)
		if s == nil {
			return
		}
		cpu := processor(t)
		const many = 40
		var results []<-chan error
		for i := range many {
			results = append(results, s.look(cpu, fmt.Sprint(kind, i)))
		}
		for i := range many {
			within(t, s.held, fmt.Sprintf("%s: request %d of %d that are held", kind, i, many))
		}
		for i := range many {
			s.missing(s.look(cpu, fmt.Sprint("name", i)), kind+": a request beside those that are held")
		}
		s.release()
		for i, result := range results {
			s.missing(result, fmt.Sprint(kind, i))
		}
		s.end()
	}
}

// TestCrowdOverRings has many requests of one processor at once, time and again, while the number of those that are held grows: whoever has come late must not leave any of them behind.
func TestCrowdOverRings(t *testing.T) {
	s := onRings(t)
	if s == nil {
		return
	}
	cpu := processor(t)
	var held []<-chan error
	for round := range 25 {
		var results []<-chan error
		for i := range 8 {
			results = append(results, s.look(cpu, fmt.Sprint("name", round, ".", i)))
			if i == 4 {
				held = append(held, s.look(cpu, fmt.Sprint("hold", round)))
			}
		}
		for i, result := range results {
			s.missing(result, fmt.Sprint("request ", i, " of round ", round))
		}
		within(t, s.held, "a request that is held")
	}
	s.release()
	for _, result := range held {
		s.missing(result, "a request that was held")
	}
}

// TestInterruptOverRings has a program interrupted that waits for an answer.
func TestInterruptOverRings(t *testing.T) {
	s := onRings(t)
	if s == nil {
		return
	}
	arrived := make(chan os.Signal, 1)
	signal.Notify(arrived, unix.SIGUSR1)
	defer signal.Stop(arrived)
	threads := make(chan int, 1)
	path := filepath.Join(s.dir, "stop")
	result := onProcessor(processor(t), func() error {
		threads <- unix.Gettid()
		var st unix.Stat_t
		return unix.Stat(path, &st)
	})
	thread := within(t, threads, "a thread")
	within(t, s.held, "a lookup")
	if err := unix.Tgkill(unix.Getpid(), thread, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if err := within(t, result, "a lookup that is interrupted"); err != unix.EINTR {
		t.Errorf("a lookup that is interrupted: %v", err)
	}
	within(t, arrived, "a signal")
	s.missing(s.look(processor(t), "name"), "a lookup afterwards")
}

// TestEndOfRings takes the mount away while requests are held: those that can be are interrupted, and Serve returns when all are done.
func TestEndOfRings(t *testing.T) {
	s := onRings(t)
	if s == nil {
		return
	}
	var results []<-chan error
	for i, name := range []string{"stop1", "stop2", "stop3", "hold", "then"} {
		results = append(results, s.look(processor(t), name))
		within(t, s.held, fmt.Sprint("request ", i))
	}
	s.missing(results[4], "a request with something left to do")
	s.detach()
	for _, result := range results[:4] {
		if err := within(t, result, "a request at the end"); err != unix.ECONNABORTED && err != unix.ENOTCONN {
			t.Errorf("a request at the end: %v", err)
		}
	}
	select {
	case <-s.done:
		t.Error("Serve has returned while requests were held")
	default:
	}
	s.release()
	within(t, s.done, "the end")
	if s.log.Len() > 0 {
		t.Errorf("log: %s", &s.log)
	}
}

// TestRingsRefused has the kernel take rings back when they have been prepared: before it gets the first answer, requests are to be read; after that, it keeps its word.
func TestRingsRefused(t *testing.T) {
	var s *served
	reads := func(what string) {
		if !s.kernel.Rings {
			t.Errorf("%s: nothing was prepared", what)
		}
		s.serve()
		if s.overRings() {
			t.Errorf("%s: requests come over rings", what)
		}
		if err := s.conn.Unmount(); err != nil {
			t.Error(err)
		}
		within(t, s.done, "the end")
		if !strings.Contains(s.log.String(), "takes no workers") {
			t.Errorf("%s: log: %s", what, &s.log)
		}
	}
	if !offer(t, true, func() {
		s = mount(t, nil, func() { setParameter(t, "N") })
		reads("taken back at once")
		setParameter(t, "Y")
		s = mount(t, nil, nil)
		setParameter(t, "N")
		s.serve()
		if !s.kernel.Rings || !s.overRings() {
			t.Error("taken back too late: requests do not come over rings")
		}
	}) {
		return
	}
	if offer(t, false, func() { s = mount(t, nil, nil) }); s.kernel.Rings {
		t.Error("rings were prepared that are not offered")
	}
	s.serve()
	if s.overRings() {
		t.Error("requests come over rings that are not offered")
	}
}

// TestOneRingRefused has the kernel refuse the last worker: requests are read then, and the others end with the mount.
func TestOneRingRefused(t *testing.T) {
	var s *served
	if !offer(t, true, func() {
		s = mount(t, nil, nil)
		last := s.conn.queues[len(s.conn.queues)-1]
		last.cpu = len(s.conn.queues)
		s.serve()
		if s.overRings() {
			t.Error("requests come over rings")
		}
	}) {
		return
	}
	if err := s.conn.Unmount(); err != nil {
		t.Error(err)
	}
	within(t, s.done, "the end")
}

// TestNoRings has no descriptor for a ring, or none for the last one: requests are read, and nothing is left of what was there.
func TestNoRings(t *testing.T) {
	all, err := queues()
	if err != nil {
		t.Fatal(err)
	}
	for _, few := range []int{0, len(all) - 1} {
		before := open(t)
		var s *served
		var was unix.Rlimit
		if !offer(t, true, func() {
			s = mount(t, func() { was = leave(t, few) }, nil)
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
				t.Error(err)
			}
		}) {
			return
		}
		if s.kernel.Rings || !strings.Contains(s.log.String(), "cannot be had") {
			t.Errorf("with %d descriptors, rings were prepared; log: %s", few, &s.log)
		}
		s.serve()
		if s.overRings() {
			t.Errorf("with %d descriptors, requests come over rings", few)
		}
		s.end()
		if got := open(t); got != before {
			t.Errorf("open before:\n%s\nafter:\n%s", before, got)
		}
	}
}

// leave lets a number of descriptors be opened, and no more. It returns what the limit was.
func leave(t *testing.T, few int) (was unix.Rlimit) {
	t.Helper()
	first := 0
	for range few + 1 {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, first)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		first = fd + 1
	}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(first - 1), Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	return was
}

// TestCloseWithoutServe gives back what was prepared.
func TestCloseWithoutServe(t *testing.T) {
	before := open(t)
	var s *served
	if !offer(t, true, func() { s = mount(t, nil, nil) }) {
		return
	}
	if !s.kernel.Rings {
		t.Error("nothing was prepared")
	}
	s.conn.Close()
	s.detach()
	if got := open(t); got != before {
		t.Errorf("open before:\n%s\nafter:\n%s", before, got)
	}
	for _, q := range s.conn.queues {
		if n := q.workers.Load(); n != 0 {
			t.Errorf("processor %d still has %d workers", q.cpu, n)
		}
	}
}

// open lists what is open, but for the list itself.
func open(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			fmt.Fprintln(&all, e.Name(), to)
		}
	}
	return all.String()
}

// aligned returns memory that begins at a page, so that a request for all of it is one.
func aligned(t *testing.T, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

// TestPayloads has requests and answers of all lengths, which come whole, whatever came before in the same memory.
func TestPayloads(t *testing.T) {
	s := onRings(t)
	if s == nil {
		return
	}
	whole, got := aligned(t, MaxRequest), aligned(t, MaxRequest)
	for i := range whole {
		whole[i] = byte(i>>12 ^ i>>4 ^ i*7)
	}
	path := filepath.Join(s.dir, "file")
	use := func() error {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, n := range []int{MaxRequest, 1, 4095, 4096, 4097, much - 1, much, MaxRequest - 1, 2, MaxRequest} {
			for _, off := range []int64{0, 4096, 3 << 20} {
				data := whole[MaxRequest-n:]
				if m, err := unix.Pwrite(fd, data, off); m != n || err != nil {
					return fmt.Errorf("write of %d bytes at %d: %d, %w", n, off, m, err)
				}
				s.mu.Lock()
				if !bytes.Equal(s.content[off:][:n], data) {
					t.Errorf("%d bytes that are written at %d do not come whole", n, off)
				}
				s.mu.Unlock()
				clear(got)
				if m, err := unix.Pread(fd, got[:n], off); m != n || err != nil {
					return fmt.Errorf("read of %d bytes at %d: %d, %w", n, off, m, err)
				}
				if !bytes.Equal(got[:n], data) {
					t.Errorf("%d bytes that are read at %d do not come whole", n, off)
				}
			}
		}
		for _, n := range []int{1, 100, 4000, 4076, 4077, 4078, 4096, 5000, 65536, 10} {
			value, got := whole[:n], make([]byte, n+1)
			if err := unix.Fsetxattr(fd, "user.attribute", value, 0); err != nil {
				return fmt.Errorf("attribute of %d bytes: %w", n, err)
			}
			if m, err := unix.Fgetxattr(fd, "user.attribute", got[:min(n+1, 65536)]); err != nil || !bytes.Equal(got[:m], value) {
				return fmt.Errorf("attribute of %d bytes: %d bytes, %w", n, m, err)
			}
		}
		for _, n := range []int{4095, 1, 4090, 4091, 4092, 4093, 4094, 100} {
			target, link := strings.Repeat("t", n-1)+"u", filepath.Join(s.dir, "l")
			if err := unix.Symlink(target, link); err != nil {
				return fmt.Errorf("link of %d bytes: %w", n, err)
			}
			m, err := unix.Readlink(filepath.Join(s.dir, "link"), got[:page])
			if err != nil || string(got[:m]) != target {
				return fmt.Errorf("link of %d bytes: %d bytes, %w", n, m, err)
			}
		}
		return nil
	}
	for range 3 {
		if err := within(t, onProcessor(processor(t), use), "reads and writes"); err != nil {
			t.Error(err)
		}
	}
}

// TestBrokenRings has a worker fail while the file system is mounted: nothing is answered as if it had been done.
func TestBrokenRings(t *testing.T) {
	s := onRings(t)
	if s == nil {
		return
	}
	s.content = []byte("content")
	if err := within(t, onProcessor(processor(t), func() error {
		fd, err := unix.Open(filepath.Join(s.dir, "file"), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		s.conn.end(unix.EINVAL)
		if n, err := unix.Pread(fd, make([]byte, page), 0); err != unix.EIO {
			t.Errorf("a read: %d bytes, %v", n, err)
		}
		if err := unix.Fsetxattr(fd, "user.attribute", nil, 0); err != unix.EIO {
			t.Errorf("an attribute is set: %v", err)
		}
		return nil
	}), "reads and writes"); err != nil {
		t.Error(err)
	}
}

// TestBoundThreads has no thread bound to a processor but workers: whoever they start is not.
func TestBoundThreads(t *testing.T) {
	if s := onRings(t); s != nil {
		defer s.end()
		for i := range 10 {
			s.look(processor(t), fmt.Sprint("then", i))
			within(t, s.held, "something left to do")
		}
		workers := 0
		for _, q := range s.conn.queues {
			workers += int(q.workers.Load())
		}
		deadline := time.Now().Add(patient)
		for boundThreads(t) > workers { // those of who has asked may be about to end
			if time.Now().After(deadline) {
				t.Fatalf("%d threads are bound to a processor, but there are %d workers", boundThreads(t), workers)
			}
			runtime.Gosched()
		}
	}
}

// boundThreads counts the threads that may run on one processor only, but for the first one, which does not end with the goroutine that was locked to it.
func boundThreads(t *testing.T) (n int) {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*")
	if err != nil || len(threads) == 0 {
		t.Fatalf("no threads: %v", err)
	}
	if runtime.NumCPU() == 1 {
		return 0
	}
	for _, thread := range threads {
		status, err := os.ReadFile(filepath.Join(thread, "status"))
		_, list, ok := strings.Cut(string(status), "Cpus_allowed_list:\t")
		if err != nil || !ok || filepath.Base(thread) == fmt.Sprint(unix.Getpid()) {
			continue // it has just ended
		}
		if list, _, _ = strings.Cut(list, "\n"); !strings.ContainsAny(list, "-,") {
			n++
		}
	}
	return n
}

// TestCount has lists of processors.
func TestCount(t *testing.T) {
	for list, want := range map[string]int{"0": 1, "0-3": 4, "0-3,8": 5, "0,2,4-7": 6} {
		if n, err := count(list); n != want || err != nil {
			t.Errorf("%q: %d, %v", list, n, err)
		}
	}
	for _, list := range []string{"", ",", "0,", "a", "0-", "-3", "3-1", "0-a", "0 - 1", "0-3-5", "-9223372036854775808-9223372036854775807"} {
		if n, err := count(list); err == nil {
			t.Errorf("%q: %d", list, n)
		}
	}
}

// TestForeignProcessor has a worker for a processor where it may not run: it runs elsewhere.
func TestForeignProcessor(t *testing.T) {
	if err := within(t, onProcessor(processor(t), func() error {
		w, err := newRingWorker(&queue{cpu: 1000})
		if err == nil {
			w.free()
		}
		return err
	}), "a worker"); err != nil {
		if _, err := os.Stat(parameter); err == nil {
			t.Error(err)
		}
		t.Log(err)
	}
}
