package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestGit(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	shell(t, plain, `git init -q repo; cp -r "$(go env GOROOT)/src/net" repo/; cd repo; git add .; git -c user.name=t -c user.email=t@example.org commit -qm one
		cd ..; git clone -q repo clone; cd clone; git gc -q; git fsck --full --strict; test -z "$(git status --porcelain)"`)
	v.remount(t)
	shell(t, plain, `cd clone; git fsck --full; test -z "$(git status --porcelain)"; diff -r --exclude=.git . ../repo`)
}

func TestSQLite(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	for _, mode := range []string{"wal", "delete"} {
		shell(t, plain, `sqlite3 `+mode+`.db "PRAGMA journal_mode=`+mode+`; CREATE TABLE t(i INTEGER PRIMARY KEY, v);"
			insert() { for i in $(seq 40); do echo "INSERT INTO t(v) VALUES(randomblob(3000));"; done | sqlite3 -cmd '.timeout 300000' `+mode+`.db; }
			insert & insert & for i in 1 2 3 4 5; do sqlite3 -cmd '.timeout 300000' `+mode+`.db 'SELECT count(*) FROM t' >/dev/null; done; wait`)
	}
	v.remount(t)
	for _, mode := range []string{"wal", "delete"} {
		if got := shell(t, plain, `sqlite3 `+mode+`.db 'PRAGMA integrity_check; SELECT count(*) FROM t'`); got != "ok\n80\n" {
			t.Errorf("%s: %s", mode, got)
		}
	}
}

func TestRsync(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	src := filepath.Join(v.dir, "src")
	must(t, os.Mkdir(src, 0o755))
	shell(t, src, `cp -r "$(go env GOROOT)/src/fmt" a; ln a/print.go hard; ln -s a/print.go soft; truncate -s 5M sparse; echo x | dd of=sparse seek=5000 conv=notrunc status=none
		setfattr -n user.k -v value hard; setfattr -n trusted.k -v value a; setfacl -m u:1000:r hard; mkfifo fifo; mknod dev c 1 3; touch "$(printf '%0250d' 0)"; chown 1000:1001 soft -h; touch -d @1.123456789 a`)
	shell(t, plain, `rsync -aHAXS "`+src+`/" copy/`)
	v.remount(t)
	for _, extra := range []string{"", "--checksum"} {
		if diff := shell(t, plain, `rsync -aHAXSni `+extra+` --delete "`+src+`/" copy/`); diff != "" {
			t.Errorf("a second run %s would change:\n%s", extra, diff)
		}
	}
}

func TestTarGoSource(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	shell(t, plain, `tar -C "$(go env GOROOT)" -c src | tar -x`)
	const sums = `find src -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum; find src -type f | wc -l`
	v.remount(t)
	want, got := shell(t, ".", `cd "$(go env GOROOT)"; `+sums), shell(t, plain, sums)
	if want != got {
		t.Errorf("got %s, want %s", got, want)
	}
	shell(t, plain, `rm -r src; test -z "$(ls -A)"`)
	if left := v.sealedFiles(t); len(left) > 0 {
		t.Errorf("%d ciphertext files left", len(left))
	}
}

func TestOverlayUpper(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	shell(t, v.dir, `mkdir lower merged plain/upper plain/work; echo low > lower/a; echo gone > lower/b; mkdir lower/d; touch lower/d/x`)
	merged := filepath.Join(v.dir, "merged")
	opts := "lowerdir=" + v.dir + "/lower,upperdir=" + plain + "/upper,workdir=" + plain + "/work"
	if err := unix.Mount("overlay", merged, "overlay", 0, opts); err != nil {
		t.Fatalf("overlayfs does not take the mount as its upper layer: %v", err)
	}
	defer func() { must(t, unix.Unmount(merged, 0)) }()
	got := shell(t, merged, `echo more >> a; rm b; rm -r d; mkdir d; echo new > d/y; mv a c; cat c; ls -A . d`)
	if want := "low\nmore\n.:\nc\nd\n\nd:\ny\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if b, err := os.ReadFile(filepath.Join(v.dir, "lower/a")); err != nil || string(b) != "low\n" {
		t.Errorf("the lower layer changed: %q, %v", b, err)
	}
}

