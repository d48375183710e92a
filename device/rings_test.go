package device

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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
	s.missingHeld(held)
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
		if err := within(t, result, "a request at the end"); err != unix.ECONNABORTED && err != unix.ENOTCONN && err != unix.EINTR {
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
		s = mount(t, nil, func() { setOffer(t, "N") })
		reads("taken back at once")
		setOffer(t, "Y")
		s = mount(t, nil, nil)
		setOffer(t, "N")
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
		s.conn.mu.Lock()
		for _, w := range s.conn.busy {
			if w.in == nil {
				t.Error("a worker that gets no requests counts as one that reads them")
			}
		}
		s.conn.mu.Unlock()
	}) {
		return
	}
	if err := s.conn.Unmount(); err != nil {
		t.Error(err)
	}
	within(t, s.done, "the end")
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

// TestMemoryGivenBack has requests wait in the queue of a worker that gives the memory of a large one back: none of theirs is in it.
func TestMemoryGivenBack(t *testing.T) {
	s := onRings(t)
	if s == nil {
		return
	}
	cpu := processor(t)
	q := s.conn.queues[cpu]
	var held []<-chan error
	hold := func() {
		held = append(held, s.look(cpu, fmt.Sprint("hold", len(held))))
		within(t, s.held, "a request that is held")
	}
	for range roomy + 1 {
		hold()
	}
	deadline := time.Now().Add(patient)
	for !q.recruiting.CompareAndSwap(false, true) { // no more workers
		if time.Now().After(deadline) {
			t.Fatal("a worker never comes")
		}
		runtime.Gosched()
	}
	for q.free.Load() > 1 {
		hold()
	}
	path, data := filepath.Join(s.dir, "file"), aligned(t, MaxRequest)
	for range 20 {
		results := []<-chan error{onProcessor(cpu, func() error {
			fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			for range 5 {
				if _, err := unix.Pwrite(fd, data, 0); err != nil {
					return err
				}
			}
			return nil
		})}
		for i := range 30 {
			results = append(results, s.look(cpu, fmt.Sprint("file", i)))
		}
		for i, result := range results {
			if err := within(t, result, "a request"); err != nil {
				t.Errorf("request %d: %v", i, err)
			}
		}
	}
	s.missingHeld(held)
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
