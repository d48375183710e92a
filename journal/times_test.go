package journal

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestStamp has times of which records know and others, from before 1970 and from its first moment on.
func TestStamp(t *testing.T) {
	for _, known := range []unix.Timespec{
		{Sec: timeZero, Nsec: 1}, {Sec: -1, Nsec: 999_999_999}, {}, {Nsec: 1}, {Sec: 1577934245, Nsec: 123456789},
		{Sec: 15032385535, Nsec: 999_999_999},              // the last of ext4, in 2446
		{Sec: 16299260425 - 1, Nsec: 999_999_999},          // the last of XFS, in 2486
		{Sec: timeZero + math.MaxUint64/1_000_000_000 - 1}, // the last that a record has
		{Sec: timeZero + math.MaxUint64/1_000_000_000 - 1, Nsec: 5},
	} {
		if n := stamp(known); n == 0 || unstamp(n) != known {
			t.Errorf("%v becomes %d and %v", known, n, unstamp(n))
		}
	}
	for _, unknown := range []unix.Timespec{
		{Sec: timeZero}, {Sec: timeZero - 1, Nsec: 999_999_999}, {Sec: math.MinInt64}, {Sec: math.MaxInt64},
		{Sec: timeZero + math.MaxUint64/1_000_000_000},
	} {
		if n := stamp(unknown); n != 0 {
			t.Errorf("%v becomes %d", unknown, n)
		}
	}
}

// TestReplayKeepsTime replays a record without a modification time, as an earlier version wrote it: that of the file stays.
func TestReplayKeepsTime(t *testing.T) {
	p, s := newPlaceOn(t)
	f := p.durable("a")
	path, before := filepath.Join(p.dir, "a"), time.Unix(1577934245, 123456789)
	if err := os.Chtimes(path, before, before); err != nil {
		t.Fatal(err)
	}
	f.Begin()
	r := f.record(kindChange)
	r.mtime, r.keep, r.size = 0, math.MaxInt64, 5000
	r.extents = []extent{{off: 0, n: 5000, data: bytes.Repeat([]byte{2}, 5000)}}
	if _, err := p.j.write(r, 0, true); err != nil {
		t.Fatal(err)
	}
	f.End()
	p.kill()
	writes := s.now
	p.open()
	p.halt()
	p.changed("a")
	if st, err := os.Stat(path); err != nil || !st.ModTime().Equal(before) || s.now == writes {
		t.Errorf("modified at %v, %v", st.ModTime(), err)
	}
}

// TestPatchTime patches a file whose first bytes are a hole, and a new one that is still open: the modification time stays, whatever moment a crash is at.
func TestPatchTime(t *testing.T) {
	c := newCrashTest(t, 0, crashLimits)
	a, b := c.files["a"], c.files["b"]
	write := func(f *File, off int64) {
		f.Begin()
		defer f.End()
		if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 5000), off); err != nil {
			t.Fatal(err)
		}
	}
	write(a.f, 20000)
	write(b.f, 0)
	if err := a.f.Sync(false); err != nil {
		t.Fatal(err)
	}
	c.touch(a)
	c.touch(b)
	if err := a.f.Sync(false); err != nil {
		t.Fatal(err)
	}
	want, begin := []uint64{a.held[0].mtime, b.held[0].mtime}, c.disk.now
	for _, f := range []*crashFile{a, b} {
		if err := f.f.Patch(512, func([]byte) ([]byte, error) { return bytes.Repeat([]byte{9}, 512), nil }); err != nil {
			t.Fatal(err)
		}
		if err := f.f.Save(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.p.j.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	c.p.kill()
	end := c.disk.now
	for k := begin; k <= end; k++ {
		c.recover(c.disk.cut(k, nil))
		for i, f := range []*crashFile{a, b} {
			if got := c.p.file(f.name).modified(); got != want[i] {
				t.Errorf("killed at %d of %d: %s was modified at %v", k-begin, end-begin, f.name, unstamp(got))
			}
		}
		c.p.kill()
		c.recover(c.disk.cut(k, c.rnd))
		if got := c.p.file("a").modified(); got != want[0] {
			t.Errorf("power cut at %d of %d: a was modified at %v", k-begin, end-begin, unstamp(got))
		}
		c.p.kill()
	}
}
