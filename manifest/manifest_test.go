package manifest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring/local"
	"github.com/kmsfs/kmsfs/volume"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newVolume makes a volume with plaintext names, which is easily filled by hand.
func newVolume(t testing.TB) *volume.Volume {
	t.Helper()
	tmp := t.TempDir()
	k, err := local.Generate(filepath.Join(tmp, "cmk"))
	must(t, err)
	dir := filepath.Join(tmp, "cipher")
	_, err = volume.Create(t.Context(), dir, volume.Params{Algorithm: header.AES256GCM, SegmentSize: 4096, PlaintextNames: true}, k)
	must(t, err)
	v, err := volume.Open(dir)
	must(t, err)
	t.Cleanup(func() { v.Close() })
	must(t, v.Unlock(t.Context(), k))
	return v
}

// sealed returns a ciphertext file of n bytes of plaintext; nobody will open its segments.
func sealed(t testing.TB, v *volume.Volume, n int64) []byte {
	t.Helper()
	h, _, err := v.NewFile()
	must(t, err)
	layout, err := v.Layout()
	must(t, err)
	b := append(h, make([]byte, layout.SealedSize(n)-int64(len(h)))...)
	rand.Read(b[len(h)+512:])
	return b
}

// add puts a file into the volume.
func add(t testing.TB, v *volume.Volume, path string, b []byte) string {
	t.Helper()
	path = filepath.Join(v.Dir(), path)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, b, 0o600))
	return path
}

var someTime = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func build(t testing.TB, v *volume.Volume, o Options) []byte {
	t.Helper()
	var b bytes.Buffer
	_, err := Build(t.Context(), v, someTime, o, &b, func(path, plain string, err error) { t.Errorf("%s: %v", path, err) })
	must(t, err)
	return b.Bytes()
}

// compare returns the differences, as kinds and paths.
func compare(t testing.TB, v *volume.Volume, text []byte) (got []string) {
	t.Helper()
	r, err := NewReader(bytes.NewReader(text))
	must(t, err)
	_, n, err := Compare(t.Context(), v, r, CompareOptions{}, func(d Difference) { got = append(got, string(d.Kind)+" "+d.Path) })
	must(t, err)
	if n != int64(len(got)) {
		t.Errorf("%d differences, told %d", n, len(got))
	}
	return got
}

// TestDeterminism builds one manifest with any number of workers, and any order of the directory.
func TestDeterminism(t *testing.T) {
	v := newVolume(t)
	for i := range 300 {
		add(t, v, fmt.Sprintf("dir%d/%d", i%7, i*7919%300), sealed(t, v, int64(i*400)+1))
	}
	must(t, os.Symlink("x", filepath.Join(v.Dir(), "dir3", "link")))
	want := build(t, v, Options{Workers: 1, Plain: true})
	for _, workers := range []int{1, 2, 16} {
		if got := build(t, v, Options{Workers: workers, Plain: true}); !bytes.Equal(got, want) {
			t.Errorf("%d workers: another manifest", workers)
		}
		if got := compare(t, v, want); len(got) > 0 {
			t.Errorf("%q", got)
		}
	}
	if n := bytes.Count(want, []byte("\n")); n != 5+1+7+300+1+1 {
		t.Errorf("%d lines", n)
	}
}

// TestOrder has names around the slash, which sorts before every other byte.
func TestOrder(t *testing.T) {
	paths := []string{"", "a", "a/\x01", "a/b", "a/b/c", "a/b\x01", "a\x01", "a ", "a!", "a-", "a-/x", "a.b", "ab", "b"}
	for i := range paths {
		for j := range paths {
			if got := before(paths[i], paths[j]); got != (i < j) {
				t.Errorf("before(%q, %q) is %v", paths[i], paths[j], got)
			}
		}
	}
	v := newVolume(t)
	for _, p := range paths[1:] {
		if p != "a" && p != "a/b" && p != "a-" {
			add(t, v, p, nil)
		}
	}
	r, err := NewReader(bytes.NewReader(build(t, v, Options{})))
	must(t, err)
	for _, want := range paths {
		if e, err := r.Next(); err != nil || e.Path != want {
			t.Fatalf("%v, %v, want %q", e, err, want)
		}
	}
}

