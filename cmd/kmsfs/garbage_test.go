package main

import (
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

func TestGCPercent(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{{0, 400}, {1, 400}, {4 << 20, 400}, {8 << 20, 200}, {64 << 20, 25}, {160 << 20, 10}, {1 << 40, 10}} {
		if got := gcPercent(c.live); got != c.want {
			t.Errorf("%d bytes: %d %%, want %d", c.live, got, c.want)
		}
	}
}

// The collector follows the heap in both directions.
func TestGarbageIsBounded(t *testing.T) {
	t.Setenv("GOGC", "")
	boundGarbage()
	wait := func(what string, ok func(percent uint64) bool) {
		t.Helper()
		percent := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			runtime.GC()
			metrics.Read(percent)
			if ok(percent[0].Value.Uint64()) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: the heap may grow by %d %%", what, percent[0].Value.Uint64())
			}
		}
	}
	wait("small heap", func(p uint64) bool { return p >= 100 })
	ballast := make([]byte, 64<<20)
	wait("large heap", func(p uint64) bool { return p <= 25 })
	runtime.KeepAlive(ballast)
	ballast = nil
	wait("small heap again", func(p uint64) bool { return p >= 100 })
}
