package integration

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// Exit codes beside those of lifecycle_test.go.
const (
	exitOther = 1
	exitIO    = 9
)

// A badInput is one way to use the program wrongly. $V is a good volume, $K its CMK, $P an empty mountpoint, $C the configuration
// directory and $R a directory of the row's own.
type badInput struct {
	name    string
	setup   string // a shell script, in $R
	env     string // words NAME=VALUE
	args    string // words
	code    int
	says    string // a regular expression over the message, which must name what is at fault
	user    bool   // run as a user who owns nothing
	cleanup string // a shell script, in $R
}

func badKeys() []badInput {
	return []badInput{
		{name: "key without a command", args: "key", code: exitUsage, says: "kmsfs key new FILE"},
		{name: "unknown key command", args: "key nex x", code: exitUsage, says: `"nex".*did you mean new`},
		{name: "key without a file", args: "key new", code: exitUsage, says: "FILE is missing"},
		{name: "two key files", args: "key new $R/a $R/b", code: exitUsage, says: "/b.* one too many"},
		{name: "empty key file name", args: "key new ''", code: exitUsage, says: "empty"},
		{name: "flag of another tool", args: "key new --force $R/a", code: exitUsage, says: "--force"},
		{name: "key file exists", args: "key new $K", code: exitOther, says: "$K.*never overwritten"},
		{name: "key in no directory", args: "key new $R/none/k", code: exitOther, says: "$R/none/k"},
		{name: "key below a file", args: "key new $K/k", code: exitOther, says: "$K/k.*not a directory"},
		{name: "key name too long", args: "key new $R/" + strings.Repeat("k", 256), code: exitOther, says: "too long"},
		{name: "key in a foreign directory", args: "key new $R/k", user: true, code: exitOther, says: "$R/k.*permission denied"},
		{name: "key on a full disk", setup: fullDisk, cleanup: "umount disk", args: "key new $R/disk/k", code: exitIO, says: "disk/k.*no space"},
		{name: "key on a read-only disk", setup: readOnlyDisk, cleanup: "umount disk", args: "key new $R/disk/k", code: exitIO, says: "disk/k.*read-only"},
	}
}

// Small ext4 images, mounted on disk. The loop device goes with the mount.
const (
	fullDisk = `truncate -s 8M image; mkfs.ext4 -q -m 0 -O ^has_journal image; mkdir disk
		dev=$(losetup --find --show image); mount $dev disk; losetup --detach $dev
		dd if=/dev/zero of=disk/fill bs=64k 2>/dev/null || true; dd if=/dev/zero of=disk/rest bs=512 2>/dev/null || true; sync -f disk`
	readOnlyDisk = `truncate -s 8M image; mkfs.ext4 -q -m 0 -O ^has_journal image; mkdir disk
		dev=$(losetup --find --show --read-only image); mount -o ro $dev disk; losetup --detach $dev`
)

