package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Geometry of the default volume, docs/format.md section 5.4.
const (
	headerSize = 1536
	prologue   = 2048
	slot       = 4136
)

// target is a volume with a file to attack, 3 segments and a bit, and a neighbour that must survive.
func target(t *testing.T) (v *volume, sealed string, content []byte) {
	t.Helper()
	v = newVolume(t)
	plain := v.mount(t)
	content = bytes.Repeat([]byte("attack at dawn! "), (3*4096+160)/16)
	must(t, os.WriteFile(filepath.Join(plain, "target"), content, 0o644))
	must(t, os.WriteFile(filepath.Join(plain, "neighbour"), []byte("sound"), 0o644))
	v.umount(t)
	for _, path := range v.sealedFiles(t) {
		if st, err := os.Stat(path); err == nil && st.Size() > 3*slot {
			sealed = path
		}
	}
	return v, sealed, content
}

// attacked mounts the volume and expects EIO from reading the target, no plaintext, a log line that names the ciphertext, and a sound neighbour.
func attacked(t *testing.T, v *volume, sealed string) {
	t.Helper()
	plain := v.mount(t)
	got, err := os.ReadFile(filepath.Join(plain, "target"))
	if !errors.Is(err, unix.EIO) {
		t.Errorf("read %d bytes, %v; want EIO", len(got), err)
	}
	log, err := os.ReadFile(v.log)
	must(t, err)
	if !bytes.Contains(log, []byte(filepath.Base(sealed))) {
		t.Errorf("the log does not name %s:\n%s", sealed, log)
	}
	if b, err := os.ReadFile(filepath.Join(plain, "neighbour")); err != nil || string(b) != "sound" {
		t.Errorf("neighbour: %q, %v", b, err)
	}
	v.umount(t)
	fsckFinds(t, v, sealed)
}

// attack runs one edit of the target's ciphertext.
func attack(t *testing.T, edits map[string]func(b []byte) []byte) {
	v, sealed, _ := target(t)
	good, err := os.ReadFile(sealed)
	must(t, err)
	for name, edit := range edits {
		t.Run(name, func(t *testing.T) {
			must(t, os.WriteFile(sealed, edit(bytes.Clone(good)), 0o644))
			attacked(t, v, sealed)
		})
	}
}

func TestAttackFlipAnyBit(t *testing.T) {
	edits := make(map[string]func(b []byte) []byte)
	for _, at := range []int{0, 9, 11, 12, 16, 20, 24, 40, 56, 60, 70, 110, 200, 240, 246, 300, headerSize - 1,
		prologue, prologue + 12, prologue + 24, prologue + slot - 1, prologue + 3*slot, prologue + 3*slot + 100} {
		edits[fmt.Sprint(at)] = func(b []byte) []byte { b[at] ^= 0x10; return b }
	}
	attack(t, edits)
}

func TestAttackSegmentsSwappedDuplicatedDropped(t *testing.T) {
	at := func(i int) int { return prologue + i*slot }
	attack(t, map[string]func(b []byte) []byte{
		"Swap": func(b []byte) []byte {
			first := bytes.Clone(b[at(0):at(1)])
			copy(b[at(0):], b[at(1):at(2)])
			copy(b[at(1):], first)
			return b
		},
		"Duplicate": func(b []byte) []byte { copy(b[at(1):at(2)], b[at(0):at(1)]); return b },
		"Drop":      func(b []byte) []byte { return append(b[:at(1)], b[at(2):]...) },
		"Zero":      func(b []byte) []byte { clear(b[at(1):at(2)]); return b },
		"ZeroFinal": func(b []byte) []byte { clear(b[at(3):]); return b },
	})
}

