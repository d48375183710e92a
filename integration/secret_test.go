package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// Where the secrets of the tests are: in the regions of the first two of cloudCMKs.
const (
	secretProject = "0000000000000000000000000000cafe"
	secretPlaces  = "[huawei]\nmetadata = 'off'\nregion = 'cn-north-4'\nproject = '" + secretProject + "'\n%s\n[alibaba]\nregion = 'cn-hangzhou'\n%s\n"
)

// put adds a version of a secret where the configuration looks for it.
func (c *clouds) putSecret(scheme, name, value string) string {
	if scheme == "csms" {
		return c.PutSecret(emulator.Huawei, "cn-north-4", secretProject, name, []byte(value))
	}
	return c.PutSecret(emulator.Alibaba, "cn-hangzhou", "", name, []byte(value))
}

// TestSecretCommands creates and reads secrets at both clouds.
func TestSecretCommands(t *testing.T) {
	c := newClouds(t, emulator.Options{})
	c.configure(t, fmt.Sprintf(secretPlaces, "", ""))
	outside := t.TempDir() // plaintext may be there
	for i, scheme := range []string{"alibaba-secret", "csms"} {
		uri := scheme + "://app-db"
		in := filepath.Join(outside, scheme)
		object := `{"user":"the user of the app","password":"the password of the app","port":5432}`
		must(t, os.WriteFile(in, []byte(object), 0o600))
		c.ok(t, "secret", "create", "--cmk", c.cmks[i], uri, in)
		for ref, want := range map[string]string{
			"": object, "#password": "the password of the app", "#port": "5432", "@v1": object, "#user@v1": "the user of the app",
		} {
			if got := c.okQuietly(t, nil, "secret", "get", uri+ref); got != want {
				t.Errorf("%s%s: %d bytes, want %d", uri, ref, len(got), len(want))
			}
		}
		newer := strings.ReplaceAll(object, "the", "another")
		c.putSecret(scheme, "app-db", newer)
		for ref, want := range map[string]string{"#password": "another password of another app", "#password@v1": "the password of the app", "@v2": newer} {
			if got := c.okQuietly(t, nil, "secret", "get", uri+ref); got != want {
				t.Errorf("%s%s: %d bytes, want %d", uri, ref, len(got), len(want))
			}
		}
		// Binary, by a pipe, in another region that flags name.
		binaryValue := append([]byte{0xff, 0xfe, 0}, bytes.Repeat([]byte{0x80}, 30)...)
		far := []string{"--region", "ap-southeast-3", "--project", "0000000000000000000000000000beef"}
		if scheme == "alibaba-secret" {
			far = []string{"--region", "ap-southeast-1"}
		}
		args := func(verb string, rest ...string) []string {
			return append(append([]string{"secret", verb}, far...), rest...)
		}
		c.okQuietly(t, binaryValue, args("create", scheme+"://binary", "-")...)
		if got := c.okQuietly(t, nil, args("get", scheme+"://binary")...); got != string(binaryValue) {
			t.Errorf("%s: binary: %q", scheme, got)
		}
		c.refused(t, 6, []string{scheme + "://binary", "no such secret"}, "secret", "get", scheme+"://binary")
		// What is wrong is said, and nothing of the value.
		c.refused(t, 6, []string{uri + "#none", "no field"}, "secret", "get", uri+"#none")
		c.refused(t, 6, []string{uri + "@v9", "no such secret"}, "secret", "get", uri+"@v9")
		c.refused(t, 6, []string{uri, "CreateSecret"}, "secret", "create", uri, in)
		provider, region := regionOf(c.cmks[i])
		project := map[string]string{"csms": secretProject}[scheme]
		for state, says := range map[emulator.State]string{emulator.Disabled: "disabled or pending", emulator.PendingDeletion: "disabled or pending", emulator.Denied: "no permission", emulator.Deleted: "no such secret"} {
			must(t, c.SetSecretState(provider, region, project, "app-db", state))
			c.refused(t, 6, []string{uri, says}, "secret", "get", uri)
		}
		must(t, c.SetSecretState(provider, region, project, "app-db", emulator.Enabled))
		for name, f := range map[string]struct {
			fault emulator.Fault
			says  string
		}{
			"refused":   {c.downAt(c.cmks[i]), "connection refused"},
			"redirect":  {emulator.Fault{Kind: emulator.Redirect}, "redirect"},
			"empty":     {emulator.Fault{Kind: emulator.Empty}, "cannot be trusted"},
			"another":   {emulator.Fault{Kind: emulator.WrongKeyID}, "another secret"},
			"forbidden": {emulator.Fault{Kind: emulator.Status, Status: 403, Code: "Forbidden.RAM", Message: "x"}, "docs/secrets.md"},
		} {
			c.faults(t, f.fault)
			r := c.piped(t, nil, "secret", "get", uri)
			if r.code != 6 || r.stdout != "" || !strings.Contains(r.stderr, uri) || !strings.Contains(r.stderr, f.says) {
				t.Errorf("%s, %s: exit code %d, %d bytes\n%s", uri, name, r.code, len(r.stdout), r.stderr)
			}
		}
		c.faults(t, emulator.Fault{Kind: emulator.Throttle, Count: 1})
		c.okQuietly(t, nil, "secret", "get", uri)
		c.faults(t)
	}
	// Nothing to sign with.
	c.env = append(c.env, "HUAWEICLOUD_SDK_AK=", "HUAWEICLOUD_SDK_SK=")
	c.refused(t, 6, []string{"csms://app-db", "no credential", "HUAWEICLOUD_SDK_AK"}, "secret", "get", "csms://app-db")
}

