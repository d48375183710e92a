package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
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
	"time"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring/local"
	ciphertext "github.com/kmsfs/kmsfs/volume"
)

// keyIDs counts the files of a volume by data key.
func (v *volume) keyIDs(t testing.TB) map[header.ID]int {
	t.Helper()
	keys := make(map[header.ID]int)
	for _, path := range v.sealedFiles(t) {
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOATIME, 0)
		must(t, err)
		b := make([]byte, header.MaxSize)
		n, err := f.Read(b)
		f.Close()
		if err == io.EOF {
			continue
		}
		must(t, err)
		h, err := header.Parse(b[:n])
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		keys[h.KeyID]++
	}
	return keys
}

// age gives every file of a volume that is not mounted another data key, as if it had been there before the present one: that of a second volume under the same CMK. Nothing else about the
// files changes. It returns how many names they have.
func (v *volume) age(t testing.TB) (names int) {
	t.Helper()
	k, err := local.Open(v.cmk)
	must(t, err)
	open := func(dir string) *ciphertext.Volume {
		c, err := ciphertext.Open(dir)
		must(t, err)
		t.Cleanup(func() { c.Close() })
		must(t, c.Unlock(t.Context(), k))
		return c
	}
	present := open(v.cipher)
	h := present.Header()
	dir := filepath.Join(t.TempDir(), "older")
	_, err = ciphertext.Create(t.Context(), dir, ciphertext.Params{Algorithm: h.Algorithm, SegmentSize: h.SegmentSize, Context: h.Context}, k)
	must(t, err)
	older := open(dir)
	l, err := present.Layout()
	must(t, err)
	done := make(map[uint64]bool) // by inode number
	for _, path := range v.sealedFiles(t) {
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		if st.Size == 0 {
			continue
		}
		if names++; done[st.Ino] {
			continue
		}
		done[st.Ino] = true
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		raw := make([]byte, h.Size)
		_, err = f.ReadAt(raw, 0)
		must(t, err)
		c, err := present.OpenFile(t.Context(), raw)
		must(t, err)
		from, err := blockcrypt.Open(cipherdir.File{File: f}, l, c, nil)
		must(t, err)
		scratch, err := os.Create(filepath.Join(dir, "scratch"))
		must(t, err)
		to, err := blockcrypt.Open(cipherdir.File{File: scratch}, l, nil, older.NewFile)
		must(t, err)
		buf := make([]byte, 1<<20)
		for off := int64(0); off < from.Size(); {
			if off, err = from.SeekData(off); err != nil {
				break
			}
			hole, err := from.SeekHole(off)
			must(t, err)
			n := min(hole-off, int64(len(buf)))
			if _, err := from.ReadAt(buf[:n], off); err != nil && off+n < from.Size() {
				t.Fatal(err)
			}
			_, err = to.WriteAt(buf[:n], off)
			must(t, err)
			off += n
		}
		must(t, to.Flush())
		must(t, f.Truncate(0))
		shell(t, dir, fmt.Sprintf("cp --sparse=always scratch '/proc/%d/fd/%d'", os.Getpid(), f.Fd()))
		must(t, errors.Join(scratch.Close(), f.Close()))
		must(t, unix.UtimesNano(path, []unix.Timespec{st.Atim, st.Mtim}))
	}
	return names
}

// reencrypted is what kmsfs reencrypt --json prints.
type reencrypted struct {
	Files, Reencrypted, Bytes int
	Stragglers                []struct{ Ciphertext, Cause string }
	DryRun                    bool `json:"dry_run"`
}

func (v *volume) reencrypt(t testing.TB, args ...string) (r reencrypted) {
	t.Helper()
	must(t, json.Unmarshal([]byte(v.ok(t, append(append([]string{"reencrypt", "--json"}, args...), v.cipher)...)), &r))
	return r
}

// everything is tree with owners, attributes, ACLs, access times and hard links.
func everything(t testing.TB, dir string) string {
	t.Helper()
	return tree(t, dir) + shell(t, dir, `find . -type f -printf '%p %U %G %m %A@ %n\n' | sort
		find . -type d -printf '%p %U %G %m %T@\n' | sort
		find . -print0 | sort -z | xargs -0 getfattr -h -d -m - -e hex
		`) + links(t, dir)
}

