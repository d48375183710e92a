package device

import (
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What the handler of these tests is asked: to answer at once, to do so when the test says so, or to have something to do after the answer until the test says so.
const (
	opAnswer = 1000
	opHold   = 1001
	opThen   = 1002
)

// A kernel is the other side of a Conn, over a socket that keeps the bounds of messages.
type kernel struct {
	t    *testing.T
	fd   int
	conn *Conn
	held chan uint64   // requests that are being held
	let  chan struct{} // closed to let them go
	done chan struct{} // closed when Serve has returned

	early atomic.Int32 // how many more interrupts come before their request

	mu   sync.Mutex
	stop map[uint64]chan struct{} // by request, closed when it is interrupted
}

func newKernel(t *testing.T) *kernel {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(pair[0], true); err != nil {
		t.Fatal(err)
	}
	k := &kernel{t: t, fd: pair[1], held: make(chan uint64, 100), let: make(chan struct{}), done: make(chan struct{}), stop: make(map[uint64]chan struct{})}
	k.conn = &Conn{fd: pair[0], log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	k.conn.stirred = make(chan struct{}, 1)
	k.send(opAnswer, 1)
	if _, err := k.conn.Init(k.handle); err != nil {
		t.Fatal(err)
	}
	if got := k.answer(); got != 1 {
		t.Fatalf("answered %d", got)
	}
	go func() {
		defer close(k.done)
		k.conn.Serve()
	}()
	return k
}

// end takes the connection away and waits for the end of Serve.
func (k *kernel) end() {
	unix.Close(k.fd)
	<-k.done
	k.conn.Close()
}

// stopped returns what is closed when a request is interrupted.
func (k *kernel) stopped(unique uint64) chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stop[unique] == nil {
		k.stop[unique] = make(chan struct{})
	}
	return k.stop[unique]
}

func (k *kernel) handle(in, out [][]byte) (n int, then func()) {
	unique := *uint64At(in[0], 8)
	switch *uint32At(in[0], 4) {
	case opInterrupt:
		if k.early.Add(-1) >= 0 {
			break
		}
		close(k.stopped(*uint64At(in[0], inHeaderSize)))
		return 0, nil
	case opHold:
		stopped := k.stopped(unique)
		k.held <- unique
		select {
		case <-k.let:
		case <-stopped:
		}
	case opThen:
		then = func() {
			k.held <- unique
			<-k.let
		}
	}
	clear(out[0][:outHeaderSize])
	*uint32At(out[0], 0), *uint64At(out[0], 8) = outHeaderSize, unique
	return outHeaderSize, then
}

func (k *kernel) send(op uint32, unique uint64) {
	b := make([]byte, 64)
	*uint32At(b, 0), *uint32At(b, 4), *uint64At(b, 8) = uint32(len(b)), op, unique
	if _, err := unix.Write(k.fd, b); err != nil {
		k.t.Fatal(err)
	}
}

// answer waits for an answer and returns which request it is to.
func (k *kernel) answer() uint64 {
	b := make([]byte, page)
	n, err := unix.Read(k.fd, b)
	if err != nil || n != outHeaderSize || *uint32At(b, 0) != outHeaderSize {
		k.t.Fatalf("answer of %d bytes, %v", n, err)
	}
	return *uint64At(b, 8)
}

// TestServe has requests answered one after the other, and many at once.
func TestServe(t *testing.T) {
	k := newKernel(t)
	defer k.end()
	for i := range uint64(2000) {
		k.send(opAnswer, 2+i)
		if got := k.answer(); got != 2+i {
			t.Fatalf("answered %d, not %d", got, 2+i)
		}
	}
	for round := range uint64(50) {
		missing := make(map[uint64]bool)
		for i := range uint64(100) {
			unique := 10000 + 100*round + i
			missing[unique] = true
			k.send(opAnswer, unique)
		}
		for len(missing) > 0 {
			got := k.answer()
			if !missing[got] {
				t.Fatalf("answered %d, which was not asked, or twice", got)
			}
			delete(missing, got)
		}
	}
}

// TestOthersGoOn has requests answered while others take long, however many those are.
func TestOthersGoOn(t *testing.T) {
	k := newKernel(t)
	defer k.end()
	const slow = 40
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range uint64(slow) {
		k.send(opHold, 100+i)
		<-k.held
		k.send(opAnswer, 1000+i)
		if got := k.answer(); got != 1000+i {
			t.Fatalf("answered %d", got)
		}
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > slow*MaxRequest/2 {
		t.Errorf("%d requests that wait took %d bytes of the heap", slow, got)
	}
	close(k.let)
	seen := make(map[uint64]bool)
	for range slow {
		seen[k.answer()] = true
	}
	if len(seen) != slow {
		t.Errorf("%d requests were answered, not %d", len(seen), slow)
	}
	k.conn.mu.Lock()
	defer k.conn.mu.Unlock()
	if len(k.conn.idle) > keep {
		t.Errorf("%d workers are kept", len(k.conn.idle))
	}
}

// TestStuckRequestsAreNoCrowd has as many requests held as there are processors: for the others, there may be as many workers again.
func TestStuckRequestsAreNoCrowd(t *testing.T) {
	k := newKernel(t)
	defer k.end()
	most := runtime.NumCPU()
	for i := range most {
		k.send(opHold, 100+uint64(i))
		<-k.held
	}
	unique := uint64(1000)
	until := func(stuck int) {
		deadline := time.Now().Add(time.Minute)
		for int(k.conn.stuck.Load()) != stuck {
			if time.Now().After(deadline) {
				t.Fatalf("%d workers count as stuck, not %d", k.conn.stuck.Load(), stuck)
			}
			k.send(opAnswer, unique)
			k.answer()
			unique++
		}
	}
	until(most)
	close(k.let)
	for range most {
		k.answer()
	}
	until(0)
}

// TestAfterwards has something done after an answer, which is not waited for: not by who asked, not by others, but at the end.
func TestAfterwards(t *testing.T) {
	k := newKernel(t)
	k.send(opThen, 100)
	if got := k.answer(); got != 100 {
		t.Fatalf("answered %d", got)
	}
	<-k.held
	for i := range uint64(20) {
		k.send(opAnswer, 200+i)
		if got := k.answer(); got != 200+i {
			t.Fatalf("answered %d", got)
		}
	}
	unix.Close(k.fd)
	for !k.conn.ended.Load() {
		runtime.Gosched()
	}
	select {
	case <-k.done:
		t.Error("Serve has returned while a worker was at work")
	default:
	}
	close(k.let)
	<-k.done
	k.conn.Close()
}

// TestInterruptedAtTheEnd takes the connection away while requests are held: they are interrupted, and Serve returns.
func TestInterruptedAtTheEnd(t *testing.T) {
	k := newKernel(t)
	for i := range uint64(3) {
		k.send(opHold, 100+i)
		<-k.held
	}
	k.early.Store(2)
	k.end()
}

// TestNothingBeginsAfterTheEnd has a worker with a request that it read just before the end, and that nobody would interrupt any more.
func TestNothingBeginsAfterTheEnd(t *testing.T) {
	k := newKernel(t)
	k.end()
	w, err := newWorker()
	if err != nil {
		t.Fatal(err)
	}
	defer w.free()
	*uint32At(w.in[0], 0), *uint32At(w.in[0], 4), *uint64At(w.in[0], 8) = 64, opHold, 100
	k.conn.answer(w, 64)
	if len(k.held) > 0 || w.unique.Load() != 0 {
		t.Error("the request was handled")
	}
}

// TestFlags has the options that are bits of mount(2).
func TestFlags(t *testing.T) {
	for option, want := range map[string]struct {
		bit uintptr
		set bool
	}{
		"ro": {unix.MS_RDONLY, true}, "rw": {unix.MS_RDONLY, false}, "suid": {unix.MS_NOSUID, false}, "nosuid": {unix.MS_NOSUID, true}, "dev": {unix.MS_NODEV, false},
		"nodev": {unix.MS_NODEV, true}, "exec": {unix.MS_NOEXEC, false}, "noexec": {unix.MS_NOEXEC, true},
	} {
		if bit, set, ok := flag(option); !ok || bit != want.bit || set != want.set {
			t.Errorf("%s: %#x, %v, %v", option, bit, set, ok)
		}
	}
	for _, option := range []string{"allow_other", "default_permissions", "no", ""} {
		if _, _, ok := flag(option); ok {
			t.Errorf("%q is a bit", option)
		}
	}
}