// TestSecretTerminal prints no secret to a terminal unless it is told to.
func TestSecretTerminal(t *testing.T) {
	c := newClouds(t, emulator.Options{})
	c.configure(t, fmt.Sprintf(secretPlaces, "", ""))
	c.putSecret("csms", "db", "the password of the app")
	if got := c.okQuietly(t, nil, "secret", "get", "csms://db"); got != "the password of the app" {
		t.Errorf("a pipe gets %d bytes", len(got))
	}
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Logf("where there are no terminals, nothing is printed to one: %v", err)
		return
	}
	defer ptmx.Close()
	must(t, unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	must(t, err)
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	defer tty.Close()
	for _, force := range []bool{false, true} {
		cmd := exec.Command(binary, "secret", "get", fmt.Sprintf("--force=%t", force), "csms://db")
		cmd.Env = append(append(os.Environ(), "KMSFS_CONFIG_DIR="+c.config), c.env...)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = tty, &stderr
		err := cmd.Run()
		if (err == nil) != force || !force && (cmd.ProcessState.ExitCode() != 2 || !strings.Contains(stderr.String(), "--force")) {
			t.Errorf("--force=%t: %v\n%s", force, err, stderr.String())
		}
	}
	if c.Count("", "ShowSecretVersion") != 2 {
		t.Fatalf("%+v", c.Calls())
	}
	shown := make([]byte, 100)
	if n, err := ptmx.Read(shown); err != nil || string(shown[:n]) != "the password of the app" {
		t.Errorf("the terminal shows %d bytes, %v", n, err)
	}
}

// TestSecretSettings has settings of every kind in the secret managers of both clouds. Their values are no secrets by themselves, so nobody looks for them.
func TestSecretSettings(t *testing.T) {
	c := openClouds(t, emulator.Options{})
	values := map[string]string{"cmk": c.cmks[0], "algorithm": "sm4-128-gcm\n", "options": "noexec", "log": c.log}
	for _, scheme := range []string{"alibaba-secret", "csms"} {
		all, err := json.Marshal(values)
		must(t, err)
		c.putSecret(scheme, "settings", string(all))
		c.putSecret(scheme, "cmk", values["cmk"])
	}
	c.configure(t, "cmk = ['csms://cmk', '"+c.cmks[1]+"']\nalgorithm = 'alibaba-secret://settings#algorithm'\noptions = ['csms://settings#options@v1']\nlog = 'alibaba-secret://settings#log@ACSCurrent'\n"+
		fmt.Sprintf(secretPlaces, "", ""))
	c.ok(t, "init", c.cipher)
	inspected := c.ok(t, "inspect", c.cipher)
	for _, want := range []string{c.cmks[0], c.cmks[1], "sm4-128-gcm"} {
		if !strings.Contains(inspected, want) {
			t.Errorf("%s is not in\n%s", want, inspected)
		}
	}
	c.ok(t, "mount", c.cipher, c.plain)
	c.mounted = true
	must(t, os.WriteFile(filepath.Join(c.plain, "file"), []byte("content\n"), 0o700))
	if err := exec.Command(filepath.Join(c.plain, "file")).Run(); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("noexec: %v", err)
	}
	if !strings.Contains(c.logged(t), "mounted") {
		t.Error("nothing is logged where the secret says")
	}
	c.umount(t)
	c.ok(t, "fsck", c.cipher)
	// Commands that need no setting read no secret.
	c.ResetCalls()
	c.ok(t, "inspect", c.cipher)
	if len(c.Calls()) != 0 {
		t.Errorf("inspect: %+v", c.Calls())
	}
}

