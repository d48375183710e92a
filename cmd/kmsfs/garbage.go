package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// maxGarbage is how much garbage, in bytes, gathers before it is collected. It is what the daemon takes beside its live heap, which is about 4 MB and 100 more for
	// each million of names that the kernel remembers.
	maxGarbage = 16 << 20
	// No heap is collected more often than when it has grown by a tenth, and none more seldom than when it is five times as large.
	minGCPercent, maxGCPercent = 10, 400
)

// boundGarbage has the collector wait for so much garbage, not for as much as is live. GOGC, where it is set, prevails.
func boundGarbage() {
	if os.Getenv("GOGC") == "" {
		tuneCollector(0)
	}
}

// tuneCollector does so for the heap that the last collection has left, and once more after each collection: that is when an object to which nothing refers is
// cleaned up. percent is what it was tuned to before.
func tuneCollector(percent int) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	if p := gcPercent(live[0].Value.Uint64()); p != percent {
		percent = p
		debug.SetGCPercent(percent)
	}
	runtime.AddCleanup(new([64]byte), tuneCollector, percent)
}

// gcPercent is by how much a heap of so many live bytes may grow.
func gcPercent(live uint64) int {
	return int(min(max(maxGarbage*100/max(live, 1), minGCPercent), maxGCPercent))
}
