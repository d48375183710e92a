package reencrypt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/local"
	"github.com/kmsfs/kmsfs/volume"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A place is an unlocked volume with its journal, and another one like it, whose data key the files of the first have.
type place struct {
	t     testing.TB
	v     *volume.Volume
	other *volume.Volume
	j     *journal.Journal
}

func newVolume(t testing.TB, p volume.Params, k keyring.Keyring) *volume.Volume {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "volume")
	_, err := volume.Create(t.Context(), dir, p, k)
	must(t, err)
	v, err := volume.Open(dir)
	must(t, err)
	t.Cleanup(func() { v.Close() })
	must(t, v.Unlock(t.Context(), k))
	return v
}

func newPlace(t testing.TB, p volume.Params) *place {
	t.Helper()
	k, err := local.Generate(filepath.Join(t.TempDir(), "cmk"))
	must(t, err)
	w := &place{t: t, v: newVolume(t, p, k), other: newVolume(t, p, k)}
	must(t, w.v.Lock())
	w.j, err = journal.Open(w.v.RootFd(), w.v.MetaFd(), journal.Options{})
	must(t, err)
	t.Cleanup(func() { w.j.Close() })
	return w
}

func aes(segment int) volume.Params {
	return volume.Params{Algorithm: header.AES256GCM, SegmentSize: segment}
}

func (w *place) path(name string) string { return filepath.Join(w.v.Dir(), name) }

// A piece is bytes of a file; between pieces are holes.
type piece struct {
	off  int64
	data []byte
}