func TestAttackCutOrAppend(t *testing.T) {
	edits := make(map[string]func(b []byte) []byte)
	for _, n := range []int{1, 55, headerSize, prologue - 1, prologue, prologue + 1, prologue + 40, prologue + 41, prologue + slot, prologue + slot + 41,
		prologue + 2*slot, prologue + 3*slot, prologue + 3*slot + 40, prologue + 3*slot + 199} {
		edits[fmt.Sprint("Cut", n)] = func(b []byte) []byte { return b[:n] }
	}
	for _, n := range []int{1, 41, slot - 200, slot, 3 * slot} {
		edits[fmt.Sprint("AppendZeros", n)] = func(b []byte) []byte { return append(b, make([]byte, n)...) }
		edits[fmt.Sprint("AppendOld", n)] = func(b []byte) []byte {
			return append(b, bytes.Repeat(b[prologue:prologue+slot], 3)[:n]...)
		}
	}
	attack(t, edits)
}

// TestAttackCutToZero documents what cannot be told from an honest crash.
func TestAttackCutToZero(t *testing.T) {
	v, sealed, _ := target(t)
	must(t, os.Truncate(sealed, 0))
	if b, err := os.ReadFile(filepath.Join(v.mount(t), "target")); err != nil || len(b) != 0 {
		t.Errorf("read %d bytes, %v; a file cut to nothing reads as empty", len(b), err)
	}
}

// TestAttackRollback documents what reads do not detect.
func TestAttackRollback(t *testing.T) {
	v, sealed, content := target(t)
	old, err := os.ReadFile(sealed)
	must(t, err)
	plain := v.mount(t)
	f, err := os.OpenFile(filepath.Join(plain, "target"), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("NEW"), 0)
	must(t, err)
	must(t, f.Close())
	v.umount(t)
	must(t, os.WriteFile(sealed, old, 0o644))
	if b, err := os.ReadFile(filepath.Join(v.mount(t), "target")); err != nil || !bytes.Equal(b, content) {
		t.Errorf("an old version: %v", err)
	}
}

func TestAttackForeignFile(t *testing.T) {
	for name, args := range map[string][]string{
		"Volume":  nil, // another CMK: it is not called, being not trusted
		"Context": {"--context", "tenant=b"},
	} {
		t.Run(name, func(t *testing.T) {
			v, sealed, _ := target(t)
			other := bareVolume(t)
			other.ok(t, "key", "new", other.cmk)
			cmk := other.cmk
			if args != nil {
				cmk = v.cmk // the very same CMK: the encryption context differs
			}
			other.ok(t, append(append([]string{"init", "--cmk", "local:" + cmk}, args...), other.cipher)...)
			must(t, os.WriteFile(filepath.Join(other.mount(t), "x"), bytes.Repeat([]byte("x"), 3*4096+160), 0o644))
			other.umount(t)
			foreign, err := os.ReadFile(other.sealedFiles(t)[0])
			must(t, err)

			t.Run("Whole", func(t *testing.T) {
				good, err := os.ReadFile(sealed)
				must(t, err)
				must(t, os.WriteFile(sealed, foreign, 0o644))
				attacked(t, v, sealed)
				must(t, os.WriteFile(sealed, good, 0o644))
			})
			t.Run("Segment", func(t *testing.T) {
				b, err := os.ReadFile(sealed)
				must(t, err)
				copy(b[prologue+slot:], foreign[prologue+slot:prologue+2*slot])
				must(t, os.WriteFile(sealed, b, 0o644))
				attacked(t, v, sealed)
			})
		})
	}
}

func TestAttackSegmentFromAnotherFile(t *testing.T) {
	v, sealed, _ := target(t)
	must(t, os.WriteFile(filepath.Join(v.mount(t), "second"), bytes.Repeat([]byte("y"), 5*4096), 0o644))
	v.umount(t)
	for _, path := range v.sealedFiles(t) {
		other, err := os.ReadFile(path)
		must(t, err)
		if len(other) < 4*slot || path == sealed {
			continue
		}
		b, err := os.ReadFile(sealed)
		must(t, err)
		copy(b[prologue:], other[prologue:prologue+slot])
		must(t, os.WriteFile(sealed, b, 0o644))
		attacked(t, v, sealed)
		return
	}
	t.Fatal("no second file")
}

