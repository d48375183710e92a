package journal

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A wreck is what a crash leaves of a disk.
type wreck struct {
	committed int               // the time of the last metadata
	names     map[string]uint64 // nil: as they are
	files     map[uint64]image
}

// An image is what a disk has of a file.
type image struct {
	size  int64
	pages map[int64][]byte // absent ones are zeros
	mark  []byte
	mtime uint64
}

// cut returns what a power cut at time k may leave or, without rnd, what a kill does.
func (s *sim) cut(k int, rnd *rand.Rand) wreck {
	committed := 0
	for _, c := range s.commits {
		if c.t <= k {
			committed = max(committed, c.upTo)
		}
	}
	committed = pick(rnd, committed, k)
	w := wreck{committed, s.names(committed), make(map[uint64]image)}
	for _, ino := range s.order {
		w.files[ino] = s.files[ino].cut(k, committed, rnd)
	}
	return w
}

// pick returns a time from lo to hi, the ends more often than others, and hi without rnd.
func pick(rnd *rand.Rand, lo, hi int) int {
	if rnd == nil {
		return hi
	}
	switch rnd.IntN(4) {
	case 0:
		return lo
	case 1:
		return hi
	}
	return lo + rnd.IntN(hi-lo+1)
}

func (f *simFile) cut(k, committed int, rnd *rand.Rand) image {
	written := 0 // everything up to then is on the disk
	for _, at := range f.synced {
		if at <= k {
			written = max(written, at)
		}
	}
	for _, at := range f.out {
		if at < committed {
			written = max(written, at)
		}
	}
	im := image{size: f.base.size, pages: make(map[int64][]byte), mark: f.base.mark, mtime: f.base.mtime}
	for p, b := range f.base.pages {
		im.pages[p] = append([]byte(nil), b...)
	}
	until := make(map[int64]int) // when each page was written back last
	mode := 1
	if rnd != nil {
		mode = rnd.IntN(3)
	}
	last := func(p int64) int {
		if _, ok := until[p]; !ok {
			until[p] = [3]int{written, k, pick(rnd, written, k)}[mode]
		}
		return until[p]
	}
	zero := func(at int, from, to int64) { // to < 0: everything from there on
		for _, p := range slices.Sorted(maps.Keys(im.pages)) { // in one order, since last draws
			b := im.pages[p]
			lo, hi := max(from-p*simPage, 0), int64(simPage)
			if to >= 0 {
				hi = min(to-p*simPage, simPage)
			}
			switch {
			case lo >= hi:
			case at <= committed || hi-lo < simPage && at <= last(p):
				clear(b[lo:hi])
			case hi-lo == simPage && at <= last(p):
				until[p] = at - 1 // what is written later goes to blocks that nothing leads to yet
			}
		}
	}
	for _, e := range f.events {
		if e.at > k {
			break
		}
		if e.mtime != 0 && e.at <= committed {
			im.mtime = e.mtime
		}
		switch {
		case e.data != nil:
			for at := e.off; at < e.off+e.n; {
				p := at / simPage
				n := min((p+1)*simPage, e.off+e.n) - at
				if e.at <= last(p) {
					if im.pages[p] == nil {
						if e.zeros {
							at += n
							continue
						}
						im.pages[p] = make([]byte, simPage)
					}
					copy(im.pages[p][at-p*simPage:], e.data[at-e.off:][:n])
				}
				at += n
			}
			if e.at <= committed {
				im.size = max(im.size, e.off+e.n)
			}
		case e.cut:
			zero(e.at, e.off, -1)
			if e.at <= committed {
				im.size = e.off
			}
		case e.punch:
			zero(e.at, e.off, e.off+e.n)
		case e.mark != nil && e.at <= committed:
			im.mark = e.mark
		}
	}
	for p, b := range im.pages {
		if n := im.size - p*simPage; n < simPage {
			clear(b[max(n, 0):])
		}
		if bytes.Count(b, []byte{0}) == simPage {
			delete(im.pages, p)
		}
	}
	return im
}

// restore makes the file at path an image.
func (im image) restore(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Not to nothing: ext4 would write at once what comes next.
	first := min(im.size, 1)
	if err := errors.Join(f.Truncate(first), f.Truncate(im.size)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, first), 0); err != nil {
		t.Fatal(err)
	}
	for p, b := range im.pages {
		if _, err := f.WriteAt(b[:min(im.size-p*simPage, simPage)], p*simPage); err != nil {
			t.Fatal(err)
		}
	}
	if len(im.mark) > 0 {
		err = unix.Fsetxattr(int(f.Fd()), MarkName, im.mark, 0)
	} else if err = unix.Fremovexattr(int(f.Fd()), MarkName); err == unix.ENODATA {
		err = nil
	}
	if err == nil {
		err = linux{}.setModified(int(f.Fd()), unstamp(im.mtime))
	}
	if err != nil {
		t.Fatal(err)
	}
}