// TestRandomAccess counts bytes in the ciphertext of a file of 1 GiB: one byte overwritten changes one segment, which is written once to the journal and
// once in place.
func TestRandomAccess(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	shell(t, plain, `head -c 1G /dev/zero | tr '\0' z > big`)
	v.umount(t)
	sealed := v.sealedFiles(t)[0]
	trace := filepath.Join(v.dir, "trace")
	plain = v.mount(t)
	pid := strings.TrimSpace(shell(t, v.dir, `pgrep -f "^[^ ]*kmsfs mount.*`+v.cipher+`"`))
	must(t, os.WriteFile(filepath.Join(v.dir, "trace.sh"), []byte(`strace -ff -y -qq -e signal=none -e trace=pread64,pwrite64 -o `+trace+` -p `+pid+` & s=$!
		`+attached(pid)+`
		(cd `+plain+`; xfs_io -c 'pwrite -S 0x41 700000000 1' -c fsync big >/dev/null; xfs_io -d -c 'pread 400003072 4096' big >/dev/null)
		`+binary+` umount `+plain+`; wait $s || true`), 0o755))
	shell(t, v.dir, "bash "+v.dir+"/trace.sh")
	v.mounted = false
	b := traced(t, trace)
	read, wrote, logged := 0, 0, 0
	for _, line := range bytes.Split(b, []byte("\n")) {
		if bytes.Contains(line, []byte("/.kmsfs/journal.")) && bytes.Contains(line, []byte("pwrite64(")) {
			logged += returned(line)
		}
		if !bytes.Contains(line, []byte(filepath.Base(sealed))) {
			continue
		}
		n := returned(line)
		switch {
		case bytes.Contains(line, []byte("pwrite64(")):
			wrote += n
		case bytes.Contains(line, []byte("pread64(")):
			read += n
		}
	}
	// Two opens read the header, whose file ID the journal notes; the overwrite reads and writes its segment and reads the hole root; an unaligned
	// read of 4 KiB may touch two segments.
	if wrote != slot {
		t.Errorf("overwriting a byte wrote %d bytes, want %d\n%s", wrote, slot, b)
	}
	if logged < slot || logged > slot+512 {
		t.Errorf("the journal got %d bytes\n%s", logged, b)
	}
	if limit := 2*headerSize + 512 + 40 + 3*slot; read == 0 || read > limit {
		t.Errorf("read %d bytes, at most %d expected\n%s", read, limit, b)
	}
}

// attached is a line of shell that waits until every thread of a process is traced.
func attached(pid string) string {
	return `for i in $(seq 1200); do grep -L "TracerPid:	[1-9]" /proc/` + pid + `/task/*/status 2>/dev/null | grep -q . || break; sleep 0.05; done`
}

// traced returns what strace wrote about each thread; in one file, calls of several threads would interrupt each other's lines.
func traced(t *testing.T, prefix string) (b []byte) {
	files, err := filepath.Glob(prefix + ".*")
	must(t, err)
	for _, f := range files {
		if f == prefix+".sh" {
			continue
		}
		part, err := os.ReadFile(f)
		must(t, err)
		b = append(b, part...)
	}
	return b
}

// returned is the number behind the last equals sign of a line of strace.
func returned(line []byte) (n int) {
	i := bytes.LastIndexByte(line, '=')
	for _, c := range line[i+1:] {
		if c >= '0' && c <= '9' {
			n = 10*n + int(c-'0')
		}
	}
	return n
}

// TestListingOpensNothing shows that names and sizes of a directory come from the directory and stat alone.
func TestListingOpensNothing(t *testing.T) {
	v := newVolume(t)
	shell(t, v.mount(t), `for i in $(seq 200); do echo $i > f$i; done`)
	v.umount(t)
	plain := v.mount(t)
	pid := strings.TrimSpace(shell(t, v.dir, `pgrep -f "^[^ ]*kmsfs mount.*`+v.cipher+`"`))
	trace := filepath.Join(v.dir, "trace")
	must(t, os.WriteFile(filepath.Join(v.dir, "trace.sh"), []byte(`strace -ff -qq -e signal=none -e trace=openat,pread64,newfstatat -o `+trace+` -p `+pid+` & s=$!
		`+attached(pid)+`
		ls -l | wc -l; kill $s; wait $s || true`), 0o755))
	if got := strings.TrimSpace(shell(t, plain, "bash "+v.dir+"/trace.sh")); got != "201" {
		t.Fatalf("ls printed %s lines", got)
	}
	b := traced(t, trace)
	if stats := bytes.Count(b, []byte("newfstatat(")); stats < 200 {
		t.Errorf("only %d calls of stat: the trace is not whole", stats)
	}
	// The daemon opens what is in the ciphertext from directories that it holds; absolute paths are the runtime's own (/sys, /proc).
	opens := bytes.Count(b, []byte("openat(")) - bytes.Count(b, []byte(`openat(AT_FDCWD, "/`))
	if opens > 1 || bytes.Contains(b, []byte("pread64(")) {
		t.Errorf("listing 200 files opened %d:\n%s", opens, b)
	}
}