// TestFlipEveryByte changes every byte of a file's header, and every 16th of the rest: the manifest does not cover the EDK list and the MAC over it, which every read of the file checks, and
// nothing else.
func TestFlipEveryByte(t *testing.T) {
	v := newVolume(t)
	b := sealed(t, v, 100)
	add(t, v, "neighbour", sealed(t, v, 100))
	path := add(t, v, "target", b)
	text := build(t, v, Options{})
	h, err := header.Parse(b)
	must(t, err)
	used, err := h.Used()
	must(t, err)
	missed := 0
	for i := range b {
		if i > used && i%16 != 0 {
			continue // the padding, the hole root and the slots are all alike
		}
		b[i] ^= 1
		must(t, os.WriteFile(path, b, 0o600))
		b[i] ^= 1
		got := compare(t, v, text)
		inEDKs := i > header.FixedSize+4 && i < used-64
		inMAC := i >= used-32 && i < used
		switch {
		case len(got) == 0 && (inEDKs || inMAC):
			missed++
		case len(got) != 1 || !strings.HasSuffix(got[0], " target"):
			t.Errorf("byte %d: %q", i, got)
		}
	}
	if missed < 100 {
		t.Errorf("only %d bytes of the EDK list and the MAC can be changed", missed)
	}
	for n := 0; n < len(b); n += 13 {
		must(t, os.WriteFile(path, b[:n], 0o600))
		if got := compare(t, v, text); len(got) != 1 {
			t.Errorf("cut to %d: %q", n, got)
		}
	}
	must(t, os.WriteFile(path, b, 0o600))
	if got := compare(t, v, text); len(got) > 0 {
		t.Errorf("restored: %q", got)
	}
}

// TestSparse digests a file of 64 GiB with little in it, and finds data that was moved or dropped.
func TestSparse(t *testing.T) {
	v := newVolume(t)
	head := sealed(t, v, 100)
	path := add(t, v, "sparse", head)
	layout, err := v.Layout()
	must(t, err)
	const huge = 64 << 30
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(layout.SealedSize(huge)))
	chunk := make([]byte, 4136)
	rand.Read(chunk)
	_, err = f.WriteAt(chunk, 32<<30)
	must(t, err)
	var text bytes.Buffer
	s, err := Build(t.Context(), v, someTime, Options{}, &text, func(_, _ string, err error) { t.Error(err) })
	must(t, err)
	if s.Bytes > 1<<20 {
		t.Errorf("read %d bytes", s.Bytes)
	}
	_, err = f.WriteAt(make([]byte, len(chunk)), 32<<30) // zeros that are stored
	must(t, err)
	_, err = f.WriteAt(chunk, 33<<30)
	must(t, err)
	if got := compare(t, v, text.Bytes()); !slices.Equal(got, []string{"changed sparse"}) {
		t.Errorf("data moved: %q", got)
	}
	_, err = f.WriteAt(chunk, 32<<30)
	must(t, err)
	_, err = f.WriteAt(make([]byte, len(chunk)), 33<<30)
	must(t, err)
	if got := compare(t, v, text.Bytes()); len(got) > 0 {
		t.Errorf("zeros in place of a hole: %q", got)
	}
}

// TestMemory builds and compares 20,000 entries, and finds no more on the heap than for the first of them.
func TestMemory(t *testing.T) {
	v := newVolume(t)
	one := add(t, v, "one of 20,001 names", nil)
	for d := range 200 {
		dir := filepath.Join(v.Dir(), fmt.Sprintf("a directory with a name that takes some room %03d", d))
		must(t, os.Mkdir(dir, 0o755))
		for f := range 100 {
			must(t, os.Link(one, filepath.Join(dir, fmt.Sprintf("a file with a name that takes some room %03d", f))))
		}
	}
	const allowed = 1 << 20 // all entries would take five times as much
	var progress atomic.Int64
	count := func(entries, _ int64) { progress.Store(entries) }
	file, err := os.Create(filepath.Join(t.TempDir(), "manifest"))
	must(t, err)
	defer file.Close()
	heap := &heap{stream: file, every: 2000} // an entry is one write
	s, err := Build(t.Context(), v, someTime, Options{Progress: count, Workers: 2}, heap, func(_, _ string, err error) { t.Error(err) })
	must(t, err)
	if s.Entries != 20_202 || progress.Load() != s.Entries || heap.most > heap.first+allowed || heap.calls < 20_000 {
		t.Errorf("build: %d entries, progress %d, %+v", s.Entries, progress.Load(), heap)
	}
	_, err = file.Seek(0, io.SeekStart)
	must(t, err)
	heap.first, heap.most, heap.calls, heap.every = 0, 0, 0, 5
	r, err := NewReader(heap)
	must(t, err)
	s, n, err := Compare(t.Context(), v, r, CompareOptions{Progress: count, Workers: 2}, func(d Difference) { t.Errorf("%+v", d) })
	must(t, err)
	if s.Entries != 20_202 || n != 0 || heap.most > heap.first+allowed || heap.calls < 20 {
		t.Errorf("compare: %d entries, %d differences, %+v", s.Entries, n, heap)
	}
}

// A heap looks at the heap at every so many reads or writes of a stream.
type heap struct {
	stream       io.ReadWriter
	every, calls int
	first, most  uint64 // bytes
}