// TestAttackHoles zeroes data of a file that has a hole elsewhere.
func TestAttackHoles(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	shell(t, plain, `head -c 40960 /dev/zero | tr '\0' x > target; fallocate -p -o 4096 -l 8192 target; echo sound > neighbour; cp target /dev/null`)
	must(t, os.WriteFile(filepath.Join(plain, "neighbour"), []byte("sound"), 0o644))
	v.umount(t)
	for _, path := range v.sealedFiles(t) {
		b, err := os.ReadFile(path)
		must(t, err)
		if len(b) < 3*slot {
			continue
		}
		clear(b[prologue+5*slot : prologue+6*slot])
		must(t, os.WriteFile(path, b, 0o644))
		attacked(t, v, path)
		return
	}
	t.Fatal("no file to attack")
}

// TestAttackAbsentMaps zeroes a hole map together with the data that it protects, in a file whose other maps are absent.
func TestAttackAbsentMaps(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	const at = 400 << 20
	shell(t, plain, `truncate -s 1G target; printf 'precious' | dd of=target bs=1M seek=400 conv=notrunc status=none`)
	must(t, os.WriteFile(filepath.Join(plain, "neighbour"), []byte("sound"), 0o644))
	v.umount(t)
	read := func() (string, error) {
		t.Helper()
		f, err := os.Open(filepath.Join(v.mount(t), "target"))
		must(t, err)
		defer v.umount(t)
		defer f.Close()
		b := make([]byte, 8)
		_, err = f.ReadAt(b, at)
		return string(b), err
	}
	if got, err := read(); err != nil || got != "precious" {
		t.Fatalf("%q, %v", got, err)
	}
	for _, path := range v.sealedFiles(t) {
		if st, err := os.Stat(path); err != nil || st.Size() < at {
			continue
		}
		// docs/format.md section 5.4: the segment, and the map before it
		const segment = at / 4096
		const k = 1 + (segment-3648)/32768
		const first = 3648 + (k-1)*32768
		zero := func(slotNumber int64) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt(make([]byte, slot), prologue+slotNumber*slot)
			must(t, err)
			must(t, f.Close())
		}
		zero(segment + k)
		zero(first + k - 1)
		if got, err := read(); !errors.Is(err, unix.EIO) {
			t.Errorf("read %q, %v; want EIO", got, err)
		}
		fsckFinds(t, v, path)
		return
	}
	t.Fatal("no file to attack")
}

