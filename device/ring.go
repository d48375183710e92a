package device

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of io_uring(7) and linux/io_uring.h.
const (
	// The entry has room for a command of 80 bytes; one thread submits, and looks at results itself, so that the kernel interrupts nobody; entries are taken in order. FUSE's commands came with Linux 6.14,
	// the last of these in 6.6.
	ringFlags = 1<<10 | 1<<12 | 1<<13 | 1<<16

	ringEntries   = 0x10000000 // where entries are mapped from
	entrySize     = 128
	resultSize    = 16
	opCommand     = 46
	enterGetEvent = 1
)

// A ring is an io_uring(7) with room for one command at a time, of the thread that has made it. It gives the kernel the answer to a request and waits for the next one by one system call.
type ring struct {
	fd             int
	shared         []byte // with the kernel: heads, tails and results
	entry          []byte // a command, likewise
	taken, given   *atomic.Uint32
	seen, finished *atomic.Uint32
	results        []byte
	mask           uint32 // of results
}

// ringParams is struct io_uring_params.
type ringParams struct {
	entries, results, flags, thread, idle, features, workers uint32
	_                                                        [3]uint32
	entry                                                    struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	result struct {
		head, tail, mask, entries, overflow, results, flags, _ uint32
		_                                                      uint64
	}
}

// newRing returns a ring of the calling thread, which must not change: the goroutine has to be locked to it.
func newRing() (*ring, error) {
	p := ringParams{flags: ringFlags}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	r := &ring{fd: int(fd), mask: p.results - 1}
	size := max(p.result.results+p.results*resultSize, p.entry.head+4, p.entry.tail+4)
	var err error
	if r.shared, err = r.mmap(0, int(size)); err == nil {
		r.entry, err = r.mmap(ringEntries, entrySize)
	}
	if err != nil {
		r.close()
		return nil, fmt.Errorf("memory of an io_uring: %w", err)
	}
	r.taken, r.given = atomicAt(r.shared, p.entry.head), atomicAt(r.shared, p.entry.tail)
	r.seen, r.finished = atomicAt(r.shared, p.result.head), atomicAt(r.shared, p.result.tail)
	r.results = r.shared[p.result.results:]
	return r, nil
}

func (r *ring) mmap(at int64, size int) ([]byte, error) {
	return unix.Mmap(r.fd, at, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
}

func (r *ring) close() {
	_ = unix.Munmap(r.shared)
	_ = unix.Munmap(r.entry)
	unix.Close(r.fd)
}

// prepare makes the next command: what it is, and of which queue, for the device fd. A commit tells the kernel's number of the request that is answered, a registration where requests are to be put.
func (r *ring) prepare(fd int, command uint32, queue uint16, commit uint64, memory []unix.Iovec) {
	clear(r.entry)
	r.entry[0] = opCommand
	*uint32At(r.entry, 4) = uint32(fd)
	*uint32At(r.entry, 8) = command
	*uint64At(r.entry, 16) = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(memory))))
	*uint32At(r.entry, 24) = uint32(len(memory))
	*uint64At(r.entry, 56) = commit
	*uint32At(r.entry, 64) = uint32(queue)
	r.given.Add(1)
}

// submit gives the kernel the command, if it has not got it yet, and waits for so many results, 1 or 0. If it does not wait, the only result may be that the command was refused: no request is taken yet.
func (r *ring) submit(results uintptr) error {
	n := r.given.Load() - r.taken.Load()
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(n), results, enterGetEvent*results, 0, 0)
	if errno != 0 && errno != unix.EINTR && errno != unix.EAGAIN && errno != unix.EBUSY {
		return errno
	}
	return nil
}

// waiting reports whether the kernel has the command and no result of it. There will be none before the next wait: the kernel gives a worker a request, and writes to its memory, only while it submits a command or waits for its
// result.
func (r *ring) waiting() bool {
	return r.given.Load() == r.taken.Load() && r.seen.Load() == r.finished.Load()
}

// result returns the result of the command, if there is one.
func (r *ring) result() (err error, ok bool) {
	seen := r.seen.Load()
	if seen == r.finished.Load() {
		return nil, false
	}
	code := int32(*uint32At(r.results, int(seen&r.mask)*resultSize+8))
	r.seen.Store(seen + 1)
	if code < 0 {
		return unix.Errno(-code), true
	}
	return nil, true
}

// wait gives the kernel the command and waits for its result.
func (r *ring) wait() error {
	for {
		if err, ok := r.result(); ok {
			return err
		}
		if err := r.submit(1); err != nil {
			return err
		}
	}
}

func atomicAt(b []byte, at uint32) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(uint32At(b, int(at))))
}
