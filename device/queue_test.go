package device

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNoRings has no descriptor for a ring, or none for the last one: requests are read, and nothing is left of what was there.
func TestNoRings(t *testing.T) {
	all, err := processors("possible")
	if err != nil {
		t.Fatal(err)
	}
	for _, few := range []int{0, all - 1} {
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

// TestNoMoreRings has no descriptor for one more worker: requests wait for those that are held, and are answered then. That is said once.
func TestNoMoreRings(t *testing.T) {
	s := onRings(t)
	if s == nil {
		return
	}
	cpu := processor(t)
	was := leave(t, 0)
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}()
	var results []<-chan error
	for i := range 20 { // there are only a few workers yet
		results = append(results, s.look(cpu, fmt.Sprint("hold", i)))
	}
	deadline := time.Now().Add(patient)
	for q := s.conn.queues[cpu]; q.free.Load() > 0 || q.recruiting.Load(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("there are enough workers")
		}
	}
	for i := range 20 {
		results = append(results, s.look(cpu, fmt.Sprint("name", i)))
	}
	s.release()
	for i, result := range results {
		s.missing(result, fmt.Sprint("request ", i))
	}
	s.end()
	if n := strings.Count(s.log.String(), "no more workers"); n != 1 {
		t.Errorf("said %d times", n)
	}
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
	offer(t, true, func() {
		if err := within(t, onProcessor(processor(t), func() error {
			w, err := newRingWorker(&queue{cpu: 1000})
			if err == nil {
				w.free()
			}
			return err
		}), "a worker"); err != nil {
			t.Error(err)
		}
	})
}
