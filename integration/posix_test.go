package integration

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// ownLocks wants a process to be refused a lock that it holds itself, through another descriptor. POSIX and ext4 grant it (the test fails on
// ext4, too); so does kmsfs, see TestLocks.
const ownLocks = "FcntlFlockLocksFile"

// TestPosix runs go-fuse's conformance suite on names of both kinds.
func TestPosix(t *testing.T) {
	for mode, args := range map[string][]string{"SealedNames": nil, "PlaintextNames": {"--plaintext-names"}, "SM4": {"--algorithm", "sm4-128-gcm"}} {
		t.Run(mode, func(t *testing.T) {
			for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
				if name == ownLocks {
					continue
				}
				t.Run(name, func(t *testing.T) {
					posixtest.All[name](t, newVolume(t, args...).mount(t))
				})
			}
		})
	}
}

// rows are what programs ask of a file system: scripts whose output must be the same on plain ext4 and on kmsfs.
var rows = map[string]string{
	"Names": `for n in 1 100 143 175 176 200 254 255; do f=$(printf "%0${n}d" 0); echo $n > $f; cat $f; ln $f ${f%0}x 2>/dev/null || true; mv $f ${f%0}y; done
		ls | sort; touch $(printf "%0256d" 0) 2>&1 | grep -o 'name too long'; touch $'we\nird \x01\xff'; ls -b; rm -- *y; ls -b | wc -l`,
	"LongDirectories": `d=$(printf "%0250d" 0); mkdir -p $d/$d; echo x > $d/$d/f; mv $d e; cat e/*/f; rmdir e 2>&1 | grep -o 'not empty'; rm -r e; ls -A`,
	"Symlinks": `for n in 1 100 3000 3039 3040 4000 4095; do t=$(printf "%0${n}d" 0); ln -s $t l$n; stat -c '%s %F' l$n; readlink l$n | md5sum; done; mv l4095 m; ln m k; readlink k | wc -c; rm m; readlink k | wc -c
		ln -s $(printf "%04096d" 0) bad 2>&1 | grep -o 'name too long'; rm l*; ls`,
	"HardLinks": `echo a > a; ln a b; stat -c %h a b; echo c >> b; cat a; rm a; stat -c %h b; cat b; mkdir d; ln b d/c; mv d e; cat e/c; stat -c %h e/c`,
	"Rename": `echo 1 > a; echo 2 > b; mv a b; cat b; mkdir d e f; touch d/x; mv -T e f; mv -T f d 2>&1 | grep -o 'not empty'; mv d d/y 2>&1 | grep -o 'subdirectory'
		mv -T f b 2>&1 | grep -o 'with directory'; mkdir g; mv -T d g; ls g; ls; mv -n b g; ls -R`,
	"Sparse": `truncate -s 1M a; du --apparent-size a; stat -c %s a; echo x | dd of=a bs=1 seek=700000 conv=notrunc status=none; md5sum a; truncate -s 300000 a; md5sum a
		truncate -s 0 a; stat -c %s a; seq 1 90000 | head -c 524288 > b; cp b c; fallocate -p -o 65536 -l 131072 c; cmp -n 65536 b c; md5sum < <(dd if=c bs=64K skip=1 count=2 status=none); cmp -i 196608 b c
		xfs_io -c 'seek -a 0' c; fallocate -z -o 0 -l 100 c; head -c 100 c | md5sum; stat -c %s c; fallocate -l 1000000 c; stat -c %s c; fallocate -n -l 2000000 c; stat -c %s c`,
	"CopyRange": `dd if=/dev/zero bs=1 count=100000 status=none | tr '\0' q > a; xfs_io -f -c 'copy_range a' b; cmp a b && echo same; xfs_io -c 'copy_range -s 5 -d 50000 -l 20000 a' b; md5sum b; xfs_io -c 'copy_range -s 0 -d 5000 -l 9000 b' b 2>&1 | grep -o 'Invalid argument\|copy' | head -1`,
	"Xattrs": `touch f; mkdir d; ln -s x l; for n in f d; do setfattr -n user.a -v 1 $n; setfattr -n user.b $n; setfattr -n trusted.t -v tt $n; setfattr -n security.s -v ss $n; getfattr -d -m - $n; setfattr -x user.a $n; getfattr -d $n; getfattr -n user.a $n 2>&1 | grep -o 'No such attribute'; done
		setfattr -h -n trusted.l -v ll l; getfattr -h -d -m - l; setfattr -h -n user.l -v x l 2>&1 | grep -o 'not permitted'; setfattr -n user.$(printf "%0250d" 0) -v long f; getfattr -d f | wc -c; setfattr -n system.x -v x f 2>&1 | grep -o 'not supported'`,
	"ACL":           `umask 027; mkdir d; setfacl -m u:1000:rwx,d:u:1001:rwx,d:g::rx d; getfacl -cE d; touch d/f; mkdir d/s; getfacl -cE d/f d/s; chmod 700 d/f; getfacl -cE d/f; setfacl -b d; touch d/g; stat -c %a d/g; setfacl -k d; getfacl -c d`,
	"Modes":         `umask 022; touch f; chmod 6755 f; stat -c %a f; chown 1000:1000 f; stat -c '%a %u %g' f; chmod 4711 f; echo x >> f; stat -c %a f; mkdir -m 1777 d; stat -c %a d; mkdir g; chown :1000 g; chmod 2775 g; touch g/x; mkdir g/y; stat -c '%a %g' g/x g/y; chmod 000 f; stat -c %a f; cat f`,
	"Times":         `touch -d '2001-02-03 04:05:06.123456789' f; stat -c '%y' f; touch -h -d '1999-01-01' f; stat -c %Y f; ln -s f l; touch -h -d @5.5 l; stat -c '%.9Y' l; a=$(stat -c %Z f); sleep 0.01; touch -a f; stat -c %Y f; mkdir d; touch -d @7 d; touch d/x; test $(stat -c %Y d) -gt 7 && echo changed`,
	"Special":       `mkfifo p; mknod c c 1 3; mknod b b 7 0; stat -c '%F %t %T' p c b; (echo hi > p &) ; cat p; python3 -c "import socket; s=socket.socket(socket.AF_UNIX); s.bind('s')"; stat -c %F s; mv p q; rm c b s q; ls`,
	"Unlinked":      `exec 5<>f; echo one >&5; rm f; echo two >&5; stat -Lc '%h %s' /proc/self/fd/5; truncate -s 3 /proc/self/fd/5 2>/dev/null; chmod 600 /proc/self/fd/5; cat /proc/self/fd/5 2>/dev/null | head -c 3 | md5sum; touch f; stat -c %h f`,
	"Append":        `for i in $(seq 50); do echo line$i >> f; done; md5sum f; (for i in $(seq 200); do echo aaaaaaaaaa >> g; done) & (for i in $(seq 200); do echo bbbbbbbbbb >> g; done); wait; sort -o g g; uniq -c g`,
	"DirectAndSync": `dd if=/dev/zero of=f bs=4096 count=20 oflag=direct status=none; dd if=f bs=4096 iflag=direct status=none | md5sum; dd if=/dev/zero of=g bs=5000 count=3 oflag=sync,dsync status=none; stat -c %s f g; xfs_io -c 'pwrite 1 10' -c fsync -c fdatasync f >/dev/null; md5sum f; sync .`,
	"Mmap":          `truncate -s 20000 f; xfs_io -c 'mmap -rw 0 20000' -c 'mwrite -S 0x61 0 20000' -c 'msync -s' -c 'munmap' f; md5sum f; xfs_io -c 'pwrite -S 0x62 4090 20' -c 'mmap -r 0 20000' -c 'mread -v 4088 24' f | tail -2; truncate -s 5000 f; truncate -s 9000 f; md5sum f`,
	"TmpFile": `python3 -c "
import os
d=os.open('.', os.O_RDONLY)
f=os.open('.', os.O_RDWR|os.O_TMPFILE, 0o640)
os.write(f, b'tmp')
print(os.fstat(f).st_nlink, os.listdir('.'))
os.link('/proc/self/fd/%d'%f, 'named', dst_dir_fd=d, follow_symlinks=True)
print(os.fstat(f).st_nlink, open('named').read(), oct(os.stat('named').st_mode))
"`,
	"BigOffsets": `python3 -c "
import os
f=os.open('big', os.O_RDWR|os.O_CREAT)
os.pwrite(f, b'end', 1<<40)
print(os.fstat(f).st_size, os.pread(f, 5, (1<<40)-2), os.pread(f, 3, 1<<39))
os.pwrite(f, b'mid', 1<<39)
print(os.pread(f, 5, (1<<39)-1))
os.ftruncate(f, 1<<39)
print(os.fstat(f).st_size, os.pread(f, 5, (1<<39)-2))
" ; rm big`,
	"Errors":      `mkdir d; touch f; cat d 2>&1 | grep -o 'Is a directory'; cat f/x 2>&1 | grep -o 'Not a directory'; rmdir f 2>&1 | grep -o 'Not a directory'; rm d 2>&1 | grep -o 'Is a directory'; cat nope 2>&1 | grep -o 'No such file'; mkdir d 2>&1 | grep -o 'File exists'; ln -s l l; cat l 2>&1 | grep -o 'Too many levels'; ln d e 2>&1 | grep -o 'not allowed'; rmdir d/. 2>&1 | grep -o 'Invalid argument'`,
	"ManyEntries": `mkdir d; cd d; seq 1 3000 | xargs touch; ls | wc -l; ls -U | sort | md5sum; find . -name '*7' -delete; ls | wc -l; cd ..; rm -r d; ls`,
	"Exchange": `python3 -c "
import ctypes, os
libc=ctypes.CDLL(None, use_errno=True)
def rename(a,b,flags):
    r=libc.renameat2(-100,a.encode(),-100,b.encode(),flags)
    return r, os.strerror(ctypes.get_errno()) if r else ''
open('a','w').write('A'); os.mkdir('d'); open('d/x','w').write('X'); L='l'*250; open(L,'w').write('L')
print(rename('a','d',2), os.listdir('a'), open('d').read())
print(rename('d',L,2), open('d').read(), open(L).read())
print(rename('d','a',1), rename('d','new',1), sorted(os.listdir('.')))
print(rename('new','white',4), os.stat('new').st_mode)
"`,
}