func badInits() []badInput {
	rows := []badInput{
		{name: "no CMK", args: "init $R/c", code: exitUsage, says: "--cmk"},
		{name: "no directory", args: "init --cmk local:$K", code: exitUsage, says: "CIPHERDIR is missing"},
		{name: "two directories", args: "init --cmk local:$K $R/c $R/d", code: exitUsage, says: "$R/d"},
		{name: "empty directory name", args: "init --cmk local:$K ''", code: exitUsage, says: "empty"},
		{name: "flag after the directory", args: "init --cmk local:$K $R/c --plaintext-names", code: exitUsage, says: "--plaintext-names stands after $R/c"},
		{name: "misspelt flag", args: "init --cmk local:$K --algoritm x $R/c", code: exitUsage, says: "--algoritm.*did you mean --algorithm"},
		{name: "flag without value", args: "init --cmk", code: exitUsage, says: "--cmk"},
		{name: "unknown algorithm", args: "init --cmk local:$K --algorithm rot13 $R/c", code: exitUsage, says: "rot13"},
		{name: "empty algorithm", args: "init --cmk local:$K --algorithm= $R/c", code: exitUsage, says: "--algorithm"},
		{name: "17 CMKs", args: "init" + strings.Join(append([]string{""}, seventeen()...), " --cmk local:/") + " $R/c", code: exitUsage, says: "17 CMKs; at most 16"},
		{name: "CMK twice", args: "init --cmk local:$K --cmk local:$K $R/c", code: exitUsage, says: "$K is given twice"},
		{name: "CMK in two files", setup: "cp $K k2", args: "init --cmk local:$K --cmk local:$R/k2 $R/c", code: exitUsage, says: "$R/k2 are the same"},
		{name: "not empty", setup: "mkdir c; touch c/x", args: "init --cmk local:$K $R/c", code: exitOther, says: "$R/c.*not empty"},
		{name: "already a volume", args: "init --cmk local:$K $V", code: exitOther, says: "$V is a volume already"},
		{name: "on a file", setup: "touch c", args: "init --cmk local:$K $R/c", code: exitOther, says: "$R/c.*not a directory"},
		{name: "parent missing", args: "init --cmk local:$K $R/none/c", code: exitOther, says: "$R/none/c.*no such"},
		{name: "parent unwritable", setup: "cp $K k; chown 65534 k", args: "init --cmk local:$R/k $R/c", env: "KMSFS_CONFIG_DIR=$R/conf", user: true, code: exitOther, says: "$R/c.*permission denied"},
		{name: "CMK of somebody else", args: "init --cmk local:$K $R/c", env: "KMSFS_CONFIG_DIR=$R/conf", user: true, code: exitCMK, says: "$K.*permission denied"},
		{name: "full disk", setup: fullDisk, cleanup: "umount disk", args: "init --cmk local:$K $R/disk/c", code: exitIO, says: "disk/c.*no space"},
		{name: "read-only disk", setup: readOnlyDisk, cleanup: "umount disk", args: "init --cmk local:$K $R/disk/c", code: exitIO, says: "disk/c.*read-only"},
		{name: "missing configuration", args: "init --config $R/x.toml --cmk local:$K $R/c", code: exitUsage, says: "$R/x.toml"},
		{name: "configuration is a directory", args: "init --config $R --cmk local:$K $R/c", code: exitUsage, says: "$R is not"},
		{name: "configuration is a FIFO", setup: "mkfifo x.toml", args: "init --config $R/x.toml --cmk local:$K $R/c", code: exitUsage, says: "x.toml is not"},
		{name: "configuration of nobody's", setup: "echo 'log = 1' > x.toml", args: "init --config $R/x.toml --cmk local:$K $R/c", code: exitUsage, says: "x.toml:1:7"},
		{name: "unknown setting", setup: "echo 'cmks = []' > x.toml", args: "init --config $R/x.toml --cmk local:$K $R/c", code: exitUsage, says: "x.toml.*(?s:.*)cmks"},
		{name: "bad TOML", setup: "echo '[[' > x.toml", args: "init --config $R/x.toml --cmk local:$K $R/c", code: exitUsage, says: "x.toml:1:"},
		{name: "configuration open to others", setup: "touch x.toml; chmod 666 x.toml", args: "init --config $R/x.toml --cmk local:$K $R/c", code: exitUsage, says: "chmod go-w $R/x.toml"},
		{name: "bad default configuration", setup: "mkdir conf; echo 'x = 1' > conf/kmsfs.toml", env: "KMSFS_CONFIG_DIR=$R/conf", args: "init --cmk local:$K $R/c", code: exitUsage, says: "conf/kmsfs.toml"},
		{name: "CMK of the configuration", setup: "echo 'cmk = [\"local:x\"]' > x.toml", args: "init --config $R/x.toml $R/c", code: exitUsage, says: "local:x.*absolute"},
		{name: "endpoint of the configuration", setup: "echo 'endpoint = [\"x\"]' > x.toml", args: "init --config $R/x.toml --cmk local:$K $R/c", code: exitUsage, says: `endpoint "x"`},
		{name: "segment size of the configuration", setup: "echo 'segment-size = 5' > x.toml", args: "init --config $R/x.toml --cmk local:$K $R/c", code: exitUsage, says: "segment-size 5"},
		{name: "endpoint of the environment", env: "KMSFS_ENDPOINTS=huawei/r=http://example.org", args: "init --cmk local:$K $R/c", code: exitUsage, says: "example.org.*loopback"},
	}
	for name, r := range map[string][2]string{ // a file that is no CMK: how it is made, what is said
		"missing":       {"", "no such file.*kmsfs key new"},
		"mode 0644":     {"cp $K k; chmod 644 k", "0644.*chmod 600 $R/k"},
		"mode 0640":     {"cp $K k; chmod 640 k", "0640.*chmod 600 $R/k"},
		"a directory":   {"mkdir -m 700 k", "not a regular file"},
		"a FIFO":        {"mkfifo -m 600 k", "not a regular file"},
		"a device":      {"ln -s /dev/null k", "not a regular file"},
		"empty":         {"install -m 600 /dev/null k", "not a local CMK"},
		"garbage":       {"(umask 077; echo hello > k)", "not a local CMK"},
		"too long":      {"(umask 077; cat $K $K $K > k)", "bytes long"},
		"two lines":     {"(umask 077; cat $K $K > k)", "not a local CMK"},
		"cut":           {"(umask 077; head -c 100 $K > k)", "not a local CMK"},
		"another magic": {"(umask 077; sed s/cmk-1/cmk-9/ $K > k)", "not a local CMK"},
		"dangling":      {"ln -s none k", "no such file"},
		"a loop":        {"ln -s k k", "too many levels"},
		"below a file":  {"mkdir d; touch d/x; ln -s d/x/y k", "not a directory"},
	} {
		rows = append(rows,
			badInput{name: "CMK file: " + name, setup: r[0], args: "init --cmk local:$R/k $R/c", code: exitCMK, says: "$R/k.*" + r[1]},
			badInput{name: "second CMK file: " + name, setup: r[0], args: "init --cmk local:$K --cmk local:$R/k $R/c", code: exitCMK, says: "$R/k.*" + r[1]})
	}
	for _, uri := range []string{"$K", "local:", "local:relative", "locl:$K", "acs:kms:cn-hangzhou:1:key/", "acs:kms:cn-hangzhou:1:alias/x", "acs:kms::1:key/x",
		"huawei:kms:cn-north-4:key/x", "huawei:kms:cn-north-4:p:x", "aws:kms:us-east-1:1:key/x", "http://example.org"} {
		rows = append(rows, badInput{name: "URI " + uri, args: "init --cmk " + uri + " $R/c", code: exitUsage, says: uri})
	}
	for _, size := range []string{"0", "1", "5000", "-4096", "2048", "131072", "4k", "99999999999999999999"} {
		rows = append(rows, badInput{name: "segment size " + size, args: "init --cmk local:$K --segment-size=" + size + " $R/c", code: exitUsage, says: "segment-size"})
	}
	for name, value := range map[string]string{"no value": "x", "no key": "=x", "not UTF-8": "\xff=1", "too long": "k=" + strings.Repeat("x", 9000)} {
		rows = append(rows, badInput{name: "context: " + name, args: "init --cmk local:$K --context " + value + " $R/c", code: exitUsage, says: "--context"})
	}
	rows = append(rows,
		badInput{name: "context twice", args: "init --cmk local:$K --context a=1 --context a=2 $R/c", code: exitUsage, says: "--context.*a=2.*twice"},
		badInput{name: "65 contexts", args: "init --cmk local:$K" + manyContexts(65) + " $R/c", code: exitUsage, says: "--context.*65 entries"})
	for _, e := range []string{"x", "aws/r=https://h", "huawei/=https://h", "huawei/r=h", "huawei/r=http://example.org", "alibaba/r=ftp://localhost", "alibaba/r=https://u:p@h"} {
		place, _, _ := strings.Cut(e, "=")
		rows = append(rows, badInput{name: "endpoint " + e, args: "init --cmk local:$K --endpoint " + e + " $R/c", code: exitUsage, says: "endpoint.*" + regexp.QuoteMeta(place)})
	}
	return rows
}

