package integration

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// okQuietly fails the test if the program fails, and returns its standard output.
func (c *clouds) okQuietly(t *testing.T, stdin []byte, args ...string) string {
	t.Helper()
	r := c.piped(t, stdin, args...)
	if r.code != 0 {
		t.Fatalf("kmsfs %s: exit code %d\n%s", strings.Join(args, " "), r.code, r.stderr)
	}
	return r.stdout
}

// dataCMKs are those of the clouds and a local one.
func dataCMKs(t *testing.T, c *clouds) []string {
	t.Helper()
	c.ok(t, "key", "new", c.cmk)
	return append([]string{"local:" + c.cmk}, c.cmks...)
}

// TestData encrypts small data under every kind of CMK, in files and streams.
func TestData(t *testing.T) {
	c := newClouds(t, emulator.Options{})
	cmks := dataCMKs(t, c)
	outside := t.TempDir()                       // plaintext may be there
	for _, size := range []int{24, 3073, 4096} { // shorter ones would be found anywhere
		plain := make([]byte, size)
		rand.Read(plain)
		in, sealed, out := filepath.Join(outside, "in"), filepath.Join(c.dir, "sealed"), filepath.Join(outside, "out")
		must(t, os.WriteFile(in, plain, 0o644))
		for _, cmk := range cmks {
			c.ok(t, "data", "encrypt", "--cmk", cmk, "--context", "app=web", "--force", in, sealed)
			c.ok(t, "data", "decrypt", "--cmk", cmk, "--force", sealed, out)
			got, err := os.ReadFile(out)
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%s, %d bytes: the same: %t, %v", cmk, size, bytes.Equal(got, plain), err)
			}
			for _, path := range []string{sealed, out} {
				if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
					t.Errorf("%s: %v, %v", path, st.Mode(), err)
				}
			}
			stream := c.okQuietly(t, plain, "data", "encrypt", "--cmk", cmk, "-", "-")
			if got := c.okQuietly(t, []byte(stream), "data", "decrypt", "--cmk", cmk, "-", "-"); got != string(plain) {
				t.Errorf("%s, %d bytes: not the same through pipes", cmk, size)
			}
		}
	}
	left, err := filepath.Glob(filepath.Join(c.dir, ".kmsfs-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDataTrust asks nobody who is not trusted, whatever the envelope says, and believes no envelope that was changed.
func TestDataTrust(t *testing.T) {
	c := newClouds(t, emulator.Options{})
	cmks := dataCMKs(t, c)
	sealed, out := filepath.Join(c.dir, "sealed"), filepath.Join(c.dir, "out")
	const secret = "a password of some length"
	for i, cmk := range cmks {
		must(t, os.WriteFile(sealed, []byte(c.okQuietly(t, []byte(secret), "data", "encrypt", "--cmk", cmk, "--context", "app=web", "-", "-")), 0o600))
		decrypt := []string{"data", "decrypt", "--cmk", cmk}
		c.ResetCalls()
		c.refused(t, 6, []string{"no", "trusted", "--cmk"}, "data", "decrypt", sealed, out)
		c.refused(t, 6, []string{"not trusted"}, "data", "decrypt", "--cmk", cmks[(i+1)%len(cmks)], sealed, out)
		c.refused(t, 6, []string{"another context"}, append(decrypt, "--context", "app=mail", sealed, out)...)
		if n := len(c.Calls()); n != 0 {
			t.Errorf("%s: %+v", cmk, c.Calls())
		}
		if got := c.okQuietly(t, nil, append(decrypt, "--context", "app=web", sealed, "-")...); got != secret {
			t.Errorf("%s: %d bytes", cmk, len(got))
		}
		var e map[string]any
		b, err := os.ReadFile(sealed)
		must(t, err)
		must(t, json.Unmarshal(b, &e))
		for name, change := range map[string]func(map[string]any){
			"context": func(e map[string]any) { e["context"] = map[string]string{"app": "mail"} },
			"data": func(e map[string]any) {
				data := e["data"].(string)
				middle := len(data) / 16 * 12 // behind what names the CMK
				other := "AAAA"
				if data[middle:middle+4] == other {
					other = "BBBB"
				}
				e["data"] = data[:middle] + other + data[middle+4:]
			},
			"cut": func(e map[string]any) { e["data"] = e["data"].(string)[:20] },
		} {
			changed := map[string]any{}
			for k, v := range e {
				changed[k] = v
			}
			change(changed)
			b, err := json.Marshal(changed)
			must(t, err)
			must(t, os.WriteFile(sealed, b, 0o600))
			if r := c.piped(t, nil, append(decrypt, sealed, out)...); r.code != 6 || !strings.Contains(r.stderr, "what the CMK has encrypted") && !strings.Contains(r.stderr, "did not encrypt this") {
				t.Errorf("%s, %s: exit code %d\n%s", cmk, name, r.code, r.stderr)
			}
		}
	}
	if _, err := os.Lstat(out); !os.IsNotExist(err) {
		t.Errorf("something was written: %v", err)
	}
}

// TestDataFaults lets the KMS fail: the error says how, and an output that was there stays.
func TestDataFaults(t *testing.T) {
	t.Parallel() // it waits, most of its time
	c := newClouds(t, emulator.Options{})
	outside := t.TempDir()
	in, sealed, out := filepath.Join(outside, "in"), filepath.Join(c.dir, "sealed"), filepath.Join(c.dir, "out")
	must(t, os.WriteFile(in, []byte("a password of some length"), 0o600))
	for _, cmk := range c.cmks[:2] {
		c.faults(t)
		c.ok(t, "data", "encrypt", "--cmk", cmk, "--force", in, sealed)
		must(t, os.WriteFile(out, []byte("old"), 0o600))
		for name, f := range map[string]struct {
			fault emulator.Fault
			says  string
		}{
			"refused":      {c.downAt(cmk), "connection refused"},
			"500":          {emulator.Fault{Kind: emulator.Status, Status: 500, Code: "InternalFailure"}, "HTTP 500"},
			"throttled":    {emulator.Fault{Kind: emulator.Throttle}, "too many calls"},
			"redirect":     {emulator.Fault{Kind: emulator.Redirect}, "redirect"},
			"empty":        {emulator.Fault{Kind: emulator.Empty}, "cannot be trusted"},
			"wrong key id": {emulator.Fault{Kind: emulator.WrongKeyID}, "another CMK"},
		} {
			c.faults(t, f.fault)
			c.refused(t, 6, []string{cmk, f.says}, "data", "encrypt", "--cmk", cmk, "--force", in, out)
			c.refused(t, 6, []string{cmk, f.says}, "data", "decrypt", "--cmk", cmk, "--force", sealed, out)
			if b, err := os.ReadFile(out); string(b) != "old" {
				t.Errorf("%s: the output was changed: %v", name, err)
			}
		}
		c.faults(t, emulator.Fault{Kind: emulator.Status, Status: 503, Count: 1})
		if got := c.okQuietly(t, nil, "data", "decrypt", "--cmk", cmk, sealed, "-"); got != "a password of some length" {
			t.Errorf("after a fault that passes: %d bytes", len(got))
		}
		c.faults(t)
		must(t, c.SetState(cmk, emulator.Disabled))
		c.refused(t, 6, []string{cmk, "disabled"}, "data", "decrypt", "--cmk", cmk, "--force", sealed, out)
	}
}

// downAt is a fault in which the region of a CMK refuses connections.
func (c *clouds) downAt(cmk string) emulator.Fault {
	provider, region := regionOf(cmk)
	return emulator.Fault{Kind: emulator.Refuse, Provider: provider, Region: region}
}

// TestDataInterrupted stops commands while they wait for input that never comes.
func TestDataInterrupted(t *testing.T) {
	v := newVolume(t)
	fifo := filepath.Join(v.dir, "fifo")
	must(t, syscall.Mkfifo(fifo, 0o600))
	for _, command := range [][]string{{"data", "encrypt"}, {"data", "decrypt"}, {"encrypt"}} {
		cmd := exec.Command(binary, append(command, "--cmk", "local:"+v.cmk, fifo, "-")...)
		cmd.Env = append(os.Environ(), "KMSFS_CONFIG_DIR="+v.config)
		must(t, cmd.Start())
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		var writer *os.File
		eventually(t, "it opens the FIFO", func() (open bool) {
			f, err := os.OpenFile(fifo, os.O_WRONLY|syscall.O_NONBLOCK, 0) // fails while nobody reads
			writer = f
			return err == nil
		})
		must(t, cmd.Process.Signal(syscall.SIGINT))
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("%v: no error", command)
			}
		case <-time.After(time.Minute):
			t.Errorf("%v: it does not end", command)
			must(t, cmd.Process.Kill())
			<-ended
		}
		must(t, writer.Close())
	}
}

