package integration

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// installed is a shell function that makes an installation below $1 the one of this mount namespace.
const installed = `
	installed() {
		mkdir -p sbin sbin.orig
		mount --bind /usr/sbin sbin.orig # /sbin is a link to it
		for f in sbin.orig/*; do ln -s "$PWD/$f" sbin/; done
		cp -a $1/sbin/* sbin/
		mount --bind sbin /usr/sbin
		mount --bind $1/usr/local/bin /usr/local/bin
		rm bin/kmsfs; hash -r
	}
`

// install runs make install with an empty root directory, from what the tests have compiled already.
func install(t *testing.T, dir string) (makeArgs string) {
	t.Helper()
	makeArgs = " -s BUILD= BIN=" + dir + "/build DESTDIR=" + dir + "/root "
	shell(t, "..", "make install"+makeArgs)
	return makeArgs
}

// TestInstall installs into a directory, and takes everything away again.
func TestInstall(t *testing.T) {
	dir := t.TempDir()
	args := install(t, dir)
	root := filepath.Join(dir, "root")
	modes := map[string]fs.FileMode{
		"usr/local/bin/kmsfs":                         0o755,
		"usr/local/share/man/man1/kmsfs.1":            0o644,
		"usr/local/lib/systemd/system/kmsfs@.service": 0o644,
		"sbin/mount.kmsfs":                            fs.ModeSymlink | 0o777,
		"sbin/mount.fuse.kmsfs":                       fs.ModeSymlink | 0o777,
	}
	files := func() (n int) {
		must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			n++
			st, err := d.Info()
			must(t, err)
			name, err := filepath.Rel(root, path)
			must(t, err)
			if st.Mode() != modes[name] {
				t.Errorf("%s has mode %v, want %v", name, st.Mode(), modes[name])
			}
			return nil
		}))
		return n
	}
	if n := files(); n != len(modes) {
		t.Errorf("%d files, want %d", n, len(modes))
	}
	for _, helper := range []string{"mount.kmsfs", "mount.fuse.kmsfs"} {
		if to, err := os.Readlink(filepath.Join(root, "sbin", helper)); err != nil || to != "/usr/local/bin/kmsfs" {
			t.Errorf("%s points to %s, %v", helper, to, err)
		}
	}
	manual, err := os.ReadFile(filepath.Join(root, "usr/local/share/man/man1/kmsfs.1"))
	must(t, err)
	var sections []string
	for _, s := range regexp.MustCompile(`(?m)^\.SH "?(.*?)"?$`).FindAllSubmatch(manual, -1) {
		sections = append(sections, string(s[1]))
	}
	const want = "NAME,SYNOPSIS,DESCRIPTION,COMMANDS,TRUST,CLOUDS,CONFIGURATION,MOUNT AT BOOT,EXIT STATUS,WHAT DIFFERS FROM A LOCAL FILESYSTEM,EXAMPLE"
	if got := strings.Join(sections, ","); got != want || !regexp.MustCompile(`(?m)^\.TH "?kmsfs"? "?1"? `).Match(manual) {
		t.Errorf("the manual has the sections %s", got)
	}
	shell(t, "..", "make uninstall"+args)
	if n := files(); n != 0 {
		t.Errorf("%d files are left", n)
	}
	// Another prefix, which the unit and the helpers follow.
	shell(t, "..", "make install PREFIX=/opt/kmsfs"+args)
	unit, err := os.ReadFile(filepath.Join(root, "opt/kmsfs/lib/systemd/system/kmsfs@.service"))
	must(t, err)
	to, err := os.Readlink(filepath.Join(root, "sbin/mount.kmsfs"))
	if err != nil || to != "/opt/kmsfs/bin/kmsfs" || !bytes.Contains(unit, []byte("\nExecStart="+to+" mount ")) {
		t.Errorf("%s, %v\n%s", to, err, unit)
	}
}

