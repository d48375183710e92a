package integration

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The frozen volume of format version 1, what a mount of it shows, and the file that opens it. make freeze made them, once: every later build has to
// read them as they are.
const (
	frozenVolume = "testdata/v1.tar.gz"
	frozenFacts  = "testdata/v1.json"
)

// A fact is what is expected of one entry of the frozen volume.
type fact struct {
	Mode   uint32            `json:"mode"` // type included
	Size   int64             `json:"size"` // 0 for directories
	MTime  int64             `json:"mtime_ns"`
	Links  uint64            `json:"links,omitempty"`
	Target string            `json:"target,omitempty"`
	SHA256 string            `json:"sha256,omitempty"`
	Data   [][2]int64        `json:"data,omitempty"` // what is not holes: start and end
	Xattrs map[string]string `json:"xattrs,omitempty"`
}

// facts describes everything below dir.
func facts(t *testing.T, dir string) map[string]fact {
	t.Helper()
	all := make(map[string]fact)
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		must(t, err)
		if path == dir {
			return nil
		}
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		f := fact{Mode: st.Mode, Size: st.Size, MTime: st.Mtim.Nano(), Links: uint64(st.Nlink), Xattrs: attributes(t, path)}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			f.Size, f.Links = 0, 0
		case unix.S_IFLNK:
			f.Target, err = os.Readlink(path)
			must(t, err)
		case unix.S_IFREG:
			f.SHA256, f.Data = digest(t, path)
		}
		name, err := filepath.Rel(dir, path)
		must(t, err)
		all[name] = f
		return nil
	}))
	return all
}

// attributes returns the user attributes of an entry, values in base64.
func attributes(t *testing.T, path string) map[string]string {
	t.Helper()
	list, value := make([]byte, 1<<16), make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, list)
	must(t, err)
	var all map[string]string
	for _, name := range strings.Split(string(list[:n]), "\x00") {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		m, err := unix.Lgetxattr(path, name, value)
		must(t, err)
		if all == nil {
			all = make(map[string]string)
		}
		all[name] = base64.StdEncoding.EncodeToString(value[:m])
	}
	return all
}

// digest returns the SHA-256 of a file and its ranges of data.
func digest(t *testing.T, path string) (sum string, data [][2]int64) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	must(t, err)
	for off := int64(0); off < size; {
		start, err := f.Seek(off, unix.SEEK_DATA)
		must(t, err)
		end, err := f.Seek(start, unix.SEEK_HOLE)
		must(t, err)
		data, off = append(data, [2]int64{start, end}), end
	}
	return hex.EncodeToString(h.Sum(nil)), data
}

// freeze makes the frozen volume.
func freeze(t *testing.T) {
	t.Helper()
	v := newVolume(t, "--context", "project=frozen", "--context", "format=1")
	plain := v.mount(t)
	variety(t, plain)
	shell(t, plain, `mkdir sizes names links
		for n in 0 1 4095 4096 4097 8192 8193 20000; do yes "$n" | tr -d '\n' | head -c $n > sizes/$n; done || true
		for n in 1 100 175 176 255; do echo $n > "names/$(printf "%0${n}d" $n)"; done
		echo utf8 > 'names/ünï cödé 名前'; printf x > "names/$(printf 'new\nline')"
		for n in 1 100 3039 3040 4095; do ln -s "$(printf "%0${n}d" $n)" links/$n; done
		truncate -s 30M holes-front; echo end >> holes-front
		cp dir/file holes-many; for i in 1 5 9 13; do fallocate -p -o $((i * 4096)) -l 4096 holes-many; done
		echo filled | dd of=holes-many bs=4096 seek=5 conv=notrunc status=none
		cp dir/file shrunk; truncate -s 12345 shrunk; echo grown >> shrunk
		setfattr -n user.empty -v "" sizes/1; setfattr -n user.binary -v 0x000102ff sizes/1
		find . -depth -exec touch -hd '2026-01-02 03:04:05.123456789 UTC' {} +`)
	want, err := json.MarshalIndent(facts(t, plain), "", " ")
	must(t, err)
	v.umount(t)
	must(t, os.WriteFile(frozenFacts, append(want, '\n'), 0o644))
	archive, err := filepath.Abs(frozenVolume)
	must(t, err)
	// The journal of a volume that was unmounted is empty, and no part of the format of files.
	shell(t, v.dir, `tar --format=posix --sparse --xattrs --xattrs-include='user.*' --numeric-owner --sort=name --exclude='cipher/.kmsfs/journal.*' \
		--exclude=cipher/.kmsfs/epochs -cf - cmk cipher | gzip -9n > `+archive)
}

// TestFrozen opens the frozen volume with this build, with fsck, and with the reader that was written from docs/format.md.
func TestFrozen(t *testing.T) {
	if os.Getenv("KMSFS_FREEZE") != "" {
		freeze(t)
	}
	raw, err := os.ReadFile(frozenFacts)
	must(t, err)
	want := make(map[string]fact)
	must(t, json.Unmarshal(raw, &want))
	if len(want) < 30 {
		t.Fatalf("only %d facts", len(want))
	}
	archive, err := filepath.Abs(frozenVolume)
	must(t, err)
	v := bareVolume(t)
	shell(t, v.dir, `tar --xattrs --xattrs-include='user.*' --same-owner -xpzf `+archive)

	compare := func(by string, got map[string]fact, holes bool) {
		t.Helper()
		for name, w := range want {
			g, ok := got[name]
			if !holes {
				g.Data, w.Data = nil, nil // the other file system's affair
			}
			if !ok || !reflect.DeepEqual(g, w) {
				t.Errorf("%s: %q is %+v, want %+v", by, name, g, w)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d entries, want %d", by, len(got), len(want))
		}
	}
	out := filepath.Join(v.dir, "out")
	if msg, err := exec.Command("/usr/bin/python3", "testdata/reader.py", v.cipher, v.cmk, out).CombinedOutput(); err != nil {
		t.Fatalf("reader.py: %v\n%s", err, msg)
	}
	compare("reader.py", facts(t, out), false)
	v.fsck(t, 0, "--cmk", "local:"+v.cmk)
	plain := v.mount(t, "cmk=local:"+v.cmk)
	compare("mount", facts(t, plain), true)

	// It can be written to, and what is written is format version 1, too.
	shell(t, plain, `echo more >> sizes/4096; rm sizes/1; echo new > new; truncate -s 50M holes-front; rm -r names; mv dir moved`)
	v.umount(t)
	v.fsck(t, 0)
	must(t, os.RemoveAll(out))
	if msg, err := exec.Command("/usr/bin/python3", "testdata/reader.py", v.cipher, v.cmk, out).CombinedOutput(); err != nil {
		t.Fatalf("reader.py: %v\n%s", err, msg)
	}
	if got := shell(t, out, `cat new; tail -c 5 sizes/4096; stat -c %s holes-front moved/sparse`); got != "new\nmore\n52428800\n167772160\n" {
		t.Errorf("after changes: %q", got)
	}
}
