package device

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// What is told of rings when a file system is mounted, in the answer to the first request.
const (
	canRings   = 1 << 41 // capability
	initFlags  = outHeaderSize + 12
	initFlags2 = outHeaderSize + 32
	initExt    = 1 << 30 // there are more than 32 capabilities
)

// What the kernel asks.
const (
	opRead        = 15
	opNotifyReply = 41

	readSizeAt = inHeaderSize + 16
)

const (
	// much is from how many bytes on a read is left to another processor: 128 KiB take some 50 µs, and waking somebody there 10. A program that reads so much at once has the kernel
	// read ahead, and goes on meanwhile; one that writes waits.
	much = 128 << 10
	// maxWorkers is how many requests may wait for something slow at a time: each takes a thread, and a process that can have no more of them ends.
	maxWorkers = 512
	// roomy is how many workers of a queue keep the memory that a large request has used: a program that reads ahead has some of them.
	roomy = 16
	// patience is for how many ticks an interrupt may come before its request.
	patience = 50
)

// acceptRings adds to the answer to the first request that requests may come over rings.
func acceptRings(answer []byte) {
	*uint32At(answer, initFlags) |= initExt
	*uint32At(answer, initFlags2) |= canRings >> 32
}

// recruit starts a worker of a queue, which takes requests once c.leave is closed. It says whether it is there, and then whether it has been registered. One that comes later than the first has the kernel look
// for requests that wait: what is in a queue is given only to who has answered something.
func (c *Conn) recruit(q *queue, late bool) (said <-chan error) {
	says := make(chan error, 2)
	q.workers.Add(1)
	c.working.Add(1)
	go func() {
		defer c.working.Done()
		defer q.workers.Add(-1)
		runtime.LockOSThread() // for good: the thread is bound to a processor
		w, err := newRingWorker(q)
		says <- err
		if err == nil {
			defer w.free()
			if <-c.leave; c.queues == nil {
				return
			}
			err = c.register(w)
			says <- err
		}
		if late {
			q.recruiting.Store(false) // before it takes anything, since it may be busy from then on
			if err == nil {
				_ = c.ask()
			} else if !gone(err) {
				c.tooFew(err)
			}
		}
		if err != nil {
			return
		}
		if err = c.workRing(w); gone(err) {
			err = unix.ENODEV
		}
		c.end(err)
	}()
	return says
}

// gone reports whether an error of a ring says that the mount is gone.
func gone(err error) bool {
	return err == unix.ENOTCONN || err == unix.ECONNABORTED || err == unix.ECANCELED
}

// register offers a worker to its queue.
func (c *Conn) register(w *ringWorker) error {
	w.queue.free.Add(1)
	if err := w.register(c.fd); err != nil {
		w.queue.free.Add(-1)
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = append(c.busy, w.worker)
	return nil
}

// enlist starts the first worker of each queue and reports whether all are there.
func (c *Conn) enlist() bool {
	c.leave = make(chan struct{})
	all, err := queues()
	if err == nil {
		err = c.try(all[0])
	}
	for _, q := range all {
		if err != nil {
			break
		}
		said := c.recruit(q, false)
		err, q.first = <-said, said
	}
	if err != nil {
		c.log.Info("fuse: the kernel offers requests over io_uring, which cannot be had", "err", err)
		close(c.leave)
		c.working.Wait()
		return false
	}
	c.queues = all
	return true
}

// try reports whether the device takes commands, which SELinux for one may forbid: when the kernel waits for workers, it is too late to find that out.
func (c *Conn) try(q *queue) error {
	tried := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: with the thread ends the one of the kernel that tries again
		w, err := newRingWorker(q)
		if err == nil {
			err = w.try(c.fd)
			w.free()
		}
		tried <- err
	}()
	return <-tried
}

// dismiss sends the first workers away if serveRings has not been called.
func (c *Conn) dismiss() {
	if c.queues == nil {
		return
	}
	select {
	case <-c.leave:
	default:
		c.queues = nil
		close(c.leave)
		c.working.Wait()
	}
}

// serveRings answers requests that come over rings. It reports whether the kernel has let us; if not, all requests are to be read.
func (c *Conn) serveRings() bool {
	close(c.leave)
	var err error
	for _, q := range c.queues {
		err = errors.Join(err, <-q.first)
	}
	if err != nil {
		c.log.Warn("fuse: the kernel takes no workers for requests over io_uring", "err", err)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.busy = nil // those it has taken wait in vain, until the mount is gone
		return false
	}
	c.readRest()
	c.working.Wait()
	return true
}

