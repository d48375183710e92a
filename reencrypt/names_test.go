package reencrypt

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/header"
)

// names are those of one file, across directories.
func names() []string { return []string{"a", "dir/b", "dir/sub/c", "d"} }

// linked makes a file with several names, and a new file that is to take its place, as they are when the first name is about to be changed.
func linked(t *testing.T) (*place, *run, *replacement) {
	t.Helper()
	w := newPlace(t, aes(4096))
	w.create("a", piece{0, random(10000, 1)})
	w.decorate("a")
	w.create("dir/sub/alone", piece{0, random(10, 2)})
	for _, name := range names()[1:] {
		must(t, os.Link(w.path("a"), w.path(name)))
	}
	r := &run{ctx: t.Context(), v: w.v, j: w.j}
	var err error
	r.layout, err = w.v.Layout()
	must(t, err)
	r.work, err = makeWork(w.v)
	must(t, err)
	t.Cleanup(func() { r.work.Close() })
	r.exchange = &exchange{root: w.v.RootFd(), work: r.work}
	o, err := r.open("a")
	must(t, err)
	defer o.Close()
	must(t, o.readHeader(t.Context(), w.v))
	n, err := r.seal(t.Context(), o)
	must(t, err)
	n.paths = names()
	must(t, n.note(r.work))
	return w, r, n
}

// together checks that all names are those of one file, and returns its file ID.
func (w *place) together() header.ID {
	w.t.Helper()
	var first unix.Stat_t
	must(w.t, unix.Stat(w.path("a"), &first))
	for _, name := range names() {
		var st unix.Stat_t
		if err := unix.Stat(w.path(name), &st); err != nil || st.Ino != first.Ino {
			w.t.Errorf("%s is another file than a: %v", name, err)
		}
	}
	if int(first.Nlink) != len(names()) {
		w.t.Errorf("a has %d names", first.Nlink)
	}
	dir, err := cipherdir.OpenDir(w.v.RootFd(), ".")
	must(w.t, err)
	defer dir.Close()
	id, err := fileID(dir, "a")
	must(w.t, err)
	return id
}

// TestFinish goes on where a crash has come between the names of one file, wherever that was, and between the steps that follow.
func TestFinish(t *testing.T) {
	for moved := range len(names()) + 4 {
		t.Run(fmt.Sprint(moved), func(t *testing.T) {
			w, r, n := linked(t)
			before := w.state(false)
			half := *n
			half.paths = names()[:min(moved, len(names()))]
			must(t, r.exchange.move(&half, n.old, n.new))
			switch moved {
			case len(names()) + 1: // a name for it was made, and is not in place yet
				must(t, unix.Linkat(int(r.work.Fd()), n.new.String(), int(r.work.Fd()), n.new.String()+linkSuffix, 0))
			case len(names()) + 2: // the new file is under its names only
				remove(r.work, n.new.String())
			case len(names()) + 3: // all is over but for the directory
				n.remove(r.work)
			}
			must(t, Finish(w.v))
			if id := w.together(); id != n.new {
				t.Errorf("the names are those of file %v, want %v", id, n.new)
			}
			unchanged(t, before, w.state(false))
			must(t, Recover(w.v))
			w.nothingLeft()
			must(t, Finish(w.v))
			must(t, Recover(w.v))
			w.check("dir/sub/c", piece{0, random(10000, 1)})
		})
	}
}

// TestBack gives the old file back to all names if the new one is gone, or another.
func TestBack(t *testing.T) {
	for moved := range len(names()) {
		for _, forged := range []bool{false, true} {
			t.Run(fmt.Sprint(moved, forged), func(t *testing.T) {
				w, r, n := linked(t)
				half := *n
				half.paths = names()[:moved]
				must(t, r.exchange.move(&half, n.old, n.new))
				remove(r.work, n.new.String())
				if forged {
					must(t, os.WriteFile(w.path(".kmsfs/reencrypt/"+n.new.String()), random(9000, 3), 0o600))
				}
				before := w.state(false)
				must(t, Finish(w.v))
				if id := w.together(); id != n.old {
					t.Errorf("the names are those of file %v, want %v", id, n.old)
				}
				if moved == 0 {
					unchanged(t, before, w.state(false))
				}
				must(t, Recover(w.v))
				w.nothingLeft()
				if r := w.run(Options{}); r.Reencrypted != 5 || len(r.Stragglers) > 0 {
					t.Errorf("%+v", r)
				}
				w.together()
				w.check("d", piece{0, random(10000, 1)})
			})
		}
	}
}

// TestRunFinishes lets the next run go on where a crash came between the names of one file, and remove what is left of others.
func TestRunFinishes(t *testing.T) {
	w, r, n := linked(t)
	half := *n
	half.paths = names()[:2]
	must(t, r.exchange.move(&half, n.old, n.new))
	must(t, os.WriteFile(w.path(".kmsfs/reencrypt/"+header.NewID().String()), random(9000, 3), 0o600))
	must(t, os.WriteFile(w.path(".kmsfs/reencrypt/"+header.NewID().String()+noteSuffix), random(900, 3), 0o600))
	if r := w.run(Options{}); r.Files != 5 || r.Reencrypted != 1 || len(r.Stragglers) > 0 {
		t.Errorf("%+v", r)
	}
	if id := w.together(); id != n.new {
		t.Errorf("the names are those of file %v, want %v", id, n.new)
	}
}