// create makes a file under the other volume's data key.
func (w *place) create(name string, pieces ...piece) {
	w.t.Helper()
	must(w.t, os.MkdirAll(filepath.Dir(w.path(name)), 0o700))
	f, err := os.OpenFile(w.path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	must(w.t, err)
	defer f.Close()
	l, err := w.other.Layout()
	must(w.t, err)
	data, err := blockcrypt.Open(cipherdir.File{File: f}, l, nil, w.other.NewFile)
	must(w.t, err)
	for _, p := range pieces {
		_, err := data.WriteAt(p.data, p.off)
		must(w.t, err)
	}
	must(w.t, data.Flush())
}

// content opens a file under whatever data key it has.
func (w *place) content(name string) (*blockcrypt.File, header.ID) {
	w.t.Helper()
	f, err := os.Open(w.path(name))
	must(w.t, err)
	w.t.Cleanup(func() { f.Close() })
	l, err := w.v.Layout()
	must(w.t, err)
	raw := make([]byte, w.v.Header().Size)
	if n, err := f.ReadAt(raw, 0); n == 0 && err == io.EOF {
		data, err := blockcrypt.Open(cipherdir.File{File: f}, l, nil, nil)
		must(w.t, err)
		return data, header.ID{}
	}
	h, err := w.v.FileHeader(w.t.Context(), raw)
	must(w.t, err)
	c, err := w.v.OpenFile(w.t.Context(), raw)
	must(w.t, err)
	data, err := blockcrypt.Open(cipherdir.File{File: f}, l, c, nil)
	must(w.t, err)
	return data, h.KeyID
}

// check compares a file's plaintext and holes with what they are to be, and its data key with the current one.
func (w *place) check(name string, want ...piece) {
	w.t.Helper()
	data, key := w.content(name)
	if len(want) > 0 && key != w.v.Header().KeyID {
		w.t.Errorf("%s has data key %v", name, key)
	}
	segment := int64(w.v.Header().SegmentSize)
	end := int64(0)
	for i, p := range want {
		if len(p.data) == 0 {
			continue
		}
		got := make([]byte, len(p.data))
		if _, err := data.ReadAt(got, p.off); err != nil && err != io.EOF || !bytes.Equal(got, p.data) {
			w.t.Errorf("%s: the bytes at %d differ: %v", name, p.off, err)
		}
		if first := (p.off) / segment * segment; i == 0 && first > 0 || i > 0 && first > (end+segment-1)/segment*segment {
			hole := (end + segment - 1) / segment * segment
			if got, err := data.SeekHole(hole); err != nil || got != hole {
				w.t.Errorf("%s: the hole at %d is at %d, %v", name, hole, got, err)
			}
			if got, err := data.SeekData(hole); err != nil || got != first {
				w.t.Errorf("%s: the data behind the hole at %d are at %d, %v", name, hole, got, err)
			}
		}
		end = p.off + int64(len(p.data))
	}
	if data.Size() != end {
		w.t.Errorf("%s has %d bytes, want %d", name, data.Size(), end)
	}
}

func (w *place) run(o Options) Report {
	w.t.Helper()
	r, err := Run(w.t.Context(), w.v, w.j, o)
	must(w.t, err)
	w.nothingLeft()
	return r
}

// nothingLeft finds nothing in the directory of new files.
func (w *place) nothingLeft() {
	w.t.Helper()
	if _, err := os.Stat(w.path(".kmsfs/reencrypt")); !errors.Is(err, os.ErrNotExist) {
		left, _ := filepath.Glob(w.path(".kmsfs/reencrypt/*"))
		w.t.Errorf("left behind: %q, %v", left, err)
	}
}

// state tells all about a tree but inode numbers and change times, of which a file gets others; raw adds the ciphertext.
func (w *place) state(raw bool) []string {
	w.t.Helper()
	var b strings.Builder
	names := make(map[uint64]string) // the first name of each inode
	must(w.t, filepath.WalkDir(w.v.Dir(), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == ".kmsfs" {
			return filepath.SkipDir
		} else if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		size := st.Size
		if d.IsDir() {
			size = 0
		}
		if !d.Type().IsRegular() {
			st.Atim = unix.Timespec{} // this reads it
		}
		first := names[st.Ino]
		if first == "" {
			names[st.Ino] = path
		}
		fmt.Fprintln(&b, path, st.Mode, st.Uid, st.Gid, size, st.Nlink, st.Atim, st.Mtim, first)
		if target, err := os.Readlink(path); err == nil {
			fmt.Fprintln(&b, "to", target)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		attrs, err := attributes(f)
		for _, name := range slices.Sorted(maps.Keys(attrs)) {
			fmt.Fprintf(&b, "%s=%x\n", name, sha256.Sum256(attrs[name]))
		}
		if raw && size < 1<<30 {
			sum := sha256.New()
			_, e := io.Copy(sum, f)
			fmt.Fprintf(&b, "%x\n", sum.Sum(nil))
			err = errors.Join(err, e)
		}
		// Reading has changed the access time.
		return errors.Join(err, setTimes(int(f.Fd()), &st))
	}))
	return strings.Split(b.String(), "\n")
}

// unchanged compares two states.
func unchanged(t testing.TB, before, after []string) {
	t.Helper()
	for i := range max(len(before), len(after)) {
		if i >= len(before) || i >= len(after) || before[i] != after[i] {
			t.Fatalf("something has changed: %q, now %q", before[min(i, len(before)):][:1], after[min(i, len(after)):][:1])
		}
	}
}

func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i < n; i += 8 {
		for k, v := i, rng.Uint64(); k < min(i+8, n); k++ {
			b[k], v = byte(v), v>>8
		}
	}
	return b
}

// decorate gives a file attributes, an ACL, another owner where that is possible, a mode and times.
func (w *place) decorate(name string) {
	w.t.Helper()
	path := w.path(name)
	must(w.t, os.Chmod(path, 0o640))
	must(w.t, unix.Setxattr(path, "user.kmsfs.Zm9v", []byte("sealed"), 0))
	must(w.t, unix.Setxattr(path, "user.kmsfs.large", bytes.Repeat([]byte("x"), 1500), 0))
	// version 2; the owner rw, user 7 rw, the group r, the mask rw, others nothing
	acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 6, 0, 7, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}
	must(w.t, unix.Setxattr(path, "system.posix_acl_access", acl, 0))
	if os.Geteuid() == 0 {
		must(w.t, unix.Setxattr(path, "trusted.kmsfs.YmFy", []byte("sealed, too"), 0))
		must(w.t, os.Chown(path, 1234, 5678))
		must(w.t, unix.Chmod(path, 0o4751))
	}
	must(w.t, unix.UtimesNano(path, []unix.Timespec{{Sec: 1234567890, Nsec: 123456789}, {Sec: 987654321, Nsec: 987654321}}))
}