func (h *heap) look() {
	if h.calls++; h.calls%h.every != 0 {
		return
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if h.first == 0 {
		h.first = m.HeapAlloc
	}
	h.most = max(h.most, m.HeapAlloc)
}

func (h *heap) Read(p []byte) (int, error)  { h.look(); return h.stream.Read(p) }
func (h *heap) Write(p []byte) (int, error) { h.look(); return h.stream.Write(p) }

// TestManyDifferences has more of them than are held.
func TestManyDifferences(t *testing.T) {
	v := newVolume(t)
	head := Head{Volume: v.Header().FileID, Time: someTime}
	var err error
	head.Header, err = volumeDigest(v, headerFiles()[0])
	must(t, err)
	text := head.append(nil)
	text = (&Entry{Type: Directory}).append(text, false)
	const n = maxHeld + 1000
	for i := range n {
		text = (&Entry{Type: FIFO, Path: fmt.Sprintf("pipe%06d", i)}).append(text, false)
	}
	text = fmt.Appendf(text, "end %d\n", n+1)
	got := compare(t, v, text)
	if len(got) != n+1 || got[n] != fmt.Sprintf("removed pipe%06d", n-1) {
		t.Errorf("%d differences, the last %q", len(got), got[len(got)-1])
	}
}

// TestUnreadable has a directory that cannot be read: it is told, and so is what is in it, but not as removed.
func TestUnreadable(t *testing.T) {
	v := newVolume(t)
	add(t, v, "dir/sub/file", sealed(t, v, 10))
	add(t, v, "z", sealed(t, v, 10))
	text := build(t, v, Options{})
	r, err := NewReader(bytes.NewReader(text))
	must(t, err)
	c := &comparison{r: r}
	var got []string
	c.tell = func(d Difference) { got = append(got, string(d.Kind)+" "+d.Path) }
	must(t, c.advance())
	_, _, err = walk(t.Context(), v, Options{}, func(f *found) error {
		switch {
		case f.Path == "dir":
			f.err, f.closed = unix.EIO, true
		case below(f.Path, "dir"):
			return nil
		}
		return c.found(f)
	})
	must(t, err)
	c.settle()
	if want := []string{"unreadable dir", "unreadable dir/sub", "unreadable dir/sub/file"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestSuspect has a file that a crash may have torn, which a mount shows as empty and empties: it counts as empty before that, too.
func TestSuspect(t *testing.T) {
	v := newVolume(t)
	path := add(t, v, "torn", sealed(t, v, 9000)[:700])
	text := build(t, v, Options{Suspect: func(int) bool { return true }})
	var found []error
	_, err := Build(t.Context(), v, someTime, Options{Suspect: func(int) bool { return false }}, io.Discard, func(_, _ string, err error) { found = append(found, err) })
	if !errors.Is(err, ErrUnsound) || len(found) != 1 || !errors.Is(found[0], ErrUnsound) {
		t.Errorf("%v, %v", found, err)
	}
	must(t, os.Truncate(path, 0))
	if got := compare(t, v, text); len(got) > 0 {
		t.Errorf("%q", got)
	}
}

// TestHeaderFiles damages each of the two files that hold the volume header.
func TestHeaderFiles(t *testing.T) {
	v, other := newVolume(t), newVolume(t)
	text := build(t, v, Options{})
	for _, file := range headerFiles() {
		path := filepath.Join(v.Dir(), file)
		b, err := os.ReadFile(path)
		must(t, err)
		anotherHeader, err := os.ReadFile(filepath.Join(other.Dir(), file))
		must(t, err)
		for name, damaged := range map[string][]byte{"cut": b[:700], "empty": nil, "magic": append([]byte("x"), b[1:]...), "another": anotherHeader} {
			must(t, os.WriteFile(path, damaged, 0o600))
			if got := compare(t, v, text); !slices.Equal(got, []string{"changed " + file}) {
				t.Errorf("%s: %q", name, got)
			}
			faults := 0
			if _, err := Build(t.Context(), v, someTime, Options{}, io.Discard, func(path, _ string, _ error) { faults++ }); !errors.Is(err, ErrUnsound) || faults == 0 {
				t.Errorf("%s: %d faults, %v", name, faults, err)
			}
		}
		must(t, os.Remove(path))
		if got := compare(t, v, text); !slices.Equal(got, []string{"changed " + file}) {
			t.Errorf("gone: %q", got)
		}
		must(t, os.WriteFile(path, b, 0o600))
	}
	if got := compare(t, v, text); len(got) > 0 {
		t.Errorf("restored: %q", got)
	}
}

func TestOtherVolume(t *testing.T) {
	a, b := newVolume(t), newVolume(t)
	r, err := NewReader(bytes.NewReader(build(t, a, Options{})))
	must(t, err)
	if _, _, err := Compare(t.Context(), b, r, CompareOptions{}, func(Difference) {}); !errors.Is(err, ErrOtherVolume) {
		t.Errorf("%v", err)
	}
}
