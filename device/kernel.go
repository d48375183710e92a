package device

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// uint32At and uint64At return a field of what the kernel sends, or is sent, in the order of bytes of this machine.
func uint32At(b []byte, at int) *uint32 { return (*uint32)(unsafe.Pointer(&b[at : at+4][0])) }
func uint64At(b []byte, at int) *uint64 { return (*uint64)(unsafe.Pointer(&b[at : at+8][0])) }

// yield lets another thread run, if one is to.
func yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// Codes of what the kernel is told without being asked.
const (
	notifyInvalidate = 2
	notifyStore      = 4
	notifyRetrieve   = 5
)

// Store gives the kernel the first bytes of a file's content, which it takes over what it has.
func (c *Conn) Store(node uint64, data []byte) error {
	b := make([]byte, outHeaderSize+24)
	*uint64At(b, 16), *uint32At(b, 32) = node, uint32(len(data))
	return c.notify(notifyStore, b, data)
}

// Invalidate has the kernel drop what it has of n bytes of a file's content, of all from off on if n is 0 and of nothing if off is negative, and of its attributes. It waits for
// requests that are about these bytes, so the caller must hold nothing that they need.
func (c *Conn) Invalidate(node uint64, off, n int64) error {
	b := make([]byte, outHeaderSize+24)
	*uint64At(b, 16), *uint64At(b, 24), *uint64At(b, 32) = node, uint64(off), uint64(n)
	return c.notify(notifyInvalidate, b, nil)
}

func (c *Conn) notify(code uint32, b, data []byte) error {
	*uint32At(b, 0), *uint32At(b, 4) = uint32(len(b)+len(data)), code
	_, err := unix.Writev(c.fd, [][]byte{b, data})
	return err
}

// asked is from where the numbers of what ask has asked for go up, in twos, as the kernel's own do, which begin at 2. No two may be the same: that is what an answer over io_uring is found by.
const asked = 1 << 62

// ask has the kernel ask something in turn that needs no answer: it sends back nothing of a file's content. Of directories Linux 6.18.42 and 7.1 do not do that any more.
func (c *Conn) ask() (err error) {
	for _, node := range append(c.files(), 1) {
		b := make([]byte, outHeaderSize+32)
		*uint64At(b, 16), *uint64At(b, 24) = asked+2*c.asks.Add(1), node
		if err = c.notify(notifyRetrieve, b, nil); err == nil {
			break
		}
	}
	return err
}
