package fsck

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/names"
	"github.com/kmsfs/kmsfs/volume"
)

// TestFlipEveryByte changes every byte of a small file in turn: each is found, and nothing else.
func TestFlipEveryByte(t *testing.T) {
	tr := newTree(t, volume.Params{})
	path := tr.file(t, tr.dir, "target", content(4096+50))
	tr.file(t, tr.dir, "neighbour", content(10))
	tr.sound(t)
	st, err := os.Stat(path)
	must(t, err)
	for at := range st.Size() {
		flipByte(t, path, at)
		found := 0
		_, err := Check(t.Context(), tr.v, Options{Fault: func(f Fault) {
			found++
			if f.Ciphertext != path || f.Plaintext != "/target" || f.SealedOff > at || at >= f.SealedOff+f.SealedLen {
				t.Errorf("byte %d: %v", at, f)
			}
		}})
		must(t, err)
		if found == 0 {
			t.Errorf("byte %d may be changed", at)
		}
		flipByte(t, path, at)
	}
	tr.sound(t)
}

// TestCutEveryLength cuts a small file at every length.
func TestCutEveryLength(t *testing.T) {
	tr := newTree(t, volume.Params{})
	path := tr.file(t, tr.dir, "target", content(4096+50))
	whole, err := os.ReadFile(path)
	must(t, err)
	check := func(what string, n int, b []byte) {
		t.Helper()
		must(t, os.WriteFile(path, b, 0o600))
		report, err := Check(t.Context(), tr.v, Options{})
		must(t, err)
		if sound := len(b) == 0 || len(b) == len(whole); sound != (report.Faults == 0) {
			t.Errorf("%s %d: %d faults", what, n, report.Faults)
		}
	}
	for n := range whole {
		check("cut to", n, whole[:n])
	}
	for n := 1; n < 9000; n += 97 {
		check("append zeros", n, append(bytes.Clone(whole), make([]byte, n)...))
		check("append old bytes", n, append(bytes.Clone(whole), append(whole[2048:], whole...)[:n]...))
	}
	check("restored", 0, whole)
}

// TestBoundaries damages a large file, one with hole maps, before, at and behind every kind of boundary.
func TestBoundaries(t *testing.T) {
	tr := newTree(t, volume.Params{})
	const size = 160 << 20 // two maps
	data := content(4096)
	path := tr.file(t, tr.dir, "target", data, func(f *blockcrypt.File) error {
		for _, off := range []int64{3647 * 4096, 3648 * 4096, 100 << 20, (3648 + 32768) * 4096, size - 4096} {
			if _, err := f.WriteAt(data, off); err != nil {
				return err
			}
		}
		return nil
	})
	tr.sound(t)
	slot := func(i int64) int64 { return 2048 + i*4136 }
	for _, boundary := range []int64{slot(0), slot(1), slot(3647), slot(3648), slot(3649), slot(3650), slot(3648 + 32769), slot(3648 + 32770), slot(3648 + 32771)} {
		for _, at := range []int64{boundary - 1, boundary, boundary + 1} {
			flipByte(t, path, at)
			report, err := Check(t.Context(), tr.v, Options{})
			must(t, err)
			if report.Faults == 0 {
				t.Errorf("byte %d may be changed", at)
			}
			flipByte(t, path, at)
		}
	}
	st, err := os.Stat(path)
	must(t, err)
	sealed := st.Size()
	for _, n := range []int64{slot(1), slot(3648), slot(3649), slot(3649) + 40, slot(3649) + 41, slot(3650), slot(36418), sealed - 4136, sealed - 1, sealed + 1, sealed + 4136} {
		// A cut drops the end, so a copy is cut.
		name := filepath.Join(tr.dir, "copy")
		must(t, copySparse(path, name, sealed, n))
		must(t, os.Rename(path, path+"x"))
		must(t, os.Rename(name, path))
		_, faults := tr.check(t, false)
		ours := 0
		for _, f := range faults {
			if f.Ciphertext == path {
				ours++
			}
		}
		if ours == 0 {
			t.Errorf("cut to %d of %d: no fault", n, sealed)
		}
		must(t, os.Rename(path+"x", path))
	}
	tr.sound(t)
}

// copySparse copies n bytes of a file of the given size, holes left out.
func copySparse(from, to string, size, n int64) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	for off := int64(0); off < size; {
		data, err := in.Seek(off, unix.SEEK_DATA)
		if err != nil {
			break // no more
		}
		buf := make([]byte, 1<<16)
		m, _ := in.ReadAt(buf, data)
		if _, err := out.WriteAt(buf[:m], data); err != nil {
			return err
		}
		off = data + int64(m)
	}
	return out.Truncate(n)
}