// TestLikeExt4 runs every row on plain ext4 and on kmsfs, fresh and after a remount, and compares what it prints.
func TestLikeExt4(t *testing.T) {
	if len(rows) == 0 {
		t.Fatal("no rows")
	}
	base := t.TempDir()
	for mode, args := range map[string][]string{"SealedNames": nil, "PlaintextNames": {"--plaintext-names"}} {
		v := newVolume(t, args...)
		plain := v.mount(t)
		for _, name := range slices.Sorted(maps.Keys(rows)) {
			t.Run(mode+"/"+name, func(t *testing.T) {
				outputs := make([]string, 2)
				for i, parent := range []string{base, plain} {
					dir := filepath.Join(parent, mode+name)
					must(t, os.Mkdir(dir, 0o755))
					outputs[i] = shell(t, dir, "set +eo pipefail; exec 2>&1; "+rows[name]+"; true")
				}
				if outputs[0] != outputs[1] {
					t.Errorf("ext4:\n%s\nkmsfs:\n%s", outputs[0], outputs[1])
				}
				if len(outputs[0]) == 0 {
					t.Error("the row prints nothing")
				}
			})
		}
		v.remount(t)
		for _, name := range slices.Sorted(maps.Keys(rows)) {
			const list = `find . -printf '%p %y %m %n %U:%G %l\n' | sort; find . -type f -print0 | sort -z | xargs -0r md5sum; find . -type f -printf '%p %s\n' | sort; getfattr -R -h -d -m - . | sort`
			want, got := shell(t, filepath.Join(base, mode+name), list), shell(t, filepath.Join(plain, mode+name), list)
			if want != got {
				t.Errorf("%s/%s after a remount: ext4:\n%s\nkmsfs:\n%s", mode, name, want, got)
			}
		}
	}
}