func seventeen() (names []string) {
	for i := range 17 {
		names = append(names, fmt.Sprint(i))
	}
	return names
}

func manyContexts(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, " --context k%d=v", i)
	}
	return b.String()
}

func badMounts() []badInput {
	rows := []badInput{
		{name: "no operands", args: "mount", code: exitUsage, says: "CIPHERDIR is missing"},
		{name: "no mountpoint", args: "mount $V", code: exitUsage, says: "MOUNTPOINT is missing"},
		{name: "three operands", args: "mount $V $P $R", code: exitUsage, says: "$R.*one too many"},
		{name: "empty mountpoint", args: "mount $V ''", code: exitUsage, says: "operand 2 of mount is empty"},
		{name: "flag after operands", args: "mount $V $P --foreground", code: exitUsage, says: "--foreground stands after $V"},
		{name: "unknown option", args: "mount -o alow_other $V $P", code: exitUsage, says: "alow_other.*did you mean allow_other"},
		{name: "remount", args: "mount -o remount,ro $V $P", code: exitUsage, says: "remount.*unmount it"},
		{name: "option without value", args: "mount -o cmk= $V $P", code: exitUsage, says: "cmk needs a value"},
		{name: "option of the configuration", setup: "echo 'options = [\"bogus\"]' > x.toml", args: "mount --config $R/x.toml $V $P", code: exitUsage, says: "bogus"},
		{name: "configuration as an option", args: "mount -o config=$R/x.toml $V $P", code: exitUsage, says: "$R/x.toml"},
		{name: "log to stderr in the background", args: "mount --log stderr $V $P", code: exitUsage, says: "--log stderr.*--foreground"},
		{name: "log in the ciphertext", args: "mount --log $V/log $V $P", code: exitUsage, says: "--log $V/log.*inside $V"},
		{name: "log in the mountpoint", args: "mount -o log=$P/log $V $P", code: exitUsage, says: "--log $P/log.*inside $P"},
		{name: "log in no directory", args: "mount --log $R/none/log $V $P", code: exitUsage, says: "--log $R/none/log"},
		{name: "log is a directory", args: "mount --log $R $V $P", code: exitOther, says: "--log.*$R.*is a directory"},
		{name: "CMK twice", args: "mount -o cmk=local:$K --cmk local:$K $V $P", code: exitUsage, says: "$K is given twice"},
		{name: "CMK URI", args: "mount -o cmk=local:x $V $P", code: exitUsage, says: "local:x.*absolute"},
		{name: "endpoint", args: "mount -o endpoint=x $V $P", code: exitUsage, says: `endpoint "x"`},

		{name: "no volume there", args: "mount $R/none $P", code: exitNotVolume, says: "$R/none.*no such"},
		{name: "volume is a file", args: "mount $K $P", code: exitNotVolume, says: "$K.*not a directory"},
		{name: "not a volume", args: "mount $R $P", code: exitNotVolume, says: "$R has no .kmsfs"},
		{name: "volume without header", setup: "mkdir -p c/.kmsfs", args: "mount $R/c $P", code: exitNotVolume, says: "c/.kmsfs has no file volume"},
		{name: ".kmsfs is a link", setup: "mkdir c; ln -s $V/.kmsfs c/.kmsfs", args: "mount $R/c $P", code: exitNotVolume, says: "$R/c has no .kmsfs"},
		{name: "unreadable volume", args: "mount $V $P", env: "KMSFS_CONFIG_DIR=$R/conf", user: true, code: exitOther, says: "$V.*permission denied"},

		{name: "no trusted CMK", env: "KMSFS_CONFIG_DIR=$R/conf", args: "mount $V $P", code: exitCMK, says: "(?s)$V: no CMK is trusted.*local:[0-9a-f]{32}.*--cmk"},
		{name: "foreign CMK", setup: "$KMSFS key new k", args: "mount --cmk local:$R/k $V $P", code: exitCMK, says: "(?s)no EDK is from a trusted CMK.*--cmk"},
		{name: "missing CMK", args: "mount --cmk local:$R/k $V $P", code: exitCMK, says: "$R/k"},
		{name: "missing CMK of the record", setup: "cp -a $C conf; sed -i s,/cmk,/gone, conf/volumes/*", env: "KMSFS_CONFIG_DIR=$R/conf", args: "mount $V $P", code: exitCMK, says: "/gone.*no such"},
		{name: "broken record", setup: "cp -a $C conf; echo x >> $(echo conf/volumes/*)", env: "KMSFS_CONFIG_DIR=$R/conf", args: "mount $V $P", code: exitUsage, says: "$R/conf/volumes/[0-9a-f]*.toml"},
		{name: "record open to others", setup: "cp -a $C conf; chmod 666 conf/volumes/*", env: "KMSFS_CONFIG_DIR=$R/conf", args: "mount $V $P", code: exitUsage, says: "chmod go-w $R/conf/volumes/"},
		{name: "no credentials", env: "CREDENTIALS_DIRECTORY=$R/none", args: "mount $V $P", code: exitOther, says: "CREDENTIALS_DIRECTORY.*$R/none"},

		{name: "no mountpoint there", args: "mount $V $R/none", code: exitMountpoint, says: "$R/none does not exist.*mkdir"},
		{name: "mountpoint in no directory", args: "mount $V $R/none/p", code: exitMountpoint, says: "$R/none"},
		{name: "mountpoint is a file", args: "mount $V $K", code: exitMountpoint, says: "$K is not a directory"},
		{name: "mountpoint is not empty", setup: "touch x", args: "mount $V $R", code: exitMountpoint, says: "$R is not empty.*nonempty"},
		{name: "mountpoint is the ciphertext", args: "mount -o nonempty $V $V", code: exitMountpoint, says: "$V and the ciphertext $V"},
		{name: "mountpoint in the ciphertext", setup: "cp -a $V c; mkdir c/p", args: "mount $R/c $R/c/p", code: exitMountpoint, says: "c/p and the ciphertext"},
		{name: "ciphertext in the mountpoint", setup: "cp -a $V c", args: "mount -o nonempty $R/c $R", code: exitMountpoint, says: "$R and the ciphertext"},
		{name: "ciphertext in the mountpoint, through a link", setup: "cp -a $V c; ln -s . l", args: "mount -o nonempty $R/c $R/l", code: exitMountpoint, says: "$R and the ciphertext"},
		{name: "dangling mountpoint", setup: "ln -s none p", args: "mount $V $R/p", code: exitMountpoint, says: "$R/p"},
	}
	for name, r := range map[string]struct {
		edit, says string
		code       int
	}{
		"no magic":          {`printf XXXX | dd of=$f conv=notrunc status=none`, "damaged.*volume.*magic|damaged", exitDamaged},
		"newer format":      {`printf '\2' | dd of=$f bs=1 seek=9 conv=notrunc status=none`, "newer", exitVersion},
		"unknown algorithm": {`printf '\77' | dd of=$f bs=1 seek=13 conv=notrunc status=none; printf '\77' | dd of=$f bs=1 seek=12 conv=notrunc status=none`, "damaged", exitDamaged},
		"cut":               {`truncate -s 100 $f`, "damaged", exitDamaged},
		"empty":             {`truncate -s 0 $f`, "damaged", exitDamaged},
		"huge":              {`truncate -s 1G $f`, "at most", exitDamaged},
		"a directory":       {`rm $f; mkdir $f`, "not a regular file", exitDamaged},
		"a link":            {`mv $f elsewhere; ln -s $PWD/elsewhere $f`, "damaged", exitDamaged},
		"a FIFO":            {`rm $f; mkfifo $f`, "not a regular file", exitDamaged},
		"file ID changed":   {`printf XXXX | dd of=$f bs=1 seek=24 conv=notrunc status=none`, "volume", exitCMK},
		"last byte":         {`printf X | dd of=$f bs=1 seek=$(($(stat -c %s $f) - 1)) conv=notrunc status=none`, "damaged", exitDamaged},
	} {
		rows = append(rows, badInput{name: "volume header: " + name, setup: "cp -a $V c; for f in c/.kmsfs/volume c/.kmsfs/volume.copy; do " + r.edit + "; done",
			args: "mount $R/c $P", code: r.code, says: r.says})
	}
	return rows
}