// TestReencrypt rewrites a volume of all kinds of files, and finds nothing changed but the data key.
func TestReencrypt(t *testing.T) {
	for _, args := range [][]string{{"--algorithm", "sm4-128-gcm", "--context", "team=web"}, {"--plaintext-names", "--segment-size", "16384"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			v := newVolume(t, args...)
			fill(t, v.mount(t), 60)
			shell(t, v.plain, `
				mkdir -p other/deep; ln hardlink other/deep/again; ln hardlink other/'a name of its own'
				dd if=/dev/urandom of=holes bs=4096 seek=4000 count=3 status=none; truncate -s 300M holes; printf end >> holes
				setfattr -n user.colour -v green hardlink; setfattr -n trusted.secret -v 1 large; setfattr -n user.`+strings.Repeat("n", 200)+` -v long empty
				chown 1234:5678 dir1/sub1/file1; chmod 4755 dir1/sub1/file1; setfacl -m u:7:rw dir2/sub2/file2
				ln -s hardlink symlink; mkfifo fifo
				touch -a -d '2021-03-04 05:06:07.987654321' holes`)
			v.umount(t)
			names := v.age(t)
			v.mount(t)
			want := everything(t, v.plain)
			holes := dataRanges(t, filepath.Join(v.plain, "holes"))
			if len(holes) < 2 {
				t.Fatalf("no holes: %v", holes)
			}
			if r := v.run(t, "reencrypt", v.cipher); r.code != 7 || !strings.Contains(r.stderr, v.plain+"; unmount it first") {
				t.Errorf("mounted: exit code %d, %s", r.code, r.stderr)
			}
			v.umount(t)
			dry := v.reencrypt(t, "--dry-run")
			if !dry.DryRun || dry.Files != names || dry.Reencrypted != names || len(v.keyIDs(t)) != 1 {
				t.Errorf("dry run: %+v, want %d files", dry, names)
			}
			old := v.keyIDs(t)
			r := v.reencrypt(t)
			if r.DryRun || r.Files != names || r.Reencrypted != names || r.Bytes == 0 {
				t.Errorf("%+v, want %d files", r, names)
			}
			for id, n := range v.keyIDs(t) {
				if old[id] > 0 || n != names {
					t.Errorf("%d files of %d have data key %v", n, names, id)
				}
			}
			if again := v.reencrypt(t); again.Reencrypted != 0 || again.Files != names {
				t.Errorf("again: %+v", again)
			}
			if _, err := os.Lstat(filepath.Join(v.cipher, ".kmsfs/reencrypt")); !errors.Is(err, os.ErrNotExist) {
				t.Error("something is left behind")
			}
			v.ok(t, "fsck", v.cipher)
			v.mount(t)
			if got := everything(t, v.plain); got != want {
				t.Errorf("the tree has changed:\n%s", difference(want, got))
			}
			if got := dataRanges(t, filepath.Join(v.plain, "holes")); !slices.Equal(got, holes) {
				t.Errorf("data at %v, were at %v", got, holes)
			}
			// A write under one name is one under all.
			must(t, os.WriteFile(filepath.Join(v.plain, "other/deep/again"), []byte("new"), 0o644))
			if b, err := os.ReadFile(filepath.Join(v.plain, "hardlink")); err != nil || string(b) != "new" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

// dataRanges lists the parts of a file that are not holes: from and to.
func dataRanges(t testing.TB, path string) (ranges [][2]int64) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	for at := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return ranges
		}
		must(t, err)
		at, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		must(t, err)
		ranges = append(ranges, [2]int64{from, at})
	}
}

// difference is the lines that only one of two texts has.
func difference(a, b string) string {
	var d strings.Builder
	count := make(map[string]int)
	for line := range strings.Lines(a) {
		count[line]++
	}
	for line := range strings.Lines(b) {
		if count[line]--; count[line] < 0 {
			d.WriteString("+ " + line)
		}
	}
	for line := range strings.Lines(a) {
		if count[line]--; count[line] >= 0 {
			d.WriteString("- " + line)
		}
	}
	return d.String()
}

