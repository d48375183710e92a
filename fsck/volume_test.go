package fsck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/local"
	"github.com/kmsfs/kmsfs/names"
	"github.com/kmsfs/kmsfs/volume"
)

// A tree is a volume that a test fills by hand, entry by entry as docs/format.md says.
type tree struct {
	dir string
	v   *volume.Volume
	k   keyring.Keyring
	ids map[string][16]byte // by ciphertext path
}

func newTree(t testing.TB, p volume.Params) *tree {
	t.Helper()
	tmp := t.TempDir()
	k, err := local.Generate(filepath.Join(tmp, "cmk"))
	must(t, err)
	if p.Algorithm == 0 {
		p.Algorithm, p.SegmentSize = header.AES256GCM, 4096
	}
	dir := filepath.Join(tmp, "cipher")
	_, err = volume.Create(t.Context(), dir, p, k)
	must(t, err)
	tr := &tree{dir: dir, k: k}
	tr.open(t)
	tr.ids = map[string][16]byte{dir: tr.v.Header().FileID}
	return tr
}

// open opens the volume, again if need be.
func (tr *tree) open(t testing.TB) {
	t.Helper()
	if tr.v != nil {
		tr.v.Close()
	}
	v, err := volume.Open(tr.dir)
	must(t, err)
	must(t, v.Unlock(t.Context(), tr.k))
	tr.v = v
	t.Cleanup(func() { v.Close() })
}

// entry returns the ciphertext path of a new entry, and makes its side links.
func (tr *tree) entry(t testing.TB, dir, name string) string {
	t.Helper()
	e, err := tr.v.Names().Name(tr.ids[dir], name)
	must(t, err)
	if e.Long {
		one, two := names.SideLinks(e.Disk)
		must(t, os.Symlink(e.Sealed, filepath.Join(dir, one)))
		must(t, os.Symlink(e.Sealed, filepath.Join(dir, two)))
	}
	return filepath.Join(dir, e.Disk)
}

func (tr *tree) mkdir(t testing.TB, dir, name string) string {
	t.Helper()
	path := tr.entry(t, dir, name)
	must(t, os.Mkdir(path, 0o755))
	id := names.NewDirID()
	tr.ids[path] = id
	must(t, os.Symlink(tr.v.Names().SealDirID(id), filepath.Join(path, names.DirLink)))
	must(t, os.Symlink(tr.v.Names().SealDirID(id), filepath.Join(path, names.DirLinkCopy)))
	return path
}

func (tr *tree) symlink(t testing.TB, dir, name, target string) string {
	t.Helper()
	path := tr.entry(t, dir, name)
	sealed := tr.v.Names().SealTarget(target)
	disk := sealed.Disk
	if sealed.Long() {
		id := header.NewID()
		disk = names.LongTarget(id)
		must(t, os.WriteFile(filepath.Join(tr.dir, volume.MetaDir, volume.LinksDir, id.String()), sealed.Blob, 0o600))
	}
	must(t, os.Symlink(disk, path))
	return path
}

func (tr *tree) setxattr(t testing.TB, path, name, value string) string {
	t.Helper()
	x, ok := tr.v.Names().XattrName(name)
	if !ok {
		t.Fatalf("no attribute %s", name)
	}
	must(t, unix.Lsetxattr(path, x.Disk, tr.v.Names().SealXattr(x, []byte(value)), 0))
	return x.Disk
}

// file makes a file, with holes if edit says so.
func (tr *tree) file(t testing.TB, dir, name string, content []byte, edit ...func(f *blockcrypt.File) error) string {
	t.Helper()
	path := tr.entry(t, dir, name)
	osFile, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	must(t, err)
	defer osFile.Close()
	l, err := tr.v.Layout()
	must(t, err)
	f, err := blockcrypt.Open(cipherdir.File{File: osFile}, l, nil, tr.v.NewFile)
	must(t, err)
	_, err = f.WriteAt(content, 0)
	must(t, err)
	for _, e := range edit {
		must(t, e(f))
	}
	must(t, f.Flush())
	return path
}

// check checks the volume, opened anew.
func (tr *tree) check(t testing.TB, repair bool) (Report, []Fault) {
	t.Helper()
	tr.open(t)
	var faults []Fault
	report, err := Check(t.Context(), tr.v, Options{Repair: repair, Fault: func(f Fault) { faults = append(faults, f) }})
	must(t, err)
	return report, faults
}

// sound expects no fault at all.
func (tr *tree) sound(t testing.TB) {
	t.Helper()
	if report, faults := tr.check(t, false); len(faults) > 0 {
		t.Fatalf("%+v: %v", report, faults)
	}
}

// An expectation is what a fault must be.
type expectation struct {
	kind       Kind
	sealed     string // ciphertext path
	plain      string
	repairable bool
}

// faulty expects exactly these faults, in any order.
func (tr *tree) faulty(t testing.TB, want ...expectation) []Fault {
	t.Helper()
	report, faults := tr.check(t, false)
	if len(faults) != len(want) || report.Repaired != 0 {
		t.Errorf("%d faults, want %d:\n%v", len(faults), len(want), faults)
	}
	for _, w := range want {
		if !slices.ContainsFunc(faults, func(f Fault) bool {
			return f.Kind == w.kind && f.Ciphertext == w.sealed && f.Plaintext == w.plain && f.Repairable == w.repairable && f.Cause != ""
		}) {
			t.Errorf("no fault is %+v:\n%v", w, faults)
		}
	}
	return faults
}