func TestZeroedSwappedForeign(t *testing.T) {
	tr := newTree(t, volume.Params{})
	path := tr.file(t, tr.dir, "target", content(5*4096), func(f *blockcrypt.File) error { return f.PunchHole(4096, 4096) })
	other := tr.file(t, tr.dir, "other", content(5*4096))
	foreign := newTree(t, volume.Params{})
	brought := foreign.file(t, foreign.dir, "x", content(5*4096))
	slot := func(b []byte, i int) []byte { return b[2048+i*4136:][:min(4136, len(b)-2048-i*4136)] }
	good, err := os.ReadFile(path)
	must(t, err)
	otherBytes, err := os.ReadFile(other)
	must(t, err)
	foreignBytes, err := os.ReadFile(brought)
	must(t, err)
	for name, c := range map[string]struct {
		edit     func(b []byte) []byte
		kind     Kind
		off, len int64
		cause    string
	}{
		"zeroed":       {func(b []byte) []byte { clear(slot(b, 2)); return b }, Content, 8192, 4096, "zeroed"},
		"swapped":      {func(b []byte) []byte { copy(slot(b, 2), slot(good, 3)); copy(slot(b, 3), slot(good, 2)); return b }, Content, 8192, 8192, "moved"},
		"doubled":      {func(b []byte) []byte { copy(slot(b, 2), slot(good, 3)); return b }, Content, 8192, 4096, "moved"},
		"dropped":      {func(b []byte) []byte { return append(b[:2048+4136:2048+4136], b[2048+2*4136:]...) }, Content, 4096, 3 * 4096, "moved"},
		"other's":      {func(b []byte) []byte { copy(slot(b, 2), slot(otherBytes, 2)); return b }, Content, 8192, 4096, "another file"},
		"cut":          {func(b []byte) []byte { return b[:2048+3*4136] }, Content, 12288, 0, "cut"},
		"hole root":    {func(b []byte) []byte { b[1600] ^= 1; return b }, HoleMap, 0, 0, "hole map"},
		"foreign":      {func([]byte) []byte { return foreignBytes }, Header, 0, 5 * 4096, "another volume"},
		"foreign slot": {func(b []byte) []byte { copy(slot(b, 4), slot(foreignBytes, 4)); return b }, Content, 4 * 4096, 4096, "another file"},
	} {
		must(t, os.WriteFile(path, c.edit(bytes.Clone(good)), 0o600))
		_, faults := tr.check(t, false)
		found := false
		for _, f := range faults {
			if f.Ciphertext != path || f.Plaintext != "/target" {
				t.Errorf("%s: %v", name, f)
			}
			found = found || f.Kind == c.kind && f.Off == c.off && f.Len == c.len && strings.Contains(f.Cause, c.cause)
		}
		if !found {
			t.Errorf("%s: no fault is %+v: %+v", name, c, faults)
		}
	}
}

// TestHeaderMended changes a header everywhere but in its magic and file ID: the content tells that the ID is right.
func TestHeaderMended(t *testing.T) {
	tr := newTree(t, volume.Params{})
	path := tr.file(t, tr.dir, "target", content(3*4096))
	good, err := os.ReadFile(path)
	must(t, err)
	for _, at := range []int{0, 9, 11, 12, 16, 20, 41, 57, 75, 80, 130, 200, 240, 260, 1535} {
		b := bytes.Clone(good)
		b[at] ^= 1
		must(t, os.WriteFile(path, b, 0o600))
		tr.faulty(t, expectation{Header, path, "/target", true})
		tr.mended(t)
	}
	b := bytes.Clone(good)
	b[30] ^= 1
	must(t, os.WriteFile(path, b, 0o600))
	if f := tr.faulty(t, expectation{Header, path, "/target", false}); f[0].Len != 3*4096 {
		t.Errorf("file ID changed: %+v", f)
	}
}

func TestVolumeHeader(t *testing.T) {
	for _, name := range []string{"volume", "volume.copy"} {
		tr := full(t, volume.Params{})
		path := filepath.Join(tr.dir, volume.MetaDir, name)
		for what, edit := range map[string]func(){
			"flip":  func() { flipByte(t, path, 100) },
			"lose":  func() { must(t, os.Remove(path)) },
			"cut":   func() { must(t, os.Truncate(path, 700)) },
			"empty": func() { must(t, os.Truncate(path, 0)) },
		} {
			edit()
			tr.faulty(t, expectation{VolumeHeader, path, "", true})
			t.Log(name, what)
			tr.mended(t)
		}
	}
}