// TestLocks checks locks between processes and within one.
func TestLocks(t *testing.T) {
	const script = `python3 -c "
import fcntl, os, subprocess, sys
f=open('f','w'); g=open('f','r+')
fcntl.lockf(f, fcntl.LOCK_EX)
fcntl.lockf(g, fcntl.LOCK_EX|fcntl.LOCK_NB)
print('own lock granted')
other='''import fcntl
f=open('f','r+')
for lock in (fcntl.lockf, fcntl.flock):
    try: lock(f, fcntl.LOCK_EX|fcntl.LOCK_NB); print('granted')
    except BlockingIOError: print('refused')
'''
print(subprocess.run([sys.executable,'-c',other],capture_output=True,text=True).stdout)
h=open('f','r+'); fcntl.flock(h, fcntl.LOCK_EX)
print(subprocess.run([sys.executable,'-c',other],capture_output=True,text=True).stdout)
"`
	want, got := shell(t, t.TempDir(), script), shell(t, newVolume(t).mount(t), script)
	if want != got {
		t.Errorf("ext4:\n%s\nkmsfs:\n%s", want, got)
	}
}

// TestUsers checks that entries belong to whoever makes them, and that permissions hold.
func TestUsers(t *testing.T) {
	plain := newVolume(t).mount(t, "allow_other")
	must(t, os.Chmod(plain, 0o777|os.ModeSticky))
	got := shell(t, plain, `set +e +o pipefail; as() { setpriv --reuid=1234 --regid=1235 --clear-groups "$@"; }
		as bash -c 'umask 022; echo x > f; mkdir d; ln -s x l; mkfifo p; echo y > d/g'; stat -c '%n %U:%G %u:%g %a' f d l p d/g | sed 's/UNKNOWN:UNKNOWN //'
		chmod 600 f; chown 0:0 f; as cat f 2>&1 | grep -o 'Permission denied' ; as rm -f f 2>&1 | grep -o 'not permitted' ; mkdir s; chown 0:77 s; chmod 2777 s; as touch s/x; stat -c %g s/x; findmnt -no OPTIONS -T .`+" | grep -o 'nosuid,nodev'")
	want := "f 1234:1235 644\nd 1234:1235 755\nl 1234:1235 777\np 1234:1235 644\nd/g 1234:1235 644\nPermission denied\nnot permitted\n77\nnosuid,nodev\n"
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