// mended repairs, and expects nothing to be left.
func (tr *tree) mended(t testing.TB) {
	t.Helper()
	report, faults := tr.check(t, true)
	if report.Faults == 0 && report.Leftovers == 0 || report.Faults != report.Repaired {
		t.Errorf("repair: %+v: %v", report, faults)
	}
	tr.sound(t)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func relinkTo(t testing.TB, path, target string) {
	t.Helper()
	must(t, os.Remove(path))
	must(t, os.Symlink(target, path))
}

// flipped changes a character of a base64 string.
func flipped(s string) string {
	if s[5] == 'A' {
		return s[:5] + "B" + s[6:]
	}
	return s[:5] + "A" + s[6:]
}

// content is n bytes, none of them zero.
func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i%251) + 1
	}
	return b
}

var long = strings.Repeat("long name ", 24)

// full is a volume with one of everything.
func full(t testing.TB, p volume.Params) *tree {
	t.Helper()
	tr := newTree(t, p)
	sub := tr.mkdir(t, tr.dir, "dir")
	deep := tr.mkdir(t, sub, long)
	tr.file(t, tr.dir, "file", content(3*4096+100))
	tr.file(t, sub, "holes", content(10), func(f *blockcrypt.File) error { return f.Truncate(1 << 30) })
	tr.file(t, deep, long+"file", content(5))
	must(t, os.WriteFile(tr.entry(t, deep, "empty"), nil, 0o600))
	tr.symlink(t, deep, "link", "target")
	tr.symlink(t, sub, "long link", strings.Repeat("t", 4000))
	must(t, unix.Mkfifo(tr.entry(t, tr.dir, "fifo"), 0o600))
	path := tr.file(t, tr.dir, "attributes", content(1))
	tr.setxattr(t, path, "user.a", "value")
	tr.setxattr(t, path, "user."+strings.Repeat("x", 240), "value of a long name")
	must(t, unix.Setxattr(path, "user.kmsfs-new", make([]byte, 8), 0))
	must(t, os.Link(path, tr.entry(t, sub, "hard link")))
	return tr
}

func TestSound(t *testing.T) {
	for _, p := range []volume.Params{
		{}, {Algorithm: header.AES128GCM, SegmentSize: 8192}, {Algorithm: header.SM4128GCM, SegmentSize: 65536, Context: keyring.EncryptionContext{"a": "b"}},
	} {
		tr := full(t, p)
		report, faults := tr.check(t, true)
		want := Report{Directories: 3, Files: 6, Links: 2, Others: 1, Bytes: report.Bytes}
		if report != want || len(faults) > 0 {
			t.Errorf("%+v, want %+v: %v", report, want, faults)
		}
		if report.Bytes < 4*4096 || report.Bytes > 4<<20 {
			t.Errorf("read %d bytes: holes must cost nothing", report.Bytes)
		}
	}
}

func TestPlaintextNames(t *testing.T) {
	tr := newTree(t, volume.Params{Algorithm: header.AES256GCM, SegmentSize: 4096, PlaintextNames: true})
	must(t, os.Mkdir(filepath.Join(tr.dir, "kmsfs.dir"), 0o755))
	must(t, os.Mkdir(filepath.Join(tr.dir, "lost+found"), 0o755))
	sealed := tr.file(t, tr.dir, "x", content(100))
	path := filepath.Join(tr.dir, "lost+found", "plain name")
	must(t, os.Rename(sealed, path))
	tr.sound(t)
	flipByte(t, path, 2100)
	tr.faulty(t, expectation{Content, path, "/lost+found/plain name", false})
}

func flipByte(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	must(t, err)
	b[0] ^= 0x10
	_, err = f.WriteAt(b[:], at)
	must(t, err)
}

func TestCancelled(t *testing.T) {
	tr := full(t, volume.Params{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Check(ctx, tr.v, Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestProgress(t *testing.T) {
	tr := newTree(t, volume.Params{})
	for i := range 20 {
		tr.file(t, tr.dir, fmt.Sprint(i), content(100000))
	}
	var last Progress
	report, err := Check(t.Context(), tr.v, Options{Progress: func(p Progress) {
		if p.Bytes < last.Bytes || p.Entries < last.Entries {
			t.Errorf("%+v after %+v", p, last)
		}
		last = p
	}})
	must(t, err)
	if last.Bytes != report.Bytes || last.Entries != 21 || report.Bytes < Size(t.Context(), tr.v)*9/10 {
		t.Errorf("%+v after %+v, of %d", last, report, Size(t.Context(), tr.v))
	}
}

// TestReadsOnly shows that a check without repair changes nothing, access times included where it may.
func TestReadsOnly(t *testing.T) {
	tr := full(t, volume.Params{})
	list := func() (all string) {
		must(t, filepath.WalkDir(tr.dir, func(path string, d os.DirEntry, err error) error {
			must(t, err)
			st, err := d.Info()
			must(t, err)
			all += fmt.Sprintln(path, st.Mode(), st.Size(), st.ModTime())
			return nil
		}))
		return all
	}
	before := list()
	tr.check(t, false)
	if after := list(); after != before {
		t.Errorf("%s\n%s", before, after)
	}
}