// TestFstab mounts through mount(8) and the installed helpers, by a line of fstab and by hand.
func TestFstab(t *testing.T) {
	v := newVolume(t)
	install(t, v.dir)
	got := namespaced(t, v.dir, installed+`
		installed root
		echo "$PWD/cipher $PWD/plain kmsfs defaults,allow_other,nofail,_netdev,noatime,user=joe,x-systemd.requires=network.target,comment=x,cmk=local:$PWD/cmk 0 0" > fstab
		mount -T fstab -a
		findmnt -n -o FSTYPE plain
		echo hello > plain/f
		mount -T fstab -a # mounted already: nothing to do
		grep -c fuse.kmsfs /proc/self/mounts
		umount plain
		mount -T fstab $PWD/plain
		cat plain/f
		umount plain
		for kind in kmsfs fuse.kmsfs; do
			mount -t $kind -o ro cipher plain
			cat plain/f
			(echo x > plain/g) 2>&1 | grep -o 'Read-only file system' || true
			umount plain
		done
		sed 's/kmsfs defaults/kmsfs bogus,defaults/' fstab > wrong
		mount -T wrong $PWD/plain 2> reason && echo mounted || echo refused
		grep -o 'kmsfs: unknown mount option "bogus"' reason
		mount -t kmsfs none plain 2> reason && echo mounted || echo refused
		grep -o '^kmsfs: .*none' reason | grep -c .
		mount.kmsfs cipher plain -n -o rw,cmk=local:$PWD/cmk
		kmsfs umount plain
		mount.kmsfs -V`)
	got = regexp.MustCompile(`(?m)^kmsfs: warning: there is no syslog.*\n`).ReplaceAllString(got, "")
	const want = "fuse.kmsfs\n1\nhello\nhello\nRead-only file system\nhello\nRead-only file system\nrefused\nkmsfs: unknown mount option \"bogus\"\nrefused\n1\nkmsfs version "
	if !strings.HasPrefix(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// readmeBlock returns the indented lines of README.md after a line.
func readmeBlock(t *testing.T, after string) string {
	t.Helper()
	readme, err := os.ReadFile("../README.md")
	must(t, err)
	_, rest, ok := strings.Cut(string(readme), "\n"+after+"\n\n")
	if !ok {
		t.Fatalf("README.md has no line %q", after)
	}
	var block strings.Builder
	for line := range strings.Lines(rest) {
		if line != "\n" && !strings.HasPrefix(line, "    ") {
			break
		}
		block.WriteString(strings.TrimPrefix(line, "    "))
	}
	if block.Len() == 0 {
		t.Fatalf("README.md has no commands after %q", after)
	}
	return block.String()
}

// TestReadme runs the commands that README.md tells a newcomer to type, as a user who is not root, if fusermount3 can have its rights here.
func TestReadme(t *testing.T) {
	v := bareVolume(t)
	commands := readmeBlock(t, "Then, as any user:")
	if n := strings.Count(commands, "kmsfs "); n < 7 {
		t.Fatalf("only %d commands:\n%s", n, commands)
	}
	must(t, os.WriteFile(filepath.Join(v.dir, "commands"), []byte("set -e\n"+commands), 0o644))
	as := "asuser"
	if !setuidWorks(t, "/usr/bin/fusermount3") {
		as = "env HOME=$PWD/home"
	}
	got := namespaced(t, v.dir, asUser+as+` bash commands 2> home.errors || { cat home.errors; exit 1; }
		grep -v 'there is no syslog' home.errors || true
		ls -A home/plain`)
	want := regexp.MustCompile(`(?s)^local:[0-9a-f]{32}\ncreated volume .*\n[A-Za-z0-9_-]{22,}\npath .*\nalgorithm +aes-256-gcm\n.*plaintext +6 bytes in 1 segments\n.*\nhello\n$`)
	if !want.MatchString(got) {
		t.Errorf("got\n%s", got)
	}
}

// TestReadmeRegions runs the second example of README.md, with one of its two regions killed.
func TestReadmeRegions(t *testing.T) {
	v := bareVolume(t)
	build := readmeBlock(t, "set-up is in [docs/kms.md](docs/kms.md).")
	if build != "go build -o ~/kmsemu ./integration/kmsemu\n\n" {
		t.Errorf("the commands are %q", build)
	}
	home := filepath.Join(v.dir, "home")
	must(t, os.Mkdir(home, 0o700))
	shell(t, "..", strings.ReplaceAll(build, "~", home))
	commands := readmeBlock(t, "Start two regions, each with one CMK, and make a volume that either of them opens:")
	// The regions end with the script, also where it fails.
	must(t, os.WriteFile(filepath.Join(v.dir, "commands"), []byte("set -e\ntrap 'kill $hangzhou $beijing 2> /dev/null || true' EXIT\n"+commands), 0o644))
	got := namespaced(t, v.dir, `env HOME=$PWD/home bash commands 2>&1 | grep -v 'there is no syslog'`)
	want := regexp.MustCompile(`(?s)^created volume .*\nhello\nkmsfs: warning: acs:kms:cn-hangzhou:.*connection refused\nhello\nCMK .*` +
		`\nacs:kms:cn-hangzhou:\S+ +- +no +no +no .*\nhuawei:kms:cn-north-4:\S+ +enabled +yes +yes +yes +yes .*1 of 2 CMKs cannot be used\n`)
	if !want.MatchString(got) {
		t.Errorf("got\n%s", got)
	}
}

// TestReadmeBoot makes the volume that README.md mounts at boot.
func TestReadmeBoot(t *testing.T) {
	v := bareVolume(t)
	commands := readmeBlock(t, "**At boot.** As root, make a volume, and a place to mount it:")
	must(t, os.WriteFile(filepath.Join(v.dir, "commands"), []byte("set -e\n"+commands), 0o644))
	got := namespaced(t, v.dir, `
		mount -t tmpfs -o mode=755 etc /etc
		mount -t tmpfs -o mode=755 srv /srv
		unset KMSFS_CONFIG_DIR
		bash commands > /dev/null
		kmsfs mount --log $PWD/log /srv/cipher /srv/plain
		echo hello > /srv/plain/f
		kmsfs umount /srv/plain
		ls -R /etc/kmsfs | sed 's/[0-9a-f]\{32\}/ID/'
		ls /srv/cipher | wc -l`)
	if want := "/etc/kmsfs:\ncmk\nvolumes\n\n/etc/kmsfs/volumes:\nID.toml\n1\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// setuidWorks reports whether a program gets its owner's rights when another user runs it.
func setuidWorks(t *testing.T, path string) bool {
	t.Helper()
	st, err := os.Stat(path)
	must(t, err)
	var where unix.Statfs_t
	must(t, unix.Statfs(path, &where))
	noNew, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	must(t, err)
	return st.Mode()&fs.ModeSetuid != 0 && where.Flags&unix.ST_NOSUID == 0 && noNew == 0
}

// TestReadmeInstall holds README.md to the commands that the Makefile has.
func TestReadmeInstall(t *testing.T) {
	build := readmeBlock(t, "Build and install; users other than root also need the package fuse3:")
	if build != "make\nsudo make install\n\n" {
		t.Errorf("the commands are %q", build)
	}
	service := readmeBlock(t, "or a service:")
	if _, err := os.Stat("../contrib/kmsfs@.service"); errors.Is(err, fs.ErrNotExist) || !strings.Contains(service, "kmsfs@srv-plain.service") {
		t.Errorf("the commands are %q, %v", service, err)
	}
}

// TestDemo runs the demo's script on a small source tree.
func TestDemo(t *testing.T) {
	dir := t.TempDir()
	shell(t, "..", "mkdir "+dir+"/src "+dir+"/tmp; cp -a cmd docs README.md "+dir+"/src")
	got := shell(t, "..", "demo=$PWD/scripts/demo.sh; cd "+dir+"/src; TMPDIR="+dir+"/tmp $demo "+binary+"; ls -A "+dir+"/tmp")
	for _, want := range []string{"\nit works\nok\n", " plaintext\n", "\nsegment 12 differs\n\n", "\nevery file is as it was\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if !strings.HasSuffix(got, "\nevery file is as it was\n") {
		t.Errorf("the demo leaves something behind:\n%s", got)
	}
}