// TestSecretSettingsFail has references that do not lead anywhere, and settings that cannot be secrets: nothing is made, and the error names the setting and the
// secret, and not its value.
func TestSecretSettingsFail(t *testing.T) {
	c := newClouds(t, emulator.Options{})
	c.putSecret("csms", "gone", "the value of a secret")
	must(t, c.SetSecretState(emulator.Huawei, "cn-north-4", secretProject, "gone", emulator.PendingDeletion))
	c.putSecret("csms", "odd", "the value of a secret")
	c.putSecret("csms", "lines", "the value of a secret\non two lines")
	c.putSecret("csms", "object", `{"a":"the value of a secret"}`)
	places := fmt.Sprintf(secretPlaces, "", "")
	cmk := "cmk = ['" + c.cmks[0] + "']\n"
	for name, r := range map[string]struct {
		config string
		code   int
		says   []string
	}{
		"no region":         {"cmk = ['csms://odd']\n[huawei]\nproject = 'p'\n", 2, []string{"cmk[0]", "csms://odd", "region"}},
		"no project":        {"cmk = ['csms://odd']\n[huawei]\nregion = 'cn-north-4'\n", 2, []string{"cmk[0]", "csms://odd", "project"}},
		"no such secret":    {"cmk = ['csms://none']\n" + places, 6, []string{"cmk[0]", "csms://none", "no such secret"}},
		"no such field":     {"log = 'csms://object#b'\n" + cmk + places, 6, []string{"log", "csms://object#b", "no field"}},
		"no object":         {"algorithm = 'csms://odd#b'\n" + cmk + places, 6, []string{"algorithm", "csms://odd#b", "not a JSON object"}},
		"two lines":         {"algorithm = 'csms://lines'\n" + cmk + places, 6, []string{"algorithm", "csms://lines", "one line"}},
		"pending deletion":  {"options = ['ro', 'csms://gone']\n" + cmk + places, 6, []string{"options[1]", "csms://gone", "pending deletion"}},
		"not a reference":   {"cmk = ['csms://']\n" + places, 2, []string{"cmk[0]", "csms://"}},
		"a wrong CMK":       {"cmk = ['csms://odd']\n" + places, 2, []string{"csms://odd", "none of local:"}},
		"a wrong algorithm": {"algorithm = 'csms://odd'\n" + cmk + places, 2, []string{"csms://odd", "--algorithm"}},
		"a wrong endpoint":  {"endpoint = ['csms://odd']\n" + cmk + places, 2, []string{"csms://odd", "endpoint"}},
		"a context":         {cmk + "[context]\nteam = 'csms://odd'\n" + places, 2, []string{"context.team", "in clear"}},
		"metadata":          {cmk + "[huawei]\nmetadata = 'csms://odd'\n", 2, []string{"huawei.metadata", "cannot be a secret"}},
		"an interval":       {cmk + places + "[secrets]\ninterval = '1ms'\n", 2, []string{"secrets.interval", "1ms"}},
		"half a key":        {cmk + "[alibaba]\naccess-key = 'csms://odd'\n", 2, []string{"alibaba.secret-key", "missing"}},
		"a key in clear":    {cmk + "[alibaba]\naccess-key = 'a'\nsecret-key = 'b'\n", 2, []string{"alibaba.secret-key", "must be a secret", "0600"}},
		"a bad key":         {cmk + "[alibaba]\naccess-key = 'a'\nsecret-key = 'csms://'\n", 2, []string{"alibaba.secret-key", "csms://"}},
		"a missing key": {cmk + fmt.Sprintf(secretPlaces, "", "access-key = 'a'\nsecret-key = 'csms://none#s'\n"), 6,
			[]string{c.cmks[0], "no credential", "alibaba.secret-key", "csms://none#s", "no such secret"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.configure(t, r.config)
			c.refused(t, r.code, r.says, "init", c.cipher)
			if _, err := os.Lstat(c.cipher); !os.IsNotExist(err) {
				t.Errorf("something is left: %v", err)
			}
			if strings.Contains(c.printed.String(), "the value of") {
				t.Error("the value shows")
			}
		})
	}
}