func TestDirectoryIDs(t *testing.T) {
	tr := full(t, volume.Params{})
	sub := tr.mkdir(t, tr.dir, "sub")
	other := tr.mkdir(t, tr.dir, "other")
	tr.file(t, sub, "inside", content(5000))
	tr.file(t, other, "inside", content(5000))
	for _, name := range []string{names.DirLink, names.DirLinkCopy} {
		path := filepath.Join(sub, name)
		target, err := os.Readlink(path)
		must(t, err)
		otherTarget, err := os.Readlink(filepath.Join(other, name))
		must(t, err)
		for _, edit := range []func(){
			func() { must(t, os.Remove(path)) },
			func() { relinkTo(t, path, flipped(target)) },
			func() { relinkTo(t, path, "short") },
			func() { relinkTo(t, path, otherTarget) }, // the entries tell which is right
			func() { must(t, os.Remove(path)); must(t, os.WriteFile(path, []byte(target), 0o600)) },
		} {
			edit()
			tr.faulty(t, expectation{DirectoryID, path, "/sub", true})
			tr.mended(t)
			if got, err := os.Readlink(path); err != nil || got != target {
				t.Errorf("mended to %q, %v", got, err)
			}
		}
	}
	// Both lost: the names are, but the content is checked, and what is beside it.
	must(t, os.Remove(filepath.Join(sub, names.DirLink)))
	must(t, os.Remove(filepath.Join(sub, names.DirLinkCopy)))
	tr.faulty(t, expectation{DirectoryID, sub, "/sub", false})
	entry := tr.entry(t, sub, "inside")
	flipByte(t, entry, 3000)
	tr.faulty(t, expectation{DirectoryID, sub, "/sub", false}, expectation{Content, entry, "/sub/?", false})
}

// TestDirectoryIDsDisagree has two directories' IDs in one, with entries of both, as new files get after the first ID was brought there: neither ID may go, since names depend on it.
func TestDirectoryIDsDisagree(t *testing.T) {
	tr := newTree(t, volume.Params{})
	sub, other := tr.mkdir(t, tr.dir, "sub"), tr.mkdir(t, tr.dir, "other")
	tr.file(t, sub, "inside", content(10))
	foreign := tr.file(t, other, "new", content(10))
	must(t, os.Rename(foreign, filepath.Join(sub, filepath.Base(foreign))))
	for _, name := range []string{names.DirLink, names.DirLinkCopy} {
		path := filepath.Join(sub, name)
		right, err := os.Readlink(path)
		must(t, err)
		wrong, err := os.Readlink(filepath.Join(other, name))
		must(t, err)
		relinkTo(t, path, wrong)
		_, faults := tr.check(t, true)
		if !slices.ContainsFunc(faults, func(f Fault) bool { return f.Kind == DirectoryID && f.Ciphertext == sub && !f.Repairable }) {
			t.Errorf("%v", faults)
		}
		for _, link := range []string{names.DirLink, names.DirLinkCopy} {
			want := right
			if link == name {
				want = wrong
			}
			if got, err := os.Readlink(filepath.Join(sub, link)); err != nil || got != want {
				t.Errorf("%s was changed", link)
			}
		}
		relinkTo(t, path, right)
	}
}

// TestLostLongTarget damages a link whose target is stored elsewhere: a repair must not take that for a leftover.
func TestLostLongTarget(t *testing.T) {
	tr := newTree(t, volume.Params{})
	link := tr.symlink(t, tr.dir, "pointer", strings.Repeat("far/", 1000))
	target, err := os.Readlink(link)
	must(t, err)
	for _, damaged := range []string{"kmsfs.link." + header.NewID().String(), "short"} {
		relinkTo(t, link, damaged)
		tr.check(t, true)
		relinkTo(t, link, target)
		tr.sound(t)
	}
}

// TestDirectoryCopied has one directory's ID in another one.
func TestDirectoryCopied(t *testing.T) {
	tr := newTree(t, volume.Params{})
	a, b := tr.mkdir(t, tr.dir, "a"), tr.mkdir(t, tr.dir, "b")
	tr.file(t, a, "file", content(10))
	for _, name := range []string{names.DirLink, names.DirLinkCopy} {
		target, err := os.Readlink(filepath.Join(a, name))
		must(t, err)
		relinkTo(t, filepath.Join(b, name), target)
	}
	if _, faults := tr.check(t, false); len(faults) != 1 || faults[0].Kind != DirectoryID {
		t.Errorf("%v", faults)
	}
}

