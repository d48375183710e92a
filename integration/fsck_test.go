package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fsckOutput is what fsck --json prints.
type fsckOutput struct {
	Volume string `json:"volume"`
	Faults []struct {
		Kind       string `json:"kind"`
		Ciphertext string `json:"ciphertext"`
		Plaintext  string `json:"plaintext"`
		Offset     int64  `json:"offset"`
		Length     int64  `json:"length"`
		Cause      string `json:"cause"`
		Repairable bool   `json:"repairable"`
		Repaired   bool   `json:"repaired"`
	} `json:"faults"`
	Summary struct {
		Directories int `json:"directories"`
		Files       int `json:"files"`
		Links       int `json:"links"`
		Faults      int `json:"faults"`
		Repaired    int `json:"repaired"`
	} `json:"summary"`
}

// fsck runs fsck on the volume and expects an exit code.
func (v *volume) fsck(t testing.TB, code int, args ...string) (out fsckOutput) {
	t.Helper()
	r := v.run(t, append(append([]string{"fsck", "--json"}, args...), v.cipher)...)
	if r.code != code {
		t.Errorf("fsck: exit code %d, want %d\n%s%s", r.code, code, r.stdout, r.stderr)
	}
	if code == 0 || code == 4 || code == 10 {
		if err := json.Unmarshal([]byte(r.stdout), &out); err != nil {
			t.Fatalf("fsck: %v\n%s%s", err, r.stdout, r.stderr)
		}
	}
	return out
}

// fsckFinds expects fsck to find that the target, and nothing else, is damaged.
func fsckFinds(t testing.TB, v *volume, sealed string) {
	t.Helper()
	out := v.fsck(t, 4)
	if len(out.Faults) == 0 || out.Summary.Faults != len(out.Faults) {
		t.Errorf("fsck: %+v", out)
	}
	for _, f := range out.Faults {
		if f.Ciphertext != sealed || f.Plaintext != "/target" || f.Cause == "" {
			t.Errorf("fsck: %+v", f)
		}
	}
}

// variety fills a mounted volume with one of everything.
func variety(t testing.TB, plain string) {
	t.Helper()
	shell(t, plain, `mkdir -p dir/sub "$(printf 'long directory %0200d' 1)"
		head -c 100000 /dev/zero | tr '\0' x > dir/file; : > dir/empty; echo small > "$(printf 'long name %0220d' 2)"
		echo deep > "$(printf 'long directory %0200d' 1)/deep"; ln dir/file dir/sub/hard
		ln -s target dir/link; ln -s "$(printf '%04000d' 3)" dir/sub/longlink
		truncate -s 160M dir/sparse; echo middle | dd of=dir/sparse bs=1M seek=100 conv=notrunc status=none
		fallocate -p -o 8192 -l 16384 dir/file
		setfattr -n user.short -v value dir/file; setfattr -n "user.$(printf '%0230d' 4)" -v "long name" dir/file; setfattr -n user.dir -v d dir
		mkfifo dir/fifo; chmod 0640 dir/file`)
}

func TestFsck(t *testing.T) {
	for _, args := range [][]string{nil, {"--algorithm", "sm4-128-gcm", "--segment-size", "16384", "--context", "a=b"}, {"--plaintext-names"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			v := newVolume(t, args...)
			variety(t, v.mount(t))
			v.refused(t, 7, []string{v.cipher, "unmount"}, "fsck", v.cipher)
			v.umount(t)
			out := v.fsck(t, 0)
			if out.Volume != v.cipher || out.Summary.Directories != 4 || out.Summary.Files != 6 || out.Summary.Links != 2 || len(out.Faults) != 0 {
				t.Errorf("%+v", out)
			}
			if text := v.ok(t, "fsck", v.cipher); !strings.HasPrefix(text, "4 directories, 6 files, 2 symbolic links, 1 others") {
				t.Errorf("summary: %q", text)
			}
			v.fsck(t, 0, "--repair")
			v.fsck(t, 0, "--cmk", "local:"+v.cmk)
		})
	}
}

// TestFsckAfterKill kills the daemon under load: what it leaves behind is no damage.
func TestFsckAfterKill(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	shell(t, plain, `mkdir d; for i in $(seq 50); do echo $i > d/$i; echo more >> d/$i; done; sync d/50
		dd if=/dev/zero of=big bs=1M count=8 status=none; dd if=/dev/urandom of=big bs=5000 count=100 seek=7 conv=notrunc status=none
		echo x > "$(printf 'long name %0220d' 2)"`)
	shell(t, v.dir, `kill -9 $(pgrep -f "^[^ ]*kmsfs mount.*`+v.cipher+`")`)
	eventually(t, "the mount is stale", func() bool { return errors.Is(unix.Statfs(plain, new(unix.Statfs_t)), unix.ENOTCONN) })
	v.umount(t)
	if out := v.fsck(t, 0); out.Summary.Files != 52 || out.Summary.Faults != 0 {
		t.Errorf("%+v", out)
	}
	if got := shell(t, v.mount(t), `cat d/50; ls d | wc -l; stat -c %s big`); got != "50\nmore\n50\n8388608\n" {
		t.Errorf("got %q", got)
	}
}