// TestRun rewrites files of all kinds, for every algorithm and several segment sizes, and finds nothing changed but the data key.
func TestRun(t *testing.T) {
	for _, p := range []volume.Params{
		aes(4096),
		{Algorithm: header.AES128GCM, SegmentSize: 65536, Context: keyring.EncryptionContext{"project": "demo"}},
		{Algorithm: header.SM4128GCM, SegmentSize: 4096, PlaintextNames: true},
	} {
		t.Run(fmt.Sprint(p.Algorithm, " ", p.SegmentSize), func(t *testing.T) {
			w := newPlace(t, p)
			s := int64(p.SegmentSize)
			files := map[string][]piece{
				"empty":       nil,
				"one byte":    {{0, []byte("x")}},
				"a segment":   {{0, random(int(s), 1)}},
				"and a byte":  {{0, random(int(s)+1, 2)}},
				"dir/several": {{0, random(3<<20+17, 3)}},
				"dir/sub/holes": {
					{0, random(100, 4)}, {10 * s, random(int(2*s)+5, 5)}, {3647 * s, random(int(3*s), 6)}, {(3648 + 8*4096 + 7) * s, random(1, 7)}, {40000 * s, random(int(s)/2, 8)},
				},
				"dir/hole first": {{5*s + 1, random(10, 9)}},
				"huge hole":      {{1 << 40, random(int(s), 10)}},
				"linked":         {{0, random(2<<20, 11)}},
				".kmsfs.no":      {{0, random(5, 12)}},
				"dir/lost+found": {{0, random(5, 13)}},
			}
			if p.PlaintextNames {
				files[strings.Repeat("long", 63)+"abc"] = []piece{{0, random(5000, 14)}}
				files["\xff not UTF-8 \n"] = []piece{{0, random(5000, 15)}}
			} else {
				long := w.v.Names()
				e, err := long.Name(w.v.Header().FileID, strings.Repeat("long", 63))
				must(t, err)
				files[e.Disk] = []piece{{0, random(5000, 16)}}
				must(t, os.Symlink(e.Sealed, w.path("kmsfs.name.x")))
			}
			for name, pieces := range files {
				w.create(name, pieces...)
				w.decorate(name)
			}
			// A large file by itself: names of one file in several directories.
			for _, name := range []string{"dir/linked too", "dir/sub/once more", "z"} {
				must(t, os.Link(w.path("linked"), w.path(name)))
				files[name] = files["linked"]
			}
			must(t, os.Symlink("dir/several", w.path("symlink")))
			must(t, unix.Mkfifo(w.path("fifo"), 0o600))
			before := w.state(false)
			want := int64(len(files) - 1)

			dry := w.run(Options{DryRun: true})
			if dry.Files != want || dry.Reencrypted != want || dry.Bytes < 5<<20 || len(dry.Stragglers) > 0 {
				t.Errorf("dry run: %+v, want %d files", dry, want)
			}
			var told []Progress
			r := w.run(Options{Progress: func(p Progress) { told = append(told, p) }})
			if r.Files != want || r.Reencrypted != want || len(r.Stragglers) > 0 {
				t.Errorf("%+v, want %d files", r, want)
			}
			if last := told[len(told)-1]; last.Total < 5<<20 || last.Done != last.Total {
				t.Errorf("progress %+v", told)
			}
			unchanged(t, before, w.state(false))
			for name, pieces := range files {
				w.check(name, pieces...)
			}
			sealed := w.state(true)
			if again := w.run(Options{}); again.Reencrypted != 0 || again.Files != want || len(again.Stragglers) > 0 {
				t.Errorf("again: %+v", again)
			}
			unchanged(t, sealed, w.state(true))
		})
	}
}

