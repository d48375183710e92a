package device

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// spinFor is how long whoever waits looks for the next request before it sleeps: longer than a program that does one thing after the other takes
	// between two of them, shorter than what a time slice is worth.
	spinFor = 50 * time.Microsecond
	// long is when answers take long, on average: somebody else had better wait for requests meanwhile.
	long = 100 * time.Microsecond
	// crowd is how often in a row several requests are there at once before there is one more to answer them, up to one for each processor beside those that are stuck. One program alone may have two: the
	// release of a file, which it does not wait for, and its next request.
	crowd = 4
	// tick is how often it is looked whether requests wait while everybody is busy.
	tick = 2 * time.Millisecond
	// idleTicks is after how many ticks without a request that ends.
	idleTicks = 10
	// keep is how many workers that have nothing to do are kept, with their buffers.
	keep = 4
	// maxDoubt and retry say when it is not worthwhile to look for the next request: once that was in vain maxDoubt times more than not, but for every retry-th time.
	maxDoubt = 4
	retry    = 32
)

// A Handler answers the request in and returns how long its answer, which it has written to out, is; 0 if there is to be none. Both are one
// buffer each, and good until it returns. What it returns beside, if that is not nil, is called once the answer has been written: what can be done while whoever asked goes on.
type Handler func(in, out [][]byte) (n int, then func())

// serving is what Serve keeps in mind.
//
// At most one worker waits for requests at a time, be it that it looks for one all the time or that it sleeps: more would be woken in vain. While nobody waits, as
// everybody is busy, a request may wait for its turn; the watch sees to it that it does not for long.
type serving struct {
	handle  Handler
	working sync.WaitGroup
	waiting atomic.Bool   // somebody waits
	taken   atomic.Uint64 // requests so far
	running atomic.Int32  // workers
	stuck   atomic.Int32  // of them, those that have had the same request for a tick
	ended   atomic.Bool   // the mount is gone
	doubt   atomic.Int32  // how much more often it was looked for the next request in vain, of late
	sleeps  atomic.Uint64 // how often somebody was about to sleep

	dozing  atomic.Bool   // the watch waits for stirred
	stirred chan struct{} // of capacity 1: somebody has taken a request

	rings  bool // requests may come over io_uring
	files  func() []uint64
	asks   atomic.Uint64 // see ask
	queues []*queue      // nil unless they do
	leave  chan struct{} // closed when the workers of queues may begin
	short  atomic.Bool   // that there are too few of them has been said

	mu   sync.Mutex
	busy []*worker // all that run; guarded by mu
	idle []*worker // guarded by mu
}

// A worker answers requests, one at a time.
type worker struct {
	memory  []byte // of in and out
	in, out [][]byte
	unique  atomic.Uint64 // of the request that it answers, 0 if none
	seen    uint64        // what unique was at the last tick; guarded by serving.mu
	usual   time.Duration // how long its answers take, of late
}

// Layout of what the kernel sends: the header of a request is its length (4 bytes), what it asks (4), a number of its own (8), the node (8), user, group and process
// (12), and a length of extensions (4); that of an answer its length, an error and the number of the request.
const (
	inHeaderSize  = 40
	outHeaderSize = 16
	writeInSize   = 80 // what comes before the data of a write
	page          = 4096
)

// Asks returns what a request asks, by the kernel's code, and of which node.
func Asks(request []byte) (code uint32, node uint64) {
	return *uint32At(request, 4), *uint64At(request, 16)
}

// opInterrupt is what the kernel asks when a request is to be interrupted.
const opInterrupt = 36

// newWorker returns a worker that must be freed. Its memory is not the heap's: there may be as many workers as requests wait for something slow, nearly all of which are short. A
// page that is not touched takes nothing here, and need not be cleared.
func newWorker() (*worker, error) {
	const inSize = MaxRequest + 2*page
	memory, err := unix.Mmap(-1, 0, inSize+MaxRequest+page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("memory for requests: %w", err)
	}
	// Data of a write is at the beginning of a page; so is that of a read, nearly.
	return &worker{memory: memory, in: [][]byte{memory[page-writeInSize : inSize]}, out: [][]byte{memory[inSize:]}}, nil
}

func (w *worker) free() { _ = unix.Munmap(w.memory) }

// A Kernel is what the kernel says of itself.
type Kernel struct {
	Minor        uint32 // version of the protocol, of which the major one is 7
	Capabilities uint64
	Rings        bool // requests will come over io_uring
}

