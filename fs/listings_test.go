package fs

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestReadAhead lists a directory that is read ahead while it is gone on with, begun anew, changed or left, by answers of all sizes.
func TestReadAhead(t *testing.T) {
	for _, plus := range []bool{false, true} {
		t.Run(fmt.Sprint("plus=", plus), func(t *testing.T) {
			f := unmounted(t)
			f.log = slog.New(slog.DiscardHandler)
			want := map[string]bool{".": true, "..": true}
			for i := range 2500 {
				name := fmt.Sprint("file", i)
				if i%100 == 0 {
					name += strings.Repeat("x", 190) // with links beside it that tell the name
				}
				want[name] = true
				var out fuse.EntryOut
				if s := f.Mknod(nil, &fuse.MknodIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, Mode: unix.S_IFREG | 0o644}, name, &out); !s.Ok() {
					t.Fatal(s)
				}
				f.Forget(out.NodeId, 1)
			}
			// What does not authenticate hides nothing.
			if err := os.WriteFile(filepath.Join(f.vol.Dir(), "bm90LWEtbmFtZS1vZi10aGlzLXZvbHVtZQ"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			before := descriptors(t)
			rnd := rand.New(rand.NewPCG(1, 0))
			var ahead sync.WaitGroup
			read := 0
			for round := range 60 {
				seen := make(map[string]bool)
				size := []int{1000, 4096, 8192, 32 << 10, 128 << 10}[round%5]
				leave := round%3 == 1
				for off := uint64(0); ; {
					entries := answer(t, f, off, size, plus)
					if len(entries) == 0 {
						break
					}
					for _, e := range entries {
						if seen[e.Name] {
							t.Fatalf("%q is listed twice", e.Name)
						}
						seen[e.Name] = true
						off = e.Off
					}
					if l := f.listings.long(fuse.FUSE_ROOT_ID); l != nil {
						read++
						ahead.Go(func() { f.readAhead(l) })
					}
					if leave && rnd.IntN(10) == 0 {
						break
					}
					if rnd.IntN(20) == 0 {
						f.listings.drop(f.nodes.root) // as a change does
					}
				}
				if !leave && len(seen) != len(want) {
					t.Errorf("round %d: %d entries, want %d", round, len(seen), len(want))
				}
				for name := range seen {
					if !want[name] {
						t.Errorf("%q is listed", name)
					}
				}
			}
			if read < 20 {
				t.Errorf("read ahead %d times", read)
			}
			f.listings.drop(nil)
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors are open, %d before", after, before)
			}
			ahead.Wait()
		})
	}
}

// TestShortListingsAreNotReadAhead has a directory that two answers hold.
func TestShortListingsAreNotReadAhead(t *testing.T) {
	f := unmounted(t)
	for i := range 300 {
		var out fuse.EntryOut
		if s := f.Mknod(nil, &fuse.MknodIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, Mode: unix.S_IFREG | 0o644}, fmt.Sprint("file", i), &out); !s.Ok() {
			t.Fatal(s)
		}
	}
	for off, answers := uint64(0), 0; ; answers++ {
		entries := answer(t, f, off, 8192, false)
		if len(entries) == 0 {
			if answers != 2 {
				t.Errorf("%d answers", answers)
			}
			return
		}
		off = entries[len(entries)-1].Off
		if f.listings.long(fuse.FUSE_ROOT_ID) != nil {
			t.Fatalf("to be read ahead after answer %d", answers+1)
		}
	}
}

// TestReadAheadFails has a directory that cannot be read on: what was read before is listed, then comes the error, if it is still there.
func TestReadAheadFails(t *testing.T) {
	t.Run("for good", func(t *testing.T) { testReadAheadFails(t, true) })
	t.Run("once", func(t *testing.T) { testReadAheadFails(t, false) })
}