func TestLongNames(t *testing.T) {
	tr := full(t, volume.Params{})
	path := tr.file(t, tr.dir, long, content(5000))
	one, two := names.SideLinks(filepath.Base(path))
	for _, side := range []string{one, two} {
		link := filepath.Join(tr.dir, side)
		target, err := os.Readlink(link)
		must(t, err)
		for _, edit := range []func(){
			func() { must(t, os.Remove(link)) },
			func() { relinkTo(t, link, flipped(target)) },
		} {
			edit()
			tr.faulty(t, expectation{SideLink, link, "/" + long, true})
			tr.mended(t)
		}
	}
	must(t, os.Remove(filepath.Join(tr.dir, one)))
	must(t, os.Remove(filepath.Join(tr.dir, two)))
	tr.faulty(t, expectation{Name, path, "/?", false})
}

func TestNamesTargetsAttributes(t *testing.T) {
	tr := full(t, volume.Params{})
	file := tr.file(t, tr.dir, "victim", content(10))
	link := tr.symlink(t, tr.dir, "pointer", "somewhere")
	longLink := tr.symlink(t, tr.dir, "far pointer", strings.Repeat("far/", 1000))
	disk := tr.setxattr(t, file, "user.secret", "value")
	tr.sound(t)

	changed := filepath.Join(tr.dir, flipped(filepath.Base(file)))
	must(t, os.Rename(file, changed))
	tr.faulty(t, expectation{Name, changed, "/?", false})
	must(t, os.Rename(changed, file))

	target, err := os.Readlink(link)
	must(t, err)
	relinkTo(t, link, flipped(target))
	tr.faulty(t, expectation{LinkTarget, link, "/pointer", false})
	relinkTo(t, link, target)

	target, err = os.Readlink(longLink)
	must(t, err)
	blob := filepath.Join(tr.dir, volume.MetaDir, volume.LinksDir, strings.TrimPrefix(target, "kmsfs.link."))
	flipByte(t, blob, 2000)
	tr.faulty(t, expectation{LinkTarget, longLink, "/far pointer", false})
	flipByte(t, blob, 2000)
	must(t, os.Rename(blob, blob+"x"))
	tr.faulty(t, expectation{LinkTarget, longLink, "/far pointer", false})
	must(t, os.Rename(blob+"x", blob))

	value := make([]byte, 1000)
	n, err := unix.Getxattr(file, disk, value)
	must(t, err)
	for i := range n {
		value[i] ^= 1
		must(t, unix.Setxattr(file, disk, value[:n], 0))
		tr.faulty(t, expectation{Attribute, file, "/victim", false})
		value[i] ^= 1
	}
	must(t, unix.Setxattr(file, flippedTail(disk), value[:n], 0))
	must(t, unix.Removexattr(file, disk))
	tr.faulty(t, expectation{Attribute, file, "/victim", false})
}

// flippedTail is flipped for the last part of a dotted name.
func flippedTail(s string) string {
	i := strings.LastIndex(s, ".") + 1
	return s[:i] + flipped(s[i:])
}

// TestLeftovers has what crashes leave behind: none of it is damage, and repair takes it away.
func TestLeftovers(t *testing.T) {
	tr := full(t, volume.Params{})
	path := tr.file(t, tr.dir, long, content(10))
	must(t, os.Remove(path))
	link := tr.symlink(t, tr.dir, "gone", strings.Repeat("g", 4000))
	must(t, os.Remove(link))
	half := tr.mkdir(t, tr.dir, "half made")
	must(t, os.Remove(filepath.Join(half, names.DirLinkCopy)))
	report, faults := tr.check(t, false)
	if report.Faults != 0 || report.Leftovers != 4 {
		t.Errorf("%+v: %v", report, faults)
	}
	tr.check(t, true)
	tr.sound(t)
	must(t, os.Remove(filepath.Join(half, names.DirLink)))
	must(t, os.Remove(filepath.Join(half, names.DirLinkCopy)))
	if report, _ := tr.check(t, true); report.Faults != 0 || report.Leftovers != 1 {
		t.Errorf("%+v", report)
	}
}