// TestFsckProgress runs fsck with its messages on a terminal, and on none: a bar is drawn there only.
func TestFsckProgress(t *testing.T) {
	v := newVolume(t)
	shell(t, v.mount(t), `head -c 5000000 /dev/zero | tr '\0' x > file`)
	v.umount(t)
	if r := v.run(t, "fsck", v.cipher); r.stderr != "" || !strings.Contains(r.stdout, "0 faults") {
		t.Errorf("without a terminal: %q, %q", r.stdout, r.stderr)
	}
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	defer master.Close()
	must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	must(t, err)
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	cmd := exec.Command(binary, "fsck", v.cipher)
	cmd.Env = append(os.Environ(), "KMSFS_CONFIG_DIR="+v.config)
	cmd.Stderr = terminal
	err = cmd.Run()
	terminal.Close()
	must(t, err)
	drawn, err := io.ReadAll(master) // ends with an error when the last writer has gone
	if !bytes.Contains(drawn, []byte("2 entries")) || !bytes.Contains(drawn, []byte("%")) {
		t.Errorf("on a terminal: %q, %v", drawn, err)
	}
}

func TestFsckUsage(t *testing.T) {
	v := newVolume(t)
	v.refused(t, 2, []string{"CIPHERDIR"}, "fsck")
	v.refused(t, 3, []string{v.plain}, "fsck", v.plain)
	v.refused(t, 2, []string{"nonsense"}, "fsck", "--cmk", "nonsense", v.cipher)
	other := bareVolume(t)
	other.ok(t, "key", "new", other.cmk)
	v.refused(t, 6, []string{v.cipher}, "fsck", "--cmk", "local:"+other.cmk, v.cipher)
	v.refused(t, 2, []string{"DST"}, "recover", v.cmk)
	v.refused(t, 3, []string{"--volume"}, "recover", v.cmk, filepath.Join(v.dir, "out"))
}