// Init answers the first request, by which the kernel makes itself known. Handle is for all requests.
func (c *Conn) Init(handle Handler) (k Kernel, err error) {
	c.handle = handle
	w, err := newWorker()
	if err != nil {
		return k, err
	}
	c.idle = append(c.idle, w)
	n, err := c.sleep(w)
	if err != nil {
		return k, err
	}
	field := func(i int) uint32 { return *uint32At(w.in[0], inHeaderSize+4*i) } // major, minor, read-ahead, and two of capabilities
	k = Kernel{Minor: field(1), Capabilities: uint64(field(3)) | uint64(field(4))<<32}
	if c.rings && k.Capabilities&canRings != 0 && c.enlist() {
		k.Rings = true
		c.handle = func(in, out [][]byte) (int, func()) {
			n, then := handle(in, out)
			acceptRings(out[0])
			return n, then
		}
	}
	c.answer(w, n)
	c.handle = handle
	if errno := -int32(*uint32At(w.out[0], 4)); errno != 0 {
		return k, unix.Errno(errno)
	}
	return k, nil
}

// Serve answers requests until the file system is not mounted any more, and all have been answered. A request may still be under way when the mount is gone: it is
// interrupted.
func (c *Conn) Serve() {
	if c.queues == nil || !c.serveRings() {
		c.serveReads()
	}
}

// serveReads answers requests that are read from the device.
func (c *Conn) serveReads() {
	c.start()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		c.watch()
	}()
	c.working.Wait()
	c.stir()
	<-watched
}

// Close gives the descriptor back, and memory. Nobody may use c any more.
func (c *Conn) Close() {
	c.dismiss()
	unix.Close(c.fd)
	for _, w := range c.idle {
		w.free()
	}
}

// start lets one more worker take requests, unless there will be none or there is no memory for it. At least one runs, the first of Serve, which Init has left.
func (c *Conn) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended.Load() {
		return
	}
	var w *worker
	if last := len(c.idle) - 1; last >= 0 {
		w, c.idle = c.idle[last], c.idle[:last]
	} else {
		var err error
		if w, err = newWorker(); err != nil {
			return
		}
	}
	c.busy = append(c.busy, w)
	c.running.Store(int32(len(c.busy)))
	c.working.Add(1)
	go c.work(w)
}

// stop says that a worker has nothing to do.
func (c *Conn) stop(w *worker) {
	defer c.working.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.busy, w)
	c.busy = slices.Delete(c.busy, i, i+1)
	c.running.Store(int32(len(c.busy)))
	if len(c.idle) < keep {
		c.idle = append(c.idle, w)
	} else {
		w.free()
	}
}

// work takes requests and answers them until others suffice for that.
func (c *Conn) work(w *worker) {
	defer c.stop(w)
	crowded := 0 // how often in a row there were several requests at once
	for {
		n, err := c.read(w)
		if err == unix.EAGAIN {
			crowded = 0
			if !c.waiting.CompareAndSwap(false, true) {
				return
			}
			n, err = c.wait(w)
			c.waiting.Store(false)
		} else if int(c.running.Load()-c.stuck.Load()) < runtime.NumCPU() && c.pending() {
			crowded++
		} else {
			crowded = 0
		}
		if err != nil {
			c.end(err)
			return
		}
		if (crowded >= crowd || w.usual > long) && !c.waiting.Load() {
			crowded = 0
			c.start()
		}
		began := time.Now()
		then := c.answer(w, n)
		w.usual += (time.Since(began) - w.usual) / 8
		if then != nil {
			began = time.Now()
			then()
			if took := time.Since(began); took > tick {
				w.usual += took / 8 // it is not computing alone that takes so long: somebody else had better wait
			}
		}
	}
}

// wait waits for a request: at first it looks for it all the time, unless that has been in vain of late.
func (c *Conn) wait(w *worker) (n int, err error) {
	// On one processor whoever asks next needs it.
	if runtime.NumCPU() > 1 && (c.doubt.Load() < maxDoubt || c.sleeps.Load()%retry == 0) {
		for began := time.Now(); time.Since(began) < spinFor; {
			if n, err = c.read(w); err != unix.EAGAIN {
				c.doubt.Store(max(c.doubt.Load()-1, 0))
				return n, err
			}
			yield()
		}
		c.doubt.Store(min(c.doubt.Load()+1, maxDoubt))
	}
	c.sleeps.Add(1)
	return c.sleep(w)
}