// TestBadData uses the commands for data and secrets wrongly.
func TestBadData(t *testing.T) {
	v := newVolume(t)
	program := filepath.Join(v.dir, "kmsfs") // where every user can reach it
	shell(t, v.dir, "install -m 755 "+binary+" kmsfs")
	must(t, os.Mkdir(filepath.Join(v.dir, "rows"), 0o755))
	const encrypt, decrypt = "data encrypt --cmk local:$K ", "data decrypt --cmk local:$K "
	seal := "echo secret > in; $KMSFS data encrypt --cmk local:$K in sealed; "
	rows := []badInput{
		{name: "no command", args: "data", code: exitUsage, says: "data encrypt"},
		{name: "unknown command", args: "data encrpt a b", code: exitUsage, says: `"encrpt".*did you mean encrypt`},
		{name: "no operands", args: encrypt, code: exitUsage, says: "IN is missing"},
		{name: "no output", args: encrypt + "in", code: exitUsage, says: "OUT is missing"},
		{name: "three operands", args: encrypt + "a b c", code: exitUsage, says: `"c" is one too many`},
		{name: "no CMK", setup: "echo x > in", args: "data encrypt $R/in $R/out", code: exitUsage, says: "one --cmk"},
		{name: "two CMKs", setup: "echo x > in", args: encrypt + "--cmk local:$R/k $R/in $R/out", code: exitUsage, says: "one --cmk, not 2"},
		{name: "no such CMK", setup: "echo x > in", args: "data encrypt --cmk local:$R/k $R/in $R/out", code: exitCMK, says: "$R/k.*no such file"},
		{name: "bad CMK", args: "data encrypt --cmk x in out", code: exitUsage, says: `CMK "x"`},
		{name: "bad context", args: encrypt + "--context x in out", code: exitUsage, says: `--context "x"`},
		{name: "no input", args: encrypt + "$R/in $R/out", code: exitOther, says: "$R/in.*no such file"},
		{name: "empty input", setup: "touch in", args: encrypt + "$R/in $R/out", code: exitUsage, says: "$R/in is empty"},
		{name: "long input", setup: "head -c 4097 /dev/zero > in", args: encrypt + "$R/in $R/out", code: exitUsage, says: "$R/in is longer than the 4096.*(?s:.*)kmsfs encrypt"},
		{name: "directory for input", args: encrypt + "$R $R/out", code: exitOther, says: "$R.*directory"},
		{name: "output exists", setup: "echo x > in; echo keep > out", args: encrypt + "$R/in $R/out", code: exitOther, says: "$R/out exists.*--force"},
		{name: "output of decrypt exists", setup: seal + "echo keep > out", args: decrypt + "$R/sealed $R/out", code: exitOther, says: "$R/out exists.*--force"},
		{name: "output is a link", setup: "echo x > in; echo keep > out; ln -s out l", args: encrypt + "--force $R/in $R/l", code: exitOther, says: "$R/l is not a regular file"},
		{name: "output is a directory", setup: "echo x > in", args: encrypt + "$R/in $R", code: exitOther, says: "$R is not a regular file"},
		{name: "output is a device", setup: "echo x > in", args: encrypt + "--force $R/in /dev/null", code: exitOther, says: "/dev/null is not a regular file"},
		{name: "output in no directory", setup: "echo x > in", args: encrypt + "$R/in $R/none/out", code: exitOther, says: "$R/none.*no such"},
		{name: "output on a full disk", setup: "echo x > in; " + fullDisk, cleanup: "umount disk", args: encrypt + "$R/in $R/disk/out", code: exitIO, says: "disk/out.*no space"},
		{name: "unreadable input", setup: "install -m 600 /dev/null in; cp $K k; chown 65534 k", args: "data encrypt --cmk local:$R/k $R/in $R/out", env: "KMSFS_CONFIG_DIR=$R", user: true, code: exitOther, says: "$R/in.*permission denied"},
		{name: "not encrypted", setup: "echo x > in", args: decrypt + "$R/in $R/out", code: exitNotVolume, says: "$R/in: not data"},
		{name: "a volume header", args: decrypt + "$V/.kmsfs/volume $R/out", code: exitNotVolume, says: "volume: not data"},
		{name: "a newer version", setup: seal + `sed -i 's/"kmsfs-data": 1/"kmsfs-data": 2/' sealed`, args: decrypt + "$R/sealed $R/out", code: exitNotVolume, says: "newer"},
		{name: "an unknown field", setup: seal + `sed -i 's/"cmk"/"x": 1, "cmk"/' sealed`, args: decrypt + "$R/sealed $R/out", code: exitNotVolume, says: "$R/sealed: not data"},
		{name: "appended", setup: seal + "echo x >> sealed", args: decrypt + "$R/sealed $R/out", code: exitNotVolume, says: "something follows"},
		{name: "too long an envelope", setup: "head -c 200000 /dev/zero | tr '\\0' ' ' > sealed", args: decrypt + "$R/sealed $R/out", code: exitNotVolume, says: "longer than"},
		{name: "no data", setup: seal + `sed -i '/"data"/s/: .*/: ""/' sealed`, args: decrypt + "$R/sealed $R/out", code: exitNotVolume, says: "no data"},

		{name: "no secret command", args: "secret", code: exitUsage, says: "secret get"},
		{name: "unknown secret command", args: "secret gett x", code: exitUsage, says: `"gett".*did you mean get`},
		{name: "no URI", args: "secret get", code: exitUsage, says: "URI is missing"},
		{name: "no file", args: "secret create csms://a", code: exitUsage, says: "FILE is missing"},
		{name: "no region", args: "secret get csms://a", code: exitUsage, says: "csms://a: its region"},
		{name: "no project", args: "secret get --region cn-north-4 csms://a", code: exitUsage, says: "csms://a: its project"},
		{name: "bad region", args: "secret get --region evil.example/ alibaba-secret://a", code: exitUsage, says: "evil.example"},
		{name: "bad project", args: "secret get --region cn-north-4 --project .. csms://a", code: exitUsage, says: `"..".*no region or project`},
		{name: "project at Alibaba Cloud", args: "secret get --region r --project p alibaba-secret://a", code: exitUsage, says: "--project"},
		{name: "create a field", setup: "echo x > in", args: "secret create --region r --project p csms://a#f $R/in", code: exitUsage, says: "csms://a#f.*as a whole"},
		{name: "create a version", setup: "echo x > in", args: "secret create --region r --project p csms://a@v1 $R/in", code: exitUsage, says: "csms://a@v1.*first version"},
		{name: "an instance at Huawei Cloud", args: "secret create --region r --project p --instance i csms://a $R/in", code: exitUsage, says: "--instance"},
		{name: "protected elsewhere", args: "secret create --region r --cmk acs:kms:q:1:key/k alibaba-secret://a $R/in", code: exitUsage, says: "--cmk acs:kms:q:1:key/k: not a CMK in the region"},
		{name: "secret of no file", args: "secret create --region r alibaba-secret://a $R/in", code: exitOther, says: "$R/in.*no such file"},
		{name: "empty secret", setup: "touch in", args: "secret create --region r alibaba-secret://a $R/in", code: exitUsage, says: "$R/in is not 1 to 30720"},
		{name: "long secret", setup: "head -c 32769 /dev/zero > in", args: "secret create --region r --project p csms://a $R/in", code: exitUsage, says: "$R/in is not 1 to 32768"},
	}
	for _, uri := range []string{"x", "csms:a", "csms://", "csms://a/b", "csms://..", "kms://a", "csms://a#", "csms://a@", "alibaba-secret://a?x"} {
		rows = append(rows, badInput{name: "URI " + uri, args: "secret get " + uri, code: exitUsage, says: "not a reference.*" + strings.ReplaceAll(uri, "?", `\?`)})
	}
	for i, r := range rows {
		dir := filepath.Join(v.dir, "rows", fmt.Sprint(i))
		t.Run(r.name, func(t *testing.T) { r.test(t, v, program, dir) })
	}
}