// TestReencryptKilled kills the command at random instants, again and again, until it comes to its end; in between, fsck and a mount find every file whole.
func TestReencryptKilled(t *testing.T) {
	v := newVolume(t)
	fill(t, v.mount(t), 100)
	shell(t, v.plain, `for i in $(seq 40); do seq $i 20000 > l$i; ln l$i dir$((i % 10))/m$i; ln l$i dir$((i * 7 % 10))/sub0/n$i; done`)
	v.umount(t)
	names := v.age(t)
	v.mount(t)
	want := contents(t, v.plain) + links(t, v.plain)
	v.umount(t)
	rng := rand.New(rand.NewPCG(1, 1))
	// How long a run takes is the machine's: each gets more time than the last.
	killed, patience := 0, 5*time.Millisecond
	for done := false; !done; patience += time.Duration(rng.Int64N(int64(patience / 3))) {
		if done = v.runKilled(t, patience, "reencrypt", v.cipher); !done {
			killed++
		}
		if killed%3 == 0 || done { // else the next run finds what this one has left
			v.ok(t, "fsck", v.cipher)
		}
		if killed%3 == 1 || done {
			v.mount(t)
			if got := contents(t, v.plain) + links(t, v.plain); got != want {
				t.Fatalf("killed %d times: the tree has changed:\n%s", killed, difference(want, got))
			}
			v.umount(t)
		}
	}
	if len(v.keyIDs(t)) != 1 || killed == 0 {
		t.Errorf("killed %d times, %v", killed, v.keyIDs(t))
	}
	if r := v.reencrypt(t); r.Files != names || r.Reencrypted != 0 {
		t.Errorf("%+v, want %d files", r, names)
	}
	t.Logf("killed %d times", killed)
}

// links tells which names are of one file.
func links(t testing.TB, dir string) string {
	t.Helper()
	return shell(t, dir, `find . -type f -links +1 -printf '%i %p %n\n' | sort -k2 | awk '{ if (!($1 in n)) n[$1] = $2; print n[$1], $2, $3 }'`)
}

// TestReencryptStragglers lists a file that is damaged, and rewrites the others.
func TestReencryptStragglers(t *testing.T) {
	v := newVolume(t, "--plaintext-names")
	fill(t, v.mount(t), 30)
	v.umount(t)
	names := v.age(t)
	bad := filepath.Join(v.cipher, "large")
	b, err := os.ReadFile(bad)
	must(t, err)
	b[5000] ^= 1
	must(t, os.WriteFile(bad, b, 0o600))
	v.refused(t, 4, []string{v.cipher, "1 files keep the data key"}, "reencrypt", v.cipher)
	r := v.run(t, "reencrypt", "--json", v.cipher)
	var report reencrypted
	must(t, json.Unmarshal([]byte(r.stdout), &report))
	if r.code != 4 || report.Files != names || report.Reencrypted != 0 || len(report.Stragglers) != 1 || report.Stragglers[0].Ciphertext != "large" {
		t.Errorf("exit code %d: %s", r.code, r.stdout)
	}
	if after, err := os.ReadFile(bad); err != nil || !bytes.Equal(after, b) {
		t.Errorf("the damaged file was changed: %v", err)
	}
	must(t, os.Remove(bad))
	v.ok(t, "fsck", v.cipher)
	if len(v.keyIDs(t)) != 1 {
		t.Errorf("%v", v.keyIDs(t))
	}
}

// TestReencryptRefused uses the command wrongly: nothing is changed.
func TestReencryptRefused(t *testing.T) {
	v := newVolume(t)
	other, _ := v.newCMK(t, "other")
	before := snapshot(t, v.dir, false)
	for _, tt := range []struct {
		code  int
		words []string
		args  []string
	}{
		{2, []string{"CIPHERDIR"}, nil},
		{2, []string{"one too many"}, []string{v.cipher, v.cipher}},
		{2, []string{"--dry"}, []string{"--dry", v.cipher}},
		{2, []string{"aws:kms:x"}, []string{"--cmk", "aws:kms:x", v.cipher}},
		{3, []string{v.plain}, []string{v.plain}},
		{3, []string{"none"}, []string{v.dir + "/none"}},
		{6, []string{"no EDK"}, []string{"--cmk", other, v.cipher}},
	} {
		v.refused(t, tt.code, tt.words, append([]string{"reencrypt"}, tt.args...)...)
	}
	if after := snapshot(t, v.dir, false); !maps.Equal(after, before) {
		t.Error("something has changed")
	}
}

