package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
)

// An upkeep is a command that changes every header of a volume, or every file, and what it leaves.
type upkeep struct {
	s       stack
	live    bool                                    // the volume is mounted meanwhile
	args    []string                                // of kmsfs; the volume is appended
	prepare func(lower string) error                // makes it necessary, while the volume is not mounted; may be nil
	done    func(h *header.Header) (problem string) // tells what is wrong with a header when it is over
}

// files are those that the volume holds, each under its first name.
func (u *upkeep) files() map[string][]byte {
	all := make(map[string][]byte)
	for i := range 24 {
		all[fmt.Sprintf("dir%d/file%d", i%4, i)] = pattern(i, int64(1+i*i*97))
	}
	all["large"] = pattern(100, 3<<20)
	all[strings.Repeat("long", 60)] = pattern(101, 5000)
	for i := range linked {
		all[names(i)[0]] = pattern(200+i, int64(500+i*100))
	}
	return all
}

// linked is how many files have several names.
const linked = 24

// names are those of the i-th file that has several.
func names(i int) []string {
	return []string{fmt.Sprint("linked", i), fmt.Sprintf("dir%d/again%d", i%4, i), fmt.Sprintf("dir%d/once more%d", (i+1)%4, i)}
}

func (u *upkeep) fill(top string) error {
	for i := range 4 {
		if err := os.Mkdir(filepath.Join(top, fmt.Sprint("dir", i)), 0o700); err != nil {
			return err
		}
	}
	for name, data := range u.files() {
		if err := os.WriteFile(filepath.Join(top, name), data, 0o600); err != nil {
			return err
		}
	}
	for i := range linked {
		for _, name := range names(i)[1:] {
			if err := os.Link(filepath.Join(top, names(i)[0]), filepath.Join(top, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare finds what is not as it was.
func (u *upkeep) compare(top string) (faults []fault) {
	for name, want := range u.files() {
		if got, err := os.ReadFile(filepath.Join(top, name)); err != nil || !bytes.Equal(got, want) {
			faults = append(faults, fault{Kind: lostBytes, Path: name, Detail: fmt.Sprintf("%d bytes of %d, or others: %v", len(got), len(want), err)})
		}
	}
	for i := range linked {
		var first unix.Stat_t
		for n, name := range names(i) {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(top, name), &st); err != nil || n > 0 && st.Ino != first.Ino || st.Nlink != 3 {
				faults = append(faults, fault{Kind: lostName, Path: name, Detail: fmt.Sprintf("is not one of three names of one file: %d names, %v", st.Nlink, err)})
			}
			if n == 0 {
				first = st
			}
		}
	}
	return faults
}

// run runs the command on the volume of a mounted stack.
func (u *upkeep) run(top, lower string) error {
	if !u.live {
		if err := u.kmsfs(lower, "umount", top); err != nil {
			return err
		}
	}
	return u.kmsfs(lower, append(slices.Clone(u.args), filepath.Join(lower, "cipher"))...)
}

// kmsfs runs the program with what the machine of a stack trusts.
func (u *upkeep) kmsfs(lower string, args ...string) error {
	return run(u.s.env(lower), append([]string{u.s.binary}, args...)...)
}

// examine finds every file whole after a cut, runs the command again, and finds all done and nothing damaged.
func (u *upkeep) examine(top, dir string, _ int) []fault {
	lower := filepath.Join(dir, "lower")
	cipher := filepath.Join(lower, "cipher")
	faults := u.compare(top)
	err := u.run(top, lower)
	if err == nil {
		faults = append(faults, u.headers(cipher)...)
		if u.live {
			err = u.kmsfs(lower, "umount", top)
		}
	}
	if err == nil {
		err = u.kmsfs(lower, "fsck", cipher)
	}
	if err == nil {
		err = u.kmsfs(lower, "mount", cipher, top)
	}
	if err == nil {
		faults = append(faults, u.compare(top)...)
		err = u.kmsfs(lower, "umount", top)
	}
	if err != nil {
		faults = append(faults, fault{Kind: stuck, Path: "/", Detail: err.Error()})
	}
	return faults
}

// headers finds those that are not done.
func (u *upkeep) headers(cipher string) (faults []fault) {
	n := 0
	err := filepath.WalkDir(cipher, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		own := filepath.Base(filepath.Dir(path)) == ".kmsfs"
		if !d.Type().IsRegular() || own && !strings.HasPrefix(d.Name(), "volume") {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil || len(b) == 0 {
			return err
		}
		h, err := header.Parse(b)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		n++
		if problem := u.done(h); problem != "" {
			faults = append(faults, fault{Kind: stuck, Path: strings.TrimPrefix(path, cipher), Detail: problem})
		}
		return nil
	})
	if want := len(u.files()) + 2*linked + 2; err != nil || n != want {
		faults = append(faults, fault{Kind: lostName, Path: "/", Detail: fmt.Sprintf("%d headers, want %d: %v", n, want, err)})
	}
	return faults
}

// cut cuts the power n times while the command runs.
func (u *upkeep) cut(t *testing.T, image string, n int) {
	t.Helper()
	dir := workdir(t)
	rng := rand.New(rand.NewPCG(seed(t), 7))
	begin, end := 0, 0
	rec, err := u.s.record(image, dir, rng, func(w *workload) error {
		err := errors.Join(u.fill(w.top), u.kmsfs(w.lower, "umount", w.top))
		if err == nil && u.prepare != nil {
			err = u.prepare(w.lower)
		}
		if err == nil {
			err = u.kmsfs(w.lower, "mount", filepath.Join(w.lower, "cipher"), w.top)
		}
		if err != nil {
			return err
		}
		f, err := os.Open(w.lower)
		if err == nil {
			err = errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
		}
		begin = w.position()
		if err == nil {
			stop := beside(filepath.Join(w.lower, "beside"))
			err = errors.Join(u.run(w.top, w.lower), stop())
		}
		end = w.position()
		if u.live {
			err = errors.Join(err, u.kmsfs(w.lower, "umount", w.top))
		}
		return err
	})
	must(t, err)
	rec.records = rec.records[:end]
	rec.examine = u.examine
	rec.recovery = func(top, dir string) { _ = u.run(top, filepath.Join(dir, "lower")) }
	none(t, cutRandomly(t, rec, dir, rng, begin, n))
	t.Logf("%d records, %d cuts", end-begin, n)
}

// beside is a program that syncs a file of its own on the backing filesystem all the time, and with it, perhaps, half of what others do.
func beside(path string) (stop func() error) {
	var over atomic.Bool
	var program sync.WaitGroup
	var err error
	program.Go(func() {
		var f *os.File
		if f, err = os.Create(path); err != nil {
			return
		}
		for i := int64(0); err == nil && !over.Load(); i++ {
			_, err = f.WriteAt(pattern(int(i), 100), i%20*blockSize)
			err = errors.Join(err, f.Sync())
		}
		err = errors.Join(err, f.Close())
	})
	return func() error {
		over.Store(true)
		program.Wait()
		return err
	}
}

// TestRewrap cuts the power while CMKs are replaced. The volume opens with what the machine trusts by then, which is noted on the same disk.
func TestRewrap(t *testing.T) {
	for _, live := range []bool{false, true} {
		t.Run(fmt.Sprint("live=", live), func(t *testing.T) {
			s := stack{backing: "ext4", crypt: "kmsfs", noting: true}
			image := build(t, &s)
			from, to := filepath.Join(s.secret, "cmk"), filepath.Join(s.secret, "new")
			must(t, run(s.env(""), s.binary, "key", "new", to))
			u := &upkeep{s: s, live: live, args: []string{"rewrap", "--replace", "local:" + from + "=local:" + to}}
			uri := cmkURI(t, to)
			u.done = func(h *header.Header) string {
				if len(h.EDKs) != 1 || h.EDKs[0].CMK != uri {
					return fmt.Sprintf("lists other CMKs than %s: %v", uri, h.EDKs)
				}
				return ""
			}
			u.cut(t, image, number(t, 15))
		})
	}
}

// cmkURI is the name that headers have for a local CMK.
func cmkURI(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	fields := strings.Fields(string(b))
	if len(fields) != 3 {
		t.Fatalf("%s has %d fields", path, len(fields))
	}
	return "local:" + fields[1]
}

// TestReencrypt cuts the power while files are sealed anew: each is whole, and the names of one stay those of one.
func TestReencrypt(t *testing.T) {
	for _, b := range []struct {
		backing string
		cuts    int
	}{{"ext4", 20}, {"xfs", 8}} { // XFS may well make a rename durable before the content
		t.Run(b.backing, func(t *testing.T) { reencrypt(t, b.backing, number(t, b.cuts)) })
	}
}

func reencrypt(t *testing.T, backing string, n int) {
	t.Helper()
	s := stack{backing: backing, crypt: "kmsfs", noting: true, plain: true}
	image := build(t, &s)
	u := &upkeep{s: s, args: []string{"reencrypt"}}
	u.prepare = u.older
	u.cut(t, image, n)
}

// older makes all files of a volume older than its data key: they get into another volume under the same CMK. Names that are stored as they are do not mind.
func (u *upkeep) older(lower string) error {
	cipher, newer := filepath.Join(lower, "cipher"), filepath.Join(lower, "newer")
	if err := u.kmsfs(lower, "init", "--cmk", "local:"+filepath.Join(u.s.secret, "cmk"), "--plaintext-names", newer); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(newer, ".kmsfs/volume"))
	if err != nil {
		return err
	}
	h, err := header.Parse(b)
	if err != nil {
		return err
	}
	u.done = func(file *header.Header) string {
		if file.KeyID != h.KeyID {
			return fmt.Sprintf("has data key %v, want %v", file.KeyID, h.KeyID)
		}
		return ""
	}
	return errors.Join(os.RemoveAll(filepath.Join(cipher, ".kmsfs")), os.Rename(filepath.Join(newer, ".kmsfs"), filepath.Join(cipher, ".kmsfs")), os.Remove(newer))
}

// TestReencryptRefused has a disk that is full, and files that may not be replaced: they stay as they are, names together, and the others are sealed anew. When that is over, so are they.
func TestReencryptRefused(t *testing.T) {
	s := stack{backing: "ext4", crypt: "kmsfs", noting: true, plain: true}
	image := build(t, &s)
	dir := workdir(t)
	u := &upkeep{s: s, args: []string{"reencrypt"}}
	m, err := s.mount(image, dir)
	must(t, err)
	defer func() { must(t, m.unmount()) }()
	cipher := filepath.Join(m.lower, "cipher")
	at := func(name string) string { return filepath.Join(cipher, name) }
	must(t, u.fill(m.top))
	must(t, u.kmsfs(m.lower, "umount", m.top))
	must(t, u.older(m.lower))
	refused := func(fixed []string) {
		t.Helper()
		err := u.kmsfs(m.lower, "reencrypt", cipher)
		if err == nil || !strings.Contains(err.Error(), "exit status 4") {
			t.Fatalf("not refused: %v", err)
		}
		for _, f := range u.headers(cipher) {
			if !slices.ContainsFunc(fixed, func(name string) bool { return f.Path == "/"+name }) {
				t.Errorf("is not sealed anew: %v: %v", f, err)
			}
		}
		for _, name := range fixed {
			if !strings.Contains(err.Error(), at(name)+": not re-encrypted") {
				t.Errorf("%s is not listed: %v", name, err)
			}
		}
		must(t, u.kmsfs(m.lower, "fsck", cipher))
		must(t, u.kmsfs(m.lower, "mount", cipher, m.top))
		for _, f := range u.compare(m.top) {
			t.Error(f)
		}
		must(t, u.kmsfs(m.lower, "umount", m.top))
	}

	// A file, one of several names of another, and a directory that has one name of several.
	protected := []string{"dir0/file0", names(1)[1], "dir3"}
	fixed := append([]string{"dir0/file0"}, names(1)...)
	for i := range linked {
		if slices.ContainsFunc(names(i), func(name string) bool { return strings.HasPrefix(name, "dir3/") }) {
			fixed = append(fixed, names(i)...)
		}
	}
	for i := range 24 {
		if i%4 == 3 {
			fixed = append(fixed, fmt.Sprintf("dir3/file%d", i))
		}
	}
	for _, name := range protected {
		must(t, run(nil, "chattr", "+i", at(name)))
	}
	refused(fixed)
	for _, name := range protected {
		must(t, run(nil, "chattr", "-i", at(name)))
	}

	// What is left finds space, the large file does not.
	must(t, u.older(m.lower))
	must(t, u.kmsfs(m.lower, "mount", cipher, m.top)) // which makes the logs, 8 MiB
	must(t, u.kmsfs(m.lower, "umount", m.top))
	var fs unix.Statfs_t
	must(t, unix.Statfs(m.lower, &fs))
	ballast := filepath.Join(m.lower, "ballast")
	must(t, run(nil, "fallocate", "-l", fmt.Sprint(int64(fs.Bfree)*fs.Bsize-2<<20), ballast))
	refused([]string{"large"})
	must(t, os.Remove(ballast))
	must(t, u.kmsfs(m.lower, "reencrypt", cipher))
	for _, f := range u.headers(cipher) {
		t.Error(f)
	}
}