// TestFsckRepair damages everything that is stored twice or can be derived; the mount then shows what it showed before.
func TestFsckRepair(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	variety(t, plain)
	const list = `find . -type f -printf '%P %m %s\n' | sort; find . ! -type f -printf '%P %y %m %l\n' | sort
		find . -type f -size -2000k -exec md5sum {} + | sort; find . ! -type p -exec getfattr -hd {} + | sort`
	before := shell(t, plain, list)
	v.umount(t)

	damaged := 1
	shell(t, v.cipher, `printf X | dd of=.kmsfs/volume bs=1 seek=100 conv=notrunc status=none`)
	must(t, filepath.WalkDir(v.cipher, func(path string, d os.DirEntry, err error) error {
		must(t, err)
		name := d.Name()
		switch {
		case name == ".kmsfs":
			return filepath.SkipDir
		case name == "kmsfs.dir":
			damaged++
			must(t, os.Remove(path))
		case strings.HasPrefix(name, "kmsfs.copy."):
			damaged++
			target, err := os.Readlink(path)
			must(t, err)
			must(t, os.Remove(path))
			must(t, os.Symlink(flip(target), path))
		case d.Type().IsRegular():
			st, err := d.Info()
			must(t, err)
			if st.Size() > 0 && hardLinks(t, path) == 1 {
				damaged++
				f, err := os.OpenFile(path, os.O_WRONLY, 0)
				must(t, err)
				_, err = f.WriteAt([]byte("damage"), 150) // in the EDK list
				must(t, err)
				must(t, f.Close())
			}
		}
		return nil
	}))
	if damaged < 8 {
		t.Fatalf("only %d things to damage", damaged)
	}
	if out := v.fsck(t, 4); out.Summary.Faults != damaged || out.Summary.Repaired != 0 {
		t.Errorf("%d faults, want %d: %+v", out.Summary.Faults, damaged, out)
	}
	if out := v.fsck(t, 10, "--repair"); out.Summary.Faults != damaged || out.Summary.Repaired != damaged {
		t.Errorf("%d faults, %d repaired, want %d: %+v", out.Summary.Faults, out.Summary.Repaired, damaged, out)
	}
	v.fsck(t, 0)
	if after := shell(t, v.mount(t), list); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// hardLinks returns how many hard links a file has.
func hardLinks(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return uint64(st.Nlink)
}

// TestSideFileCostsOneName loses each side link in turn: everything else is served.
func TestSideFileCostsOneName(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	shell(t, plain, `mkdir dir; for i in 1 2 3; do echo $i > "dir/$(printf 'long name %0220d' $i)"; done; echo short > dir/short; echo top > top`)
	v.umount(t)
	var sides []string
	must(t, filepath.WalkDir(v.cipher, func(path string, d os.DirEntry, err error) error {
		must(t, err)
		if strings.HasPrefix(d.Name(), "kmsfs.") && !strings.HasPrefix(d.Name(), "kmsfs.long.") && d.Type()&os.ModeSymlink != 0 {
			sides = append(sides, path)
		}
		return nil
	}))
	if len(sides) != 8 {
		t.Fatalf("%d side links: %v", len(sides), sides)
	}
	for _, side := range sides {
		target, err := os.Readlink(side)
		must(t, err)
		for _, instead := range []string{"", flip(target), "x"} {
			must(t, os.Remove(side))
			if instead != "" {
				must(t, os.Symlink(instead, side))
			}
			plain := v.mount(t)
			if out := shell(t, plain, `cat dir/* top`); out != "1\n2\n3\nshort\ntop\n" {
				t.Errorf("without %s: %q", filepath.Base(side), out)
			}
			v.umount(t)
			if r := v.run(t, "fsck", "--repair", v.cipher); r.code != 0 && r.code != 10 {
				t.Errorf("fsck --repair: %d %s", r.code, r.stdout)
			}
			if got, err := os.Readlink(side); err != nil || got != target {
				t.Fatalf("%s: %q, %v", side, got, err)
			}
		}
	}
	// Both links of one long name are lost: that name is, and no other.
	one := sides[len(sides)-1]
	for _, side := range sides {
		if h := strings.SplitN(filepath.Base(one), ".", 3)[2]; strings.HasSuffix(side, "."+h) {
			must(t, os.Remove(side))
		}
	}
	if out := v.fsck(t, 4); len(out.Faults) != 1 || out.Faults[0].Kind != "name" || out.Faults[0].Plaintext != "/dir/?" {
		t.Errorf("%+v", out)
	}
	if out := shell(t, v.mount(t), `ls dir | wc -l; cat dir/short top`); out != "3\nshort\ntop\n" {
		t.Errorf("with one name lost: %q", out)
	}
}

func TestRecover(t *testing.T) {
	v, sealed, content := target(t)
	good, err := os.ReadFile(sealed)
	must(t, err)
	dst := filepath.Join(v.dir, "recovered")
	b := bytes.Clone(good)
	b[prologue+slot+100] ^= 1
	b[200] ^= 1 // in the header
	must(t, os.WriteFile(sealed, b, 0o644))
	r := v.run(t, "recover", sealed, dst)
	if r.code != 4 || !strings.Contains(r.stdout, "lost: bytes 4096 to 8191") || !strings.Contains(r.stdout, "header: ") {
		t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	want := bytes.Clone(content)
	clear(want[4096:8192])
	if got, err := os.ReadFile(dst); err != nil || !bytes.Equal(got, want) {
		t.Errorf("recovered %d bytes, %v", len(got), err)
	}
	if st, err := os.Stat(dst); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if r := v.run(t, "recover", sealed, dst); r.code == 0 || !strings.Contains(r.stderr, dst) {
		t.Errorf("overwriting: exit code %d: %s", r.code, r.stderr)
	}

	// A sound file from elsewhere, as JSON.
	away := filepath.Join(v.dir, "away")
	must(t, os.WriteFile(away, good, 0o600))
	var out struct {
		Size, Recovered int
		Lost            []any
	}
	must(t, json.Unmarshal([]byte(v.ok(t, "recover", "--json", "--volume", v.cipher, away, filepath.Join(v.dir, "whole"))), &out))
	if out.Size != len(content) || out.Recovered != len(content) || len(out.Lost) != 0 {
		t.Errorf("%+v", out)
	}
	if got, err := os.ReadFile(filepath.Join(v.dir, "whole")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("recovered %d bytes, %v", len(got), err)
	}

	// Nothing authenticates: nothing is left behind.
	b = bytes.Repeat([]byte{7}, len(good))
	must(t, os.WriteFile(away, b, 0o600))
	r = v.run(t, "recover", "--volume", v.cipher, away, filepath.Join(v.dir, "nothing"))
	if _, err := os.Stat(filepath.Join(v.dir, "nothing")); r.code == 0 || err == nil {
		t.Errorf("exit code %d, %v", r.code, err)
	}
}