// signedBy returns how many calls to a KMS, those to secret managers apart, were signed with an access key.
func (c *clouds) signedBy(id string) (n int) {
	for _, r := range c.Requests() {
		if !strings.Contains(r.Operation, "Secret") && (strings.Contains(r.Header.Get("Authorization"), "Access="+id+",") || strings.Contains(r.Body, "AccessKeyId="+id+"&")) {
			n++
		}
	}
	return n
}

// TestSecretAccessKey signs calls to a KMS with an access key that is a secret, of the same cloud or of the other, and follows its rotation while a volume is
// mounted. The secret itself is read with the instance's own credentials.
func TestSecretAccessKey(t *testing.T) {
	t.Parallel() // it waits, most of its time
	for i, scheme := range []string{"csms", "alibaba-secret"} {
		for j, table := range []string{"alibaba", "huawei"} {
			t.Run(table+" by "+scheme, func(t *testing.T) {
				t.Parallel()
				testAccessKey(t, scheme, table, j, []string{"ShowSecretVersion", "GetSecretValue"}[i])
			})
		}
	}
}

func testAccessKey(t *testing.T, scheme, table string, cmk int, read string) {
	credentials := []emulator.Credential{
		{Provider: emulator.Alibaba, ID: "LTAIinstance0000", Secret: "the secret of the instance"}, {Provider: emulator.Huawei, ID: "HPUAinstance0000", Secret: "the secret of the instance"},
	}
	keys := []string{"AKIDfirst0000000", "AKIDsecond000000", "AKIDthird0000000"}
	for _, id := range keys {
		credentials = append(credentials, emulator.Credential{Provider: table, ID: id, Secret: "secret of " + id})
	}
	c := newClouds(t, emulator.Options{CMKs: cloudCMKs()[:2], Credentials: credentials})
	c.cmks = c.cmks[cmk : cmk+1]
	rotate := func(id string) {
		c.putSecret(scheme, "kms-user", fmt.Sprintf(`{"ak":%q,"sk":%q}`, id, "secret of "+id))
	}
	key := fmt.Sprintf("access-key = '%[1]s://kms-user#ak'\nsecret-key = '%[1]s://kms-user#sk'\n", scheme)
	if table == "huawei" {
		c.configure(t, fmt.Sprintf(secretPlaces, key, "")+"[secrets]\ninterval = '1s'\n")
	} else {
		c.configure(t, fmt.Sprintf(secretPlaces, "", key)+"[secrets]\ninterval = '1s'\n")
	}
	rotate(keys[0])
	c.init(t)
	c.mount(t, "key-ttl=1s") // asks the CMK every second
	if c.signedBy(keys[0]) == 0 || c.signedBy("LTAIinstance0000")+c.signedBy("HPUAinstance0000") != 0 {
		t.Errorf("%+v", c.Calls())
	}
	rotate(keys[1])
	eventually(t, "the second key signs", func() bool { return c.signedBy(keys[1]) > 0 })
	c.ok(t, "status", c.plain)
	c.ok(t, "status", "--json", c.plain)
	c.ok(t, "inspect", c.cipher)

	// While the secret cannot be read, the last key stays.
	c.faults(t, emulator.Fault{Kind: emulator.Status, Status: 403, Code: "Forbidden", Message: "x", Operation: read})
	eventually(t, "the failure is logged", func() bool {
		b, err := os.ReadFile(c.log)
		return err == nil && strings.Contains(string(b), "was not read again")
	})
	rotate(keys[2])
	c.ResetCalls()
	eventually(t, "the second key goes on", func() bool { return c.signedBy(keys[1]) > 0 && c.Count("", read) > 0 })
	if c.signedBy(keys[2]) > 0 {
		t.Error("the third key signs, which could not be read")
	}
	for line := range strings.Lines(c.logged(t)) {
		if strings.Contains(line, "was not read again") && (!strings.Contains(line, table+".access-key") || !strings.Contains(line, scheme+"://kms-user#ak")) {
			t.Errorf("the line names no setting or secret: %s", line)
		}
	}
	c.faults(t)
	eventually(t, "the third key signs", func() bool { return c.signedBy(keys[2]) > 0 })
	c.umount(t)

	// Where the secret cannot be read at all, the mount says so.
	c.faults(t, emulator.Fault{Kind: emulator.Status, Status: 403, Code: "Forbidden", Message: "x", Operation: read})
	c.refused(t, 6, []string{c.cmks[0], table + ".access-key", scheme + "://kms-user#ak", "no permission"}, "mount", c.cipher, c.plain)
}
