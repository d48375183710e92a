package device

import (
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// newRequest returns a worker that has been given a request with an argument of 16 bytes and such a payload, but no ring of the kernel's.
func newRequest(code uint32, payload int) *ringWorker {
	r := &ring{entry: make([]byte, entrySize), taken: new(atomic.Uint32), given: new(atomic.Uint32)}
	w := &ringWorker{worker: &worker{memory: make([]byte, ringMemory)}, queue: new(queue), ring: r}
	*uint32At(w.memory, 0), *uint32At(w.memory, 4), *uint64At(w.memory, 8) = uint32(inHeaderSize+16+payload), code, 4
	*uint32At(w.memory, payloadSizeAt) = uint32(payload)
	return w
}

// TestUnanswered has a handler that does not answer: that is an error to whoever asked, who might think else that his fsync was done. What the kernel was asked for by us is none.
func TestUnanswered(t *testing.T) {
	const fsync = 20
	for code, want := range map[uint32]int32{fsync: -int32(unix.EIO), opNotifyReply: 0} {
		c := new(Conn)
		c.handle = func(in, out [][]byte) (int, func()) { return 0, nil }
		w := newRequest(code, 0)
		c.answerRing(w)
		if got := int32(*uint32At(w.memory, 4)); got != want || *uint64At(w.memory, 8) != 4 {
			t.Errorf("request %d was answered %d, want %d", code, got, want)
		}
	}
}

// TestPlaces has room for the longest answer to a request of any size, which is not where the request is.
func TestPlaces(t *testing.T) {
	for _, payload := range []int{0, 1, page - 1, page, MaxRequest} {
		w := newRequest(opRead, payload)
		in, out, long := w.request()
		if len(in) != inHeaderSize+16+payload || len(out) < outHeaderSize+MaxRequest {
			t.Fatalf("payload of %d bytes: the request has %d, the answer may have %d", payload, len(in), len(out))
		}
		clear(out)
		for i := range in {
			in[i] = 1
		}
		if slices.Contains(out, 1) {
			t.Errorf("payload of %d bytes: request and answer overlap", payload)
		}
		out = out[:outHeaderSize+MaxRequest]
		out[outHeaderSize], out[len(out)-1] = 2, 3
		w.answer(0, out, long)
		if m := w.memory[payloadAt:longAnswerAt]; m[0] != 2 || m[MaxRequest-1] != 3 {
			t.Errorf("payload of %d bytes: the answer's is not in its place", payload)
		}
	}
}