// sleep waits for a request.
func (c *Conn) sleep(w *worker) (n int, err error) {
	for {
		n, err := c.read(w)
		if err != unix.EAGAIN {
			return n, err
		}
		if _, err := c.poll(-1); err != nil && err != unix.EINTR {
			return 0, err
		}
	}
}

// pending reports whether a request is there.
func (c *Conn) pending() bool {
	n, err := c.poll(0)
	return n > 0 && err == nil
}

// poll waits so many milliseconds for a request, without end if negative; n is 0 if there is none.
func (c *Conn) poll(timeout int) (n int, err error) {
	return unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, timeout)
}

// read reads a request, EAGAIN if there is none.
func (c *Conn) read(w *worker) (n int, err error) {
	for {
		n, err := unix.Read(c.fd, w.in[0])
		switch {
		case err == unix.EINTR || err == unix.ENOENT: // ENOENT: it was interrupted before it could be read
		case err == nil && n < inHeaderSize:
			return 0, unix.EIO
		default:
			return n, err
		}
	}
}

// answer has the request of n bytes answered, and returns what can be done then.
func (c *Conn) answer(w *worker, n int) (then func()) {
	c.taken.Add(1)
	if c.dozing.Load() {
		c.stir()
	}
	w.unique.Store(*uint64At(w.in[0], 8))
	defer w.unique.Store(0)
	if c.ended.Load() { // nobody waits for the answer, and end may have been here before
		return nil
	}
	in := [1][]byte{w.in[0][:n]}
	m, then := c.handle(in[:], w.out)
	if m == 0 {
		return then
	}
	// ENOENT says that the one who asked does not wait any more.
	if _, err := unix.Write(c.fd, w.out[0][:m]); err != nil && err != unix.ENOENT && err != unix.ENODEV {
		c.log.Warn("fuse: cannot answer a request", "opcode", *uint32At(w.in[0], 4), "err", err)
	}
	return then
}

// end notes that the mount is gone, or that its requests cannot be read any more, and interrupts what is under way.
func (c *Conn) end(err error) {
	if c.ended.Swap(true) {
		return
	}
	if err != unix.ENODEV {
		c.log.Error("fuse: cannot read requests", "err", err)
	}
	c.mu.Lock()
	busy := slices.Clone(c.busy)
	c.mu.Unlock()
	for _, w := range busy {
		if unique := w.unique.Load(); unique != 0 {
			c.interrupt(w, unique)
		}
	}
}

// interrupt interrupts a request that a worker answers. The handler has something to say to that while it does not know of the request yet.
func (c *Conn) interrupt(w *worker, unique uint64) {
	in := make([]byte, inHeaderSize+8)
	*uint32At(in, 0), *uint32At(in, 4), *uint64At(in, inHeaderSize) = uint32(len(in)), opInterrupt, unique
	for w.unique.Load() == unique {
		if n, _ := c.handle([][]byte{in}, [][]byte{make([]byte, page)}); n == 0 {
			return
		}
		time.Sleep(tick)
	}
}

// watch starts a worker when all of them are busy for a time, with the same requests: others may wait.
func (c *Conn) watch() {
	last := uint64(0)
	for !c.ended.Load() {
		c.dozing.Store(true)
		if c.taken.Load() == last { // else whoever took the last one may not have seen that
			<-c.stirred
		}
		c.dozing.Store(false)
		for quiet := 0; quiet < idleTicks && !c.ended.Load(); {
			time.Sleep(tick)
			c.lookForStuck()
			taken := c.taken.Load()
			switch {
			case taken != last:
				last, quiet = taken, 0
			case c.waiting.Load():
				quiet++
			default:
				c.start()
			}
		}
	}
}

// lookForStuck counts the workers that have had the same request for a tick: what they wait for, a CMK or a disk, is no processor.
func (c *Conn) lookForStuck() {
	c.mu.Lock()
	defer c.mu.Unlock()
	stuck := int32(0)
	for _, w := range c.busy {
		unique := w.unique.Load()
		if unique != 0 && unique == w.seen {
			stuck++
		}
		w.seen = unique
	}
	c.stuck.Store(stuck)
}

// stir has the watch look.
func (c *Conn) stir() {
	select {
	case c.stirred <- struct{}{}:
	default:
	}
}