// TestSuspect has a file that a crash may have torn: damage to it is no fault, to any other it is.
func TestSuspect(t *testing.T) {
	tr := newTree(t, volume.Params{})
	torn, other := tr.file(t, tr.dir, "torn", content(9000)), tr.file(t, tr.dir, "other", content(9000))
	must(t, os.Truncate(torn, 5000))
	flipByte(t, torn, 100)
	flipByte(t, other, 7000)
	st, err := os.Stat(torn)
	must(t, err)
	report, err := Check(t.Context(), tr.v, Options{Repair: true, Suspect: func(fd int) bool {
		var fst unix.Stat_t
		must(t, unix.Fstat(fd, &fst))
		return fst.Size == st.Size()
	}})
	must(t, err)
	if report.Faults != 1 || report.Leftovers == 0 || report.Repaired != 0 {
		t.Errorf("%+v", report)
	}
}

// TestSymbolicLinkTraps puts links where files and directories of the volume are: none is followed.
func TestSymbolicLinkTraps(t *testing.T) {
	tr := newTree(t, volume.Params{})
	outside := newTree(t, volume.Params{})
	outside.file(t, outside.dir, "x", content(10))
	dir := tr.mkdir(t, tr.dir, "dir")
	must(t, os.RemoveAll(dir))
	must(t, os.Symlink(outside.dir, dir))
	tr.faulty(t, expectation{LinkTarget, dir, "/dir", false})
	if report, _ := tr.check(t, true); report.Files != 0 || report.Links != 1 {
		t.Errorf("%+v", report)
	}
}

func TestRecover(t *testing.T) {
	tr := newTree(t, volume.Params{})
	want := content(6*4096 + 100)
	path := tr.file(t, tr.dir, "target", want, func(f *blockcrypt.File) error { return f.PunchHole(4096, 4096) })
	clear(want[4096:8192])
	good, err := os.ReadFile(path)
	must(t, err)
	for name, c := range map[string]struct {
		edit   func(b []byte) []byte
		lost   [2]int64 // plaintext range
		header bool
		size   int64
	}{
		"nothing":       {func(b []byte) []byte { return b }, [2]int64{}, false, int64(len(want))},
		"header":        {func(b []byte) []byte { b[200] ^= 1; return b }, [2]int64{}, true, int64(len(want))},
		"segment":       {func(b []byte) []byte { b[2048+3*4136+77] ^= 1; return b }, [2]int64{3 * 4096, 4 * 4096}, false, int64(len(want))},
		"cut":           {func(b []byte) []byte { return b[:2048+4*4136] }, [2]int64{}, false, 4 * 4096},
		"cut elsewhere": {func(b []byte) []byte { return b[:2048+4*4136+500] }, [2]int64{4 * 4096, 4*4096 + 460}, false, 4*4096 + 460},
	} {
		must(t, os.WriteFile(path, c.edit(bytes.Clone(good)), 0o600))
		src, err := os.Open(path)
		must(t, err)
		dstPath := filepath.Join(t.TempDir(), "out")
		dst, err := os.Create(dstPath)
		must(t, err)
		r, err := Recover(t.Context(), tr.v, src, dst)
		must(t, err)
		got, err := os.ReadFile(dstPath)
		must(t, err)
		expect := bytes.Clone(want[:min(c.size, int64(len(want)))])
		clear(expect[c.lost[0]:c.lost[1]])
		if !bytes.Equal(got, expect) || r.Size != c.size || r.Recovered != c.size-(c.lost[1]-c.lost[0]) || (r.Header != "") != c.header {
			t.Errorf("%s: %d bytes, %+v", name, len(got), r)
		}
		if damaged := name != "nothing" && name != "header"; damaged != (len(r.Lost) == 1) {
			t.Errorf("%s: lost %+v", name, r.Lost)
		}
	}
	b := bytes.Clone(good)
	b[30] ^= 1 // file ID
	must(t, os.WriteFile(path, b, 0o600))
	src, err := os.Open(path)
	must(t, err)
	dst, err := os.Create(filepath.Join(t.TempDir(), "out"))
	must(t, err)
	if r, err := Recover(t.Context(), tr.v, src, dst); err == nil || r.Recovered != 0 {
		t.Errorf("without a file ID: %+v, %v", r, err)
	}
}

// TestNewFiles has what a re-encryption leaves that was cut off: no damage, and repair takes it away.
func TestNewFiles(t *testing.T) {
	tr := newTree(t, volume.Params{})
	work := filepath.Join(tr.dir, volume.MetaDir, volume.WorkDir)
	must(t, os.Mkdir(work, 0o700))
	for _, name := range []string{"one", "two", "two.names"} {
		must(t, os.WriteFile(filepath.Join(work, name), content(5000), 0o600))
	}
	if report, faults := tr.check(t, false); report.Faults != 0 || report.Leftovers != 3 {
		t.Errorf("%+v: %v", report, faults)
	}
	tr.check(t, true)
	tr.sound(t)
}