// TestReencryptRotated gives a volume another data key, twice, and rewrites its files under the newest: one unwrap for each older data key.
func TestReencryptRotated(t *testing.T) {
	k := newKMS(t)
	v := bareVolume(t)
	v.ok(t, "init", "--cmk", k.alibaba, "--cmk", k.huawei, v.cipher)
	for i := range 3 {
		v.mount(t)
		must(t, os.Mkdir(filepath.Join(v.plain, fmt.Sprint(i)), 0o755))
		fill(t, filepath.Join(v.plain, fmt.Sprint(i)), 20)
		v.umount(t)
		if i < 2 {
			v.ok(t, "rotate", v.cipher)
		}
	}
	if n := len(v.keyIDs(t)); n != 3 {
		t.Fatalf("%d data keys", n)
	}
	v.mount(t)
	want := everything(t, v.plain)
	v.umount(t)
	k.ResetCalls()
	if r := v.reencrypt(t, "--cmk", k.alibaba); r.Files == 0 || r.Reencrypted*3 != r.Files*2 { // of two CMKs, a slow machine asks both
		t.Errorf("%+v", r)
	}
	if n := k.Count("", "Decrypt", "decrypt-datakey"); n != 3 {
		t.Errorf("%d unwraps, want 3: of the volume's, of new files', and of the one between", n)
	}
	if n := k.Count("", "Encrypt", "encrypt-datakey", "GenerateDataKey", "create-datakey"); n != 0 {
		t.Errorf("%d wraps", n)
	}
	if n := len(v.keyIDs(t)); n != 1 {
		t.Errorf("%d data keys", n)
	}
	v.mount(t)
	if got := everything(t, v.plain); got != want {
		t.Errorf("the tree has changed:\n%s", difference(want, got))
	}
	v.umount(t)
	v.ok(t, "fsck", v.cipher)
}

// TestReencryptPerFile has nothing to do where every file has a data key of its own.
func TestReencryptPerFile(t *testing.T) {
	v := newVolume(t, "--data-key", "per-file")
	v.refused(t, 2, []string{"every file has a data key of its own"}, "reencrypt", v.cipher)
}

// TestReencryptApart cannot bring the names of a file together, since something is mounted on both: a mount for writing is refused, a read-only one is not.
func TestReencryptApart(t *testing.T) {
	v := newVolume(t, "--plaintext-names")
	v.mount(t)
	shell(t, v.plain, "echo same > a; echo same > b")
	v.umount(t)
	work := v.cipher + "/.kmsfs/reencrypt"
	must(t, os.Mkdir(work, 0o700))
	a, err := os.ReadFile(v.cipher + "/a")
	must(t, err)
	b, err := os.ReadFile(v.cipher + "/b")
	must(t, err)
	must(t, os.Link(v.cipher+"/a", fmt.Sprintf("%s/%x", work, a[24:40])))
	note := fmt.Appendf(nil, "kmsfsnam%s%s\x00\x00\x00\x02\x00\x00\x00\x01a\x00\x00\x00\x01b", b[24:40], a[24:40]) // docs/format.md section 10.4
	sum := sha256.Sum256(note)
	must(t, os.WriteFile(fmt.Sprintf("%s/%x.names", work, a[24:40]), append(note, sum[:]...), 0o600))
	for _, name := range []string{"a", "b"} {
		path := filepath.Join(v.cipher, name)
		must(t, unix.Mount(path, path, "", unix.MS_BIND, ""))
		t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	}
	v.refused(t, 9, []string{`"b"`, "cannot be changed"}, "mount", v.cipher, v.plain)
	v.mount(t, "ro")
	if got := shell(t, v.plain, "cat a b"); got != "same\nsame\n" {
		t.Errorf("%q", got)
	}
	v.umount(t)
	for _, name := range []string{"a", "b"} {
		must(t, unix.Unmount(filepath.Join(v.cipher, name), unix.MNT_DETACH))
	}
	v.ok(t, "fsck", v.cipher)
	if got := links(t, v.mount(t)); !strings.Contains(got, "./b") {
		t.Errorf("the names are not together: %q", got)
	}
	v.umount(t)
}