func badOthers() []badInput {
	return []badInput{
		{name: "unknown command", args: "moutn $V $P", code: exitUsage, says: `"moutn".*did you mean mount`},
		{name: "unknown global flag", args: "--verbos", code: exitUsage, says: "--verbos"},
		{name: "help of nothing", args: "help nothing", code: exitUsage, says: `"nothing"`},
		{name: "version with operand", args: "version 2", code: exitUsage, says: `"2"`},
		{name: "umount nothing", args: "umount", code: exitUsage, says: "MOUNTPOINT is missing"},
		{name: "umount two", args: "umount $P $R", code: exitUsage, says: "$R"},
		{name: "umount what is not mounted", args: "umount $P", code: exitMountpoint, says: "$P is not mounted"},
		{name: "umount what is not there", args: "umount $R/none", code: exitMountpoint, says: "$R/none is not mounted"},
		{name: "umount in no directory", args: "umount $R/none/p", code: exitMountpoint, says: "$R/none"},
		{name: "umount another filesystem", args: "umount /proc", code: exitMountpoint, says: "/proc is a proc mount"},
		{name: "inspect nothing", args: "inspect", code: exitUsage, says: "FILE_OR_CIPHERDIR is missing"},
		{name: "inspect two", args: "inspect $V $V", code: exitUsage, says: "one too many"},
		{name: "inspect unknown flag", args: "inspect --jsn $V", code: exitUsage, says: "--jsn.*did you mean --json"},
		{name: "inspect what is not there", args: "inspect $R/none", code: exitNotVolume, says: "$R/none"},
		{name: "inspect a plain file", args: "inspect $K", code: exitNotVolume, says: "$K.*not a kmsfs header"},
		{name: "inspect a plain directory", args: "inspect $R", code: exitNotVolume, says: "$R has no .kmsfs"},
		{name: "inspect a FIFO", setup: "mkfifo f", args: "inspect $R/f", code: exitNotVolume, says: "$R/f"},
		{name: "inspect a cut header", setup: "head -c 300 $V/.kmsfs/volume > f", args: "inspect $R/f", code: exitNotVolume, says: "$R/f"},
		{name: "inspect a newer header", setup: `cp $V/.kmsfs/volume f; printf '\2' | dd of=f bs=1 seek=9 conv=notrunc status=none`, args: "inspect $R/f", code: exitVersion, says: "$R/f.*newer"},
		{name: "inspect what is unreadable", setup: "install -m 600 $V/.kmsfs/volume f", args: "inspect $R/f", user: true, code: exitOther, says: "$R/f.*permission denied"},
	}
}

