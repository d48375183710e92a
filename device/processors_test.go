package device

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestQueues has no queues where not all processors may be used.
func TestQueues(t *testing.T) {
	if all, err := queues(); err == nil && len(all) < runtime.NumCPU() {
		t.Errorf("%d queues for %d processors", len(all), runtime.NumCPU())
	}
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		var cpus unix.CPUSet
		err := unix.SchedGetaffinity(0, &cpus)
		for i := 0; err == nil && cpus.Count() > 1; i++ {
			cpus.Clear(i)
		}
		if err == nil {
			err = unix.SchedSetaffinity(0, &cpus)
		}
		if err != nil {
			t.Error(err)
		}
		_, err = queues()
		errs <- err
	}()
	online, err := processors("online")
	if got := <-errs; err != nil || (got == nil) != (online == 1) {
		t.Errorf("%d processors (%v), of which one may be used: %v", online, err, got)
	}
}