// workRing answers requests until there are no more.
func (c *Conn) workRing(w *ringWorker) error {
	q := w.queue
	for {
		if err := w.ring.wait(); err != nil {
			return err
		}
		if free := q.free.Add(-1); free == 0 && *uint32At(w.memory, 4) != opNotifyReply {
			c.reinforce(q)
		}
		then, large := c.answerRing(w)
		q.free.Add(1)
		spare := large && q.workers.Load() > roomy
		if then != nil || spare {
			if err := w.ring.submit(0); err != nil {
				return err
			}
		}
		if spare && w.ring.waiting() { // else the memory may hold the next request already, or the answer still
			w.clear()
		}
		if then != nil {
			// The next request may be this worker's already, so it must not be late for it.
			c.working.Add(1)
			go func() {
				defer c.working.Done()
				then()
			}()
		}
	}
}

// reinforce starts one more worker of a queue, unless one is about to come: there shall always be one that is free, since others may wait for something slow.
func (c *Conn) reinforce(q *queue) {
	if c.ended.Load() || !q.recruiting.CompareAndSwap(false, true) {
		return
	}
	all := int32(0)
	for _, q := range c.queues {
		all += q.workers.Load()
	}
	if all >= int32(maxWorkers+len(c.queues)) {
		q.recruiting.Store(false)
		c.tooFew(fmt.Errorf("%d requests wait for something slow", all))
		return
	}
	c.recruit(q, true)
}

// tooFew says once that requests wait because there are no more workers.
func (c *Conn) tooFew(err error) {
	if !c.short.Swap(true) {
		c.log.Warn("fuse: no more workers for requests over io_uring", "err", err)
	}
}

// answerRing has the request of a worker answered. It returns what can be done then, and whether much of the worker's memory was used.
func (c *Conn) answerRing(w *ringWorker) (then func(), large bool) {
	in, out, long := w.request()
	reads := readsMuch(in)
	large = reads || len(in) >= much
	unique, code, n, errno := *uint64At(in, 8), *uint32At(in, 4), 0, unix.EIO
	w.unique.Store(unique)
	defer w.unique.Store(0)
	switch {
	case code == opNotifyReply: // see ask
		errno = 0
	case c.ended.Load(): // end may have been here before, and would not interrupt it
	case reads && runtime.NumCPU() > 1 && w.hasLane():
		// Who reads ahead goes on meanwhile, and needs this one.
		w.lane.perform(func() { n, then = c.handle([][]byte{in}, [][]byte{out}) })
	default:
		n, then = c.handle([][]byte{in}, [][]byte{out})
	}
	if n == 0 { // the kernel wants to hear something: nobody may take a request for done that the handler could not answer
		n = outHeaderSize
		*uint32At(out, 0), *uint32At(out, 4), *uint64At(out, 8) = outHeaderSize, uint32(-int32(errno)), unique
	}
	w.answer(c.fd, out[:n], long)
	return then, large
}

// hasLane reports whether the worker has a lane, or can have one.
func (w *ringWorker) hasLane() bool {
	if w.lane == nil {
		w.lane, _ = newLane()
	}
	return w.lane != nil
}

// readsMuch reports whether a request is for many bytes.
func readsMuch(request []byte) bool {
	return *uint32At(request, 4) == opRead && *uint32At(request, readSizeAt) >= much
}

// readRest answers what does not come over rings: what the kernel forgets, and which requests are to be interrupted. Nobody waits for that, so it waits until there is more of it.
func (c *Conn) readRest() {
	w := c.idle[0]
	for {
		n, err := c.sleep(w)
		for ; err == nil; n, err = c.read(w) {
			if *uint32At(w.in[0], 4) == opInterrupt {
				c.interrupted(slices.Clone(w.in[0][:n]))
			} else {
				c.answer(w, n)
			}
		}
		if err != unix.EAGAIN {
			c.end(err)
			return
		}
		time.Sleep(tick)
	}
}

// interrupted has a request interrupted, which may come a little later than that, or may be answered.
func (c *Conn) interrupted(in []byte) {
	interrupt := func() bool {
		n, _ := c.handle([][]byte{in}, [][]byte{make([]byte, page)})
		return n == 0
	}
	if interrupt() {
		return
	}
	c.working.Add(1)
	go func() {
		defer c.working.Done()
		for i := 0; i < patience && !interrupt() && !c.ended.Load(); i++ {
			time.Sleep(tick)
		}
	}()
}