// TestBadInput uses the program wrongly in every way: each gets its exit code and a message that names what is at fault, and
// changes nothing on disk.
func TestBadInput(t *testing.T) {
	v := newVolume(t)
	program := filepath.Join(v.dir, "kmsfs") // where every user can reach it
	shell(t, v.dir, "install -m 755 "+binary+" kmsfs")
	must(t, os.Mkdir(filepath.Join(v.dir, "rows"), 0o755))
	groups := map[string][]badInput{"key": badKeys(), "init": badInits(), "mount": badMounts(), "other": badOthers(), "command": badCommands()}
	n := 0
	for group, rows := range groups {
		for _, r := range rows {
			n++
			dir := filepath.Join(v.dir, "rows", fmt.Sprint(n))
			t.Run(group+"/"+r.name, func(t *testing.T) { r.test(t, v, program, dir) })
		}
	}
	if n < 60 {
		t.Errorf("only %d rows", n)
	}
}

func (r badInput) test(t *testing.T, v *volume, program, dir string) {
	must(t, os.Mkdir(dir, 0o755))
	defer os.RemoveAll(dir) // or each row would look at those of all before it
	vars := strings.NewReplacer("$V", v.cipher, "$KMSFS", program, "$K", v.cmk, "$P", v.plain, "$C", v.config, "$R", dir)
	shell(t, dir, vars.Replace(r.setup))
	defer shell(t, dir, r.cleanup)
	words := strings.Fields(vars.Replace(r.args))
	for i, w := range words {
		words[i] = strings.Trim(w, "'")
	}
	cmd := exec.Command(program, words...)
	cmd.Env = append(os.Environ(), "KMSFS_CONFIG_DIR="+v.config)
	cmd.Env = append(cmd.Env, strings.Fields(vars.Replace(r.env))...)
	if r.user {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A wrong command line touches nothing; what fails later may have come and gone.
	touched := r.code != exitUsage
	before := snapshot(t, v.dir, touched)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != r.code {
		t.Errorf("exit code %d, want %d\n%s", got, r.code, stderr.String())
	}
	says := strings.NewReplacer("$V", v.cipher, "$K", v.cmk, "$P", v.plain, "$R", dir).Replace(r.says)
	if !regexp.MustCompile(says).Match(stderr.Bytes()) {
		t.Errorf("message %q does not match %q", stderr.String(), says)
	}
	for line := range strings.Lines(stderr.String()) {
		if !strings.HasPrefix(line, "kmsfs: ") {
			t.Errorf("line %q", line)
		}
	}
	if stdout.Len() > 0 {
		t.Errorf("standard output: %q", stdout.String())
	}
	for path, was := range before {
		is, err := describe(path, touched)
		if err != nil || is != was {
			t.Errorf("%s was %s, is %s, %v", path, was, is, err)
		}
	}
	for path := range snapshot(t, v.dir, touched) {
		if before[path] == "" {
			t.Errorf("%s is new", path)
		}
	}
}

// snapshot describes everything below dir.
func snapshot(t *testing.T, dir string, touched bool) map[string]string {
	t.Helper()
	all := make(map[string]string)
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Name() != "image" { // what a loop device writes to
			all[path], err = describe(path, touched)
		}
		return err
	}))
	return all
}

// describe tells one file from a changed one. With touched, the times of directories do not matter.
func describe(path string, touched bool) (string, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	sys := st.Sys().(*syscall.Stat_t)
	d := fmt.Sprint(st.Mode(), sys.Uid, sys.Gid, sys.Nlink)
	if !st.IsDir() || !touched {
		d += fmt.Sprint(" ", st.Size(), st.ModTime())
	}
	if st.Mode()&os.ModeSymlink != 0 {
		target, err := os.Readlink(path)
		return d + " " + target, err
	}
	if st.Mode().IsRegular() && st.Size() < 1<<20 {
		b, err := os.ReadFile(path)
		return d + fmt.Sprintf(" %x", sha256.Sum256(b)), err
	}
	return d, nil
}
