package device

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// A lane is a thread that does something on another processor than its owner's, while that waits. Neither is woken by Go's scheduler, which would take both their Ps and hand them on, twice.
type lane struct {
	begin, end int // eventfd(2)
	do         func()
}

func newLane() (*lane, error) {
	begin, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	end, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(begin)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	l := &lane{begin: begin, end: end}
	go l.run()
	return l, nil
}

func (l *lane) run() {
	runtime.LockOSThread() // the thread is woken, and not another one that would take the goroutine
	for {
		await(l.begin)
		do := l.do
		if do == nil {
			unix.Close(l.begin)
			unix.Close(l.end)
			return
		}
		do()
		announce(l.end)
	}
}

// perform has the lane do something, and returns when that is done.
func (l *lane) perform(do func()) {
	l.do = do
	announce(l.begin)
	await(l.end)
}

// free ends the lane, which must be idle.
func (l *lane) free() {
	l.do = nil
	announce(l.begin)
}

// announce and await are a barrier for memory, too: what was written before one is seen after the other.
func announce(fd int) {
	one := [8]byte{1, 1, 1, 1, 1, 1, 1, 1} // any number but 0, in any order of bytes
	_, _ = unix.Write(fd, one[:])
}

func await(fd int) {
	var n [8]byte
	for {
		if _, err := unix.Read(fd, n[:]); err != unix.EINTR {
			return
		}
	}
}