func testReadAheadFails(t *testing.T, forGood bool) {
	f := unmounted(t)
	d, err := f.dir(f.nodes.root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.dirs.release(d)
	for i := range 100 {
		var out fuse.EntryOut
		if s := f.Mknod(nil, &fuse.MknodIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, Mode: unix.S_IFREG | 0o644}, fmt.Sprint("file", i), &out); !s.Ok() {
			t.Fatal(s)
		}
	}
	entries := answer(t, f, 0, 512, false)
	l := f.listings.long(fuse.FUSE_ROOT_ID)
	if l != nil {
		t.Fatal("to be read ahead at once")
	}
	l, err = f.listings.take(d, entries[len(entries)-1].Off)
	if err != nil {
		t.Fatal(err)
	}
	directory, err := unix.FcntlInt(uintptr(l.fd), unix.F_DUPFD_CLOEXEC, 0) // at the same place
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(directory)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := unix.Dup3(int(file.Fd()), l.fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	l.ahead = listingSize - maxDirent
	f.listings.keep(l)
	if l = f.listings.long(fuse.FUSE_ROOT_ID); l == nil {
		t.Fatal("not to be read ahead")
	}
	f.readAhead(l)
	if !forGood {
		if err := unix.Dup3(directory, l.fd, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
	}
	seen := len(entries)
	for {
		off := entries[len(entries)-1].Off
		out := fuse.NewDirEntryList(make([]byte, 8192), off)
		if s := f.ReadDir(nil, readIn(off), out); !s.Ok() {
			if s != fuse.ENOTDIR || !forGood {
				t.Errorf("%v", s)
			}
			break
		}
		if entries, err = fuse.ParseDirEntries(out.Bytes()); err != nil || len(entries) == 0 && forGood {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
		if len(entries) == 0 {
			break
		}
		seen += len(entries)
	}
	if seen != 102 {
		t.Errorf("%d entries before the error, want 102", seen)
	}
	if len(f.listings.lru) != 0 {
		t.Errorf("%d listings are kept", len(f.listings.lru))
	}
}

// TestGivenUpWhileReadAhead has so many listings kept that one is given up which is being read ahead: it is not closed before that is over.
func TestGivenUpWhileReadAhead(t *testing.T) {
	f := unmounted(t)
	d, err := f.dir(f.nodes.root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.dirs.release(d)
	take := func() *listing {
		l, err := f.listings.take(d, 0)
		if err != nil {
			t.Fatal(err)
		}
		l.ahead = 1000
		return l
	}
	f.listings.keep(take())
	l := f.listings.long(fuse.FUSE_ROOT_ID)
	others := make([]*listing, maxListings)
	for i := range others {
		others[i] = take()
	}
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		for _, other := range others {
			f.listings.keep(other)
		}
	}()
	for isKept := true; isKept; runtime.Gosched() {
		f.listings.mu.Lock()
		isKept = slices.Contains(f.listings.lru, l)
		f.listings.mu.Unlock()
	}
	select {
	case <-kept:
		t.Error("who gives up the listing does not wait")
	default:
	}
	f.readAhead(l)
	<-kept
	if l.fd >= 0 {
		t.Error("the listing is open")
	}
	if n := len(f.listings.lru); n != maxListings {
		t.Errorf("%d listings are kept", n)
	}
}

// TestReadAheadPanics has a bug: it costs no more than what was to be read ahead.
func TestReadAheadPanics(t *testing.T) {
	f := unmounted(t)
	f.log = slog.New(slog.DiscardHandler)
	d, err := f.dir(f.nodes.root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.dirs.release(d)
	l, err := f.listings.take(d, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.last, l.ahead, l.rest = 1, 1000, l.buf[:20] // no entry is so short
	f.listings.keep(l)
	request := make([]byte, 40)
	binary.NativeEndian.PutUint32(request[4:], opReadDirPlus)
	binary.NativeEndian.PutUint64(request[16:], fuse.FUSE_ROOT_ID)
	then := f.afterwards(request)
	if then == nil {
		t.Fatal("not to be read ahead")
	}
	then()
	f.listings.drop(nil) // does not wait
}

func readIn(off uint64) *fuse.ReadIn {
	return &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, Offset: off}
}

// answer returns the entries of the root that an answer of so many bytes has.
func answer(t *testing.T, f *FS, off uint64, size int, plus bool) (entries []fuse.DirEntry) {
	t.Helper()
	out := fuse.NewDirEntryList(make([]byte, size), off)
	var err error
	if !plus {
		if s := f.ReadDir(nil, readIn(off), out); !s.Ok() {
			t.Fatal(s)
		}
		entries, err = fuse.ParseDirEntries(out.Bytes())
	} else {
		if s := f.ReadDirPlus(nil, readIn(off), out); !s.Ok() {
			t.Fatal(s)
		}
		var outs []fuse.EntryOut
		entries, outs, err = fuse.ParseDirLookupEntries(out.Bytes())
		for i := range outs {
			if outs[i].NodeId != 0 {
				f.Forget(outs[i].NodeId, 1)
			} else if name := entries[i].Name; name != "." && name != ".." {
				t.Errorf("%q has no attributes", name)
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