// TestStragglers leaves alone what does not authenticate or has names elsewhere, and rewrites the others.
func TestStragglers(t *testing.T) {
	w := newPlace(t, aes(4096))
	outside := filepath.Join(t.TempDir(), "outside")
	for _, name := range []string{"sound", "header", "content", "cut", "zeroed", "foreign", "outside", "links/a", "links/b"} {
		if name == "links/b" {
			must(t, os.Link(w.path("links/a"), w.path(name)))
			continue
		}
		w.create(name, piece{0, random(20000, 1)})
	}
	change := func(name string, fn func(b []byte) []byte) {
		b, err := os.ReadFile(w.path(name))
		must(t, err)
		must(t, os.WriteFile(w.path(name), fn(b), 0o600))
	}
	flip := func(at int) func([]byte) []byte { return func(b []byte) []byte { b[at] ^= 1; return b } }
	change("header", flip(60))
	change("content", flip(15000))
	change("links/a", flip(15000))
	change("cut", func(b []byte) []byte { return b[:2048+2*4136] })
	change("zeroed", func(b []byte) []byte { clear(b[2048+4136:][:4136]); return b })
	change("foreign", func([]byte) []byte {
		other := newPlace(t, volume.Params{Algorithm: header.AES256GCM, SegmentSize: 4096, Context: keyring.EncryptionContext{"tenant": "other"}})
		other.create("x", piece{0, random(100, 1)})
		b, err := os.ReadFile(other.path("x"))
		must(t, err)
		return b
	})
	must(t, os.Link(w.path("outside"), outside))
	before := w.state(true)
	for range 2 {
		r := w.run(Options{})
		var got []string
		for _, s := range r.Stragglers {
			got = append(got, s.Ciphertext)
			if s.Cause == "" {
				t.Errorf("%s: no cause", s.Ciphertext)
			}
		}
		if want := []string{"content", "cut", "foreign", "header", "links/a", "links/b", "outside", "zeroed"}; !slices.Equal(got, want) {
			t.Errorf("%+v", r.Stragglers)
		}
		if r.Files != 9 {
			t.Errorf("%+v", r)
		}
	}
	after := w.state(true)
	for i, line := range after { // of the sound file, the ciphertext alone
		if line != before[i] && !strings.HasPrefix(after[max(i, 1)-1], w.path("sound")+" ") {
			t.Errorf("has changed: %s", line)
		}
	}
	w.check("sound", piece{0, random(20000, 1)})
}

// TestStopped rewrites nothing more when the caller gives up, and goes on in the next run.
func TestStopped(t *testing.T) {
	w := newPlace(t, aes(4096))
	for i := range 40 {
		w.create(fmt.Sprint(i), piece{0, random(2<<20, uint64(i))})
	}
	ctx, stop := context.WithCancel(t.Context())
	r, err := Run(ctx, w.v, w.j, Options{Workers: 2, Progress: func(p Progress) { stop() }})
	if !errors.Is(err, context.Canceled) || r.Reencrypted == 40 {
		t.Errorf("%+v, %v", r, err)
	}
	w.nothingLeft()
	if r = w.run(Options{}); len(r.Stragglers) > 0 || r.Files != 40 {
		t.Errorf("%+v", r)
	}
	for i := range 40 {
		w.check(fmt.Sprint(i), piece{0, random(2<<20, uint64(i))})
	}
}

// TestSymbolicLinkTraps follows no link that was put where a directory or a file was.
func TestSymbolicLinkTraps(t *testing.T) {
	w := newPlace(t, aes(4096))
	w.create("file", piece{0, []byte("content")})
	trap := newPlace(t, aes(4096))
	trap.create("inner/file", piece{0, []byte("elsewhere")})
	before := trap.state(true)
	must(t, os.Symlink(trap.path("inner"), w.path("dir")))
	must(t, os.Symlink(trap.path("inner/file"), w.path("link")))
	if r := w.run(Options{}); r.Files != 1 || r.Reencrypted != 1 {
		t.Errorf("%+v", r)
	}
	must(t, os.Symlink(trap.path("inner"), w.path(".kmsfs/reencrypt")))
	if _, err := Run(t.Context(), w.v, w.j, Options{}); err == nil {
		t.Error("new files go where a link leads")
	}
	unchanged(t, before, trap.state(true))
}
