package device

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of FUSE over io_uring (linux/fuse.h, protocol 7.42). The kernel puts a request into the memory of a worker: its header, its first argument and its size in one place, and everything else, the payload, in another. An answer
// is its header, and a payload.
const (
	commandRegister = 1
	commandCommit   = 2

	ringHeaderSize = 288
	argumentAt     = 128
	commitAt       = 264 // the number by which the kernel knows the request when it is answered
	payloadSizeAt  = 272
	payloadAt      = 4 * page               // in between: copies of short requests
	longAnswerAt   = payloadAt + MaxRequest // of answers to long ones
	ringMemory     = longAnswerAt + MaxRequest + page
)

// maxQueues is for how many processors it is worthwhile to have a thread each.
const maxQueues = 256

// A queue is where the kernel puts what programs on one processor ask. Its workers are bound to that processor: a request takes two switches between threads there, and nobody is woken on another one.
type queue struct {
	cpu        int
	workers    atomic.Int32
	free       atomic.Int32 // workers that wait for a request, or are about to
	recruiting atomic.Bool  // one more is on its way
	first      <-chan error // what the first one says, see Conn.recruit
}

// queues returns a queue for each processor that there may be. The calling thread must be allowed on all that are there: what a worker asks (Conn.ask) comes to the queue of the processor where it does.
func queues() ([]*queue, error) {
	n, err1 := processors("possible")
	online, err2 := processors("online")
	var ours unix.CPUSet
	err3 := unix.SchedGetaffinity(0, &ours)
	if err := errors.Join(err1, err2, os.NewSyscallError("sched_getaffinity", err3)); err != nil {
		return nil, err
	}
	if n > maxQueues {
		return nil, fmt.Errorf("%d processors are more than %d", n, maxQueues)
	}
	if ours.Count() < online {
		return nil, fmt.Errorf("of %d processors only %d may be used", online, ours.Count())
	}
	all := make([]*queue, n)
	for i := range all {
		all[i] = &queue{cpu: i}
	}
	return all, nil
}

// processors returns how many processors are possible, or online.
func processors(which string) (int, error) {
	b, err := os.ReadFile("/sys/devices/system/cpu/" + which)
	if err != nil {
		return 0, err
	}
	return count(strings.TrimSpace(string(b)))
}

// count returns how many processors a list such as 0-3,8 has.
func count(list string) (n int, err error) {
	for r := range strings.SplitSeq(list, ",") {
		from, to, ok := strings.Cut(r, "-")
		if !ok {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err := errors.Join(err1, err2); err != nil {
			return 0, fmt.Errorf("list of processors: %w", err)
		}
		if first < 0 || last < first || last > 1<<20 {
			return 0, fmt.Errorf("list of processors: %q is no range", r)
		}
		n += last - first + 1
	}
	return n, nil
}

// A ringWorker takes requests of one queue, one at a time, over a ring of its own.
type ringWorker struct {
	*worker
	queue *queue
	ring  *ring
	lane  *lane // nil until there is something for it
}

// newRingWorker returns a worker of the calling thread, which is bound to the queue's processor if it may be there. It must be freed.
func newRingWorker(q *queue) (*ringWorker, error) {
	var cpu unix.CPUSet
	cpu.Set(q.cpu)
	_ = unix.SchedSetaffinity(0, &cpu)
	memory, err := unix.Mmap(-1, 0, ringMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("memory for requests: %w", err)
	}
	r, err := newRing()
	if err != nil {
		_ = unix.Munmap(memory)
		return nil, err
	}
	return &ringWorker{worker: &worker{memory: memory}, queue: q, ring: r}, nil
}

func (w *ringWorker) free() {
	w.ring.close()
	w.worker.free()
	if w.lane != nil {
		w.lane.free()
	}
}

// clear gives the memory of payloads back, whose content has been used. It may be locked.
func (w *ringWorker) clear() { _ = unix.Madvise(w.memory[payloadAt:], unix.MADV_DONTNEED_LOCKED) }

// register offers the worker to its queue, in the device fd.
func (w *ringWorker) register(fd int) error {
	// The kernel reads this when it is submitted: it must not be on the stack, which may have moved by then.
	memory := (*[2]unix.Iovec)(unsafe.Pointer(&w.memory[page]))
	*memory = [2]unix.Iovec{{Base: &w.memory[0], Len: ringHeaderSize}, {Base: &w.memory[payloadAt], Len: MaxRequest}}
	w.ring.prepare(fd, commandRegister, uint16(w.queue.cpu), 0, memory[:])
	if err := w.ring.submit(0); err != nil {
		return err
	}
	err, _ := w.ring.result() // there is none until the first request, unless it was refused
	return err
}

// try offers the worker before the first answer, when the kernel can only tell it to come again.
func (w *ringWorker) try(fd int) error {
	err := w.register(fd)
	if err == nil {
		err = w.ring.wait()
	}
	if err == unix.EAGAIN {
		return nil
	}
	return fmt.Errorf("a command to the FUSE device: %w", err)
}

// request returns the request in one piece, and where an answer to it can be put. What is long is not copied, but the answer to it is: it is short, but for some ioctl(2).
func (w *ringWorker) request() (in, out []byte, long bool) {
	m := w.memory
	payload := int(*uint32At(m, payloadSizeAt))
	argument := int(*uint32At(m, 0)) - inHeaderSize - payload
	if long = payload >= page; long {
		in, out = m[payloadAt-inHeaderSize-argument:payloadAt+payload], m[longAnswerAt:]
	} else {
		in, out = m[page:][:inHeaderSize+argument+payload], m[payloadAt-outHeaderSize:longAnswerAt]
		copy(in[inHeaderSize+argument:], m[payloadAt:][:payload])
	}
	copy(in, m[:inHeaderSize])
	copy(in[inHeaderSize:], m[argumentAt:][:argument])
	return in, out, long
}

// answer puts an answer where the kernel expects it, and prepares to give it.
func (w *ringWorker) answer(fd int, out []byte, long bool) {
	m := w.memory
	copy(m, out[:outHeaderSize])
	if long {
		copy(m[payloadAt:], out[outHeaderSize:])
	}
	*uint32At(m, payloadSizeAt) = uint32(len(out) - outHeaderSize)
	w.ring.prepare(fd, commandCommit, uint16(w.queue.cpu), *uint64At(m, commitAt), nil)
}