// TestForgedNotes moves nothing that is not the file of the note, and nothing outside of the volume's tree.
func TestForgedNotes(t *testing.T) {
	w, r, n := linked(t)
	remove(r.work, n.new.String()+noteSuffix)
	outside := filepath.Join(filepath.Dir(w.v.Dir()), "outside")
	sealed, err := os.ReadFile(w.path("a"))
	must(t, err)
	must(t, os.WriteFile(outside, sealed, 0o600)) // the very file that the note is about
	must(t, os.WriteFile(w.path(".kmsfs/inside"), sealed, 0o600))
	must(t, os.Symlink(filepath.Dir(outside), w.path("up")))
	must(t, os.Symlink(outside, w.path("link")))
	for _, path := range []string{"../outside", outside, "up/outside", "link", ".kmsfs/inside", ".kmsfs", "dir/../../outside", "", ".", "dir", "dir/sub/alone", "none", "a/b", "dir//b"} {
		forged := *n
		forged.paths = []string{path}
		must(t, forged.note(r.work))
		_ = Finish(w.v)
		remove(r.work, n.new.String()+noteSuffix)
		for _, f := range []string{outside, w.path(".kmsfs/inside"), w.path("a")} {
			if got, err := os.ReadFile(f); err != nil || !bytes.Equal(got, sealed) {
				t.Fatalf("a note about %q has changed %s: %v", path, f, err)
			}
		}
	}
	if id := w.together(); id != n.old {
		t.Error("a forged note was followed")
	}
}

// TestNote finds that notes say what they said, and that what was cut or changed is none.
func TestNote(t *testing.T) {
	_, r, n := linked(t)
	path := filepath.Join(r.v.Dir(), ".kmsfs/reencrypt", n.new.String()+noteSuffix)
	b, err := os.ReadFile(path)
	must(t, err)
	got, err := parseNote(b)
	if err != nil || got.old != n.old || got.new != n.new || strings.Join(got.paths, "\n") != strings.Join(names(), "\n") {
		t.Errorf("%+v, %v", got, err)
	}
	for i := range b {
		if _, err := parseNote(b[:i]); !errors.Is(err, errNote) {
			t.Errorf("cut at %d: %v", i, err)
		}
		changed := bytes.Clone(b)
		changed[i] ^= 1
		if _, err := parseNote(changed); !errors.Is(err, errNote) {
			t.Errorf("changed at %d: %v", i, err)
		}
	}
}

// TestApart tells when the names of one file cannot be brought together, and does it once they can.
func TestApart(t *testing.T) {
	w, r, n := linked(t)
	half := *n
	half.paths = names()[:1]
	must(t, r.exchange.move(&half, n.old, n.new))
	remove(r.work, n.new.String())
	block := w.path(".kmsfs/reencrypt/" + n.old.String()) // where the old file would get a name
	must(t, os.Mkdir(block, 0o700))
	before := w.state(true)
	for range 2 {
		if err := Finish(w.v); !errors.Is(err, ErrApart) || !strings.Contains(err.Error(), "dir/b") {
			t.Errorf("%v", err)
		}
		if _, err := Run(t.Context(), w.v, w.j, Options{}); !errors.Is(err, ErrApart) {
			t.Errorf("run: %v", err)
		}
	}
	unchanged(t, before, w.state(true))
	must(t, os.Remove(block))
	must(t, Finish(w.v))
	if id := w.together(); id != n.old {
		t.Errorf("the names are those of file %v, want %v", id, n.old)
	}
}

func FuzzNote(f *testing.F) {
	n := &replacement{old: header.NewID(), new: header.NewID(), paths: names()}
	f.Add(n.encode())
	f.Add((&replacement{}).encode())
	f.Add([]byte(noteMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, sealNote(b)} {
			if n, err := parseNote(b); err == nil && !bytes.Equal(n.encode(), b) {
				t.Errorf("%x comes back as %x", b, n.encode())
			}
		}
	})
}

// sealNote gives a note the digest that it should have.
func sealNote(b []byte) []byte {
	b = append([]byte(noteMagic), b...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// TestNotesWithoutIDs plants notes about files that have no file ID. They are none: nothing is renamed or removed.
func TestNotesWithoutIDs(t *testing.T) {
	w, r, n := linked(t)
	n.remove(r.work)
	must(t, os.WriteFile(w.path("empty"), nil, 0o600))
	must(t, os.Symlink("a", w.path("link")))
	planted := header.NewID()
	content, err := os.ReadFile(w.path("dir/sub/alone"))
	must(t, err)
	must(t, os.WriteFile(w.path(".kmsfs/reencrypt/"+planted.String()), append(append(content[:24:24], planted[:]...), content[40:]...), 0o600))
	before := w.state(false)
	for i, forged := range []*replacement{
		{new: planted, paths: []string{"empty", "link", "nothing", "dir"}},
		{old: planted, paths: []string{"empty"}},
		{old: n.old, new: n.old, paths: []string{"a"}},
		{old: n.old, new: planted, paths: []string{"../a"}},
		{old: n.old, new: planted, paths: []string{".kmsfs/volume"}},
	} {
		name := fmt.Sprintf(".kmsfs/reencrypt/%032x.names", i)
		must(t, os.WriteFile(w.path(name), forged.encode(), 0o600))
		must(t, Finish(w.v))
		must(t, os.Remove(w.path(name)))
		unchanged(t, before, w.state(false))
		if _, err := os.Lstat(w.path("nothing")); err == nil {
			t.Error("an entry was made")
		}
	}
	must(t, Recover(w.v))
	w.nothingLeft()
}