func TestAttackNamesTargetsAttributes(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	must(t, os.Mkdir(filepath.Join(plain, "dir"), 0o755))
	must(t, os.WriteFile(filepath.Join(plain, "dir/inside"), []byte("x"), 0o644))
	must(t, os.Symlink("secret-target", filepath.Join(plain, "dir/link")))
	must(t, os.WriteFile(filepath.Join(plain, "dir/attr"), nil, 0o644))
	must(t, unix.Setxattr(filepath.Join(plain, "dir/attr"), "user.secret", []byte("value"), 0))
	v.umount(t)

	// Flip a bit of the link's stored target and of the attribute's value.
	err := filepath.WalkDir(v.cipher, func(path string, d os.DirEntry, err error) error {
		must(t, err)
		switch {
		case d.Name() == ".kmsfs":
			return filepath.SkipDir
		case d.Type()&os.ModeSymlink != 0 && !strings.HasPrefix(d.Name(), "kmsfs."):
			disk, err := os.Readlink(path)
			must(t, err)
			must(t, os.Remove(path))
			must(t, os.Symlink(flip(disk), path))
		case d.Type().IsRegular():
			list := make([]byte, 1000)
			if n, _ := unix.Listxattr(path, list); n > 0 {
				name := strings.TrimSuffix(string(list[:n]), "\x00")
				value := make([]byte, 1000)
				m, err := unix.Getxattr(path, name, value)
				must(t, err)
				value[m-1] ^= 1
				must(t, unix.Setxattr(path, name, value[:m], 0))
			}
		}
		return nil
	})
	must(t, err)
	plain = v.mount(t)
	v.umount(t)
	kinds := make(map[string]int)
	for _, f := range v.fsck(t, 4).Faults {
		kinds[f.Kind+" "+f.Plaintext]++
	}
	if len(kinds) != 2 || kinds["link target /dir/link"] != 1 || kinds["attribute /dir/attr"] != 1 {
		t.Errorf("fsck: %v", kinds)
	}
	plain = v.mount(t)
	if target, err := os.Readlink(filepath.Join(plain, "dir/link")); !errors.Is(err, unix.EIO) {
		t.Errorf("link: %q, %v", target, err)
	}
	if n, err := unix.Getxattr(filepath.Join(plain, "dir/attr"), "user.secret", make([]byte, 100)); !errors.Is(err, unix.EIO) {
		t.Errorf("attribute: %d bytes, %v", n, err)
	}
	if b, err := os.ReadFile(filepath.Join(plain, "dir/inside")); err != nil || string(b) != "x" {
		t.Errorf("neighbour: %q, %v", b, err)
	}
	v.umount(t)

	// Flip a character of a name, and lose one and then both copies of the directory's ID.
	var sealedDir string
	entries, err := os.ReadDir(v.cipher)
	must(t, err)
	for _, e := range entries {
		if e.IsDir() && e.Name() != ".kmsfs" {
			sealedDir = filepath.Join(v.cipher, e.Name())
		}
	}
	must(t, os.Remove(filepath.Join(sealedDir, "kmsfs.dir")))
	plain = v.mount(t)
	if b, err := os.ReadFile(filepath.Join(plain, "dir/inside")); err != nil || string(b) != "x" {
		t.Errorf("with one copy of the directory ID: %q, %v", b, err)
	}
	v.umount(t)
	if _, err := os.Readlink(filepath.Join(sealedDir, "kmsfs.dir")); err != nil {
		t.Errorf("the lost copy was not mended: %v", err)
	}
	changed := filepath.Join(v.cipher, flip(filepath.Base(sealedDir)))
	must(t, os.Rename(sealedDir, changed))
	lost := false
	for _, f := range v.fsck(t, 4).Faults {
		lost = lost || f.Kind == "name" && f.Ciphertext == changed && f.Plaintext == "/?"
	}
	if !lost {
		t.Errorf("fsck does not find the changed name %s", changed)
	}
	plain = v.mount(t)
	if list, err := os.ReadDir(plain); err != nil || len(list) != 0 {
		t.Errorf("a name that was changed is listed: %v, %v", list, err)
	}
	if _, err := os.Stat(filepath.Join(plain, "dir")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("the original name: %v", err)
	}
}

// flip changes one character of a base64 string.
func flip(s string) string {
	b := []byte(s)
	if b[3] == 'A' {
		b[3] = 'B'
	} else {
		b[3] = 'A'
	}
	return string(b)
}

// TestStranger looks for plaintext in everything that is stored.
func TestStranger(t *testing.T) {
	v := newVolume(t, "--context", "project=demo")
	plain := v.mount(t)
	shell(t, plain, `mkdir -p xyzzy-secret-dir/sub; printf 'xyzzy-secret-content%.0s' $(seq 1000) > xyzzy-secret-dir/xyzzy-secret-file
		ln -s xyzzy-secret-target xyzzy-secret-dir/sub/link; setfattr -n user.xyzzy-secret -v xyzzy-secret-value xyzzy-secret-dir/xyzzy-secret-file
		echo x > "$(printf 'xyzzy-secret-%0200d' 0)"`)
	v.umount(t)
	seen := 0
	err := filepath.WalkDir(v.cipher, func(path string, d os.DirEntry, err error) error {
		must(t, err)
		seen++
		all := path[len(v.cipher):]
		if d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			must(t, err)
			all += string(b)
		}
		if d.Type()&os.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			must(t, err)
			all += target
		}
		buf := make([]byte, 4096)
		if n, err := unix.Llistxattr(path, buf); err == nil {
			for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
				value := make([]byte, 4096)
				m, _ := unix.Lgetxattr(path, name, value)
				all += name + string(value[:max(m, 0)])
			}
		}
		if strings.Contains(all, "xyzzy") || strings.Contains(all, "secret") {
			t.Errorf("%s shows plaintext", path)
		}
		return nil
	})
	must(t, err)
	if seen < 10 {
		t.Errorf("only %d entries", seen)
	}
}
