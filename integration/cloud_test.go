package integration

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// cloudCMKs are two regions of each cloud, with all kinds of keys.
func cloudCMKs() []emulator.CMK {
	return []emulator.CMK{
		{URI: "acs:kms:cn-hangzhou:1000000000000001:key/key-hzz00000000000000000000"},
		{URI: "huawei:kms:cn-north-4:0000000000000000000000000000cafe:key/11111111-1111-4111-8111-111111111111", Spec: "SM4"},
		{URI: "acs:kms:ap-southeast-1:1000000000000001:key/key-sgp00000000000000000000", Spec: "SM4"},
		{URI: "huawei:kms:ap-southeast-3:0000000000000000000000000000beef:key/22222222-2222-4222-8222-222222222222"},
	}
}

// regionOf returns where a CMK is, as faults and endpoints name it.
func regionOf(uri string) (provider, region string) {
	f := strings.Split(uri, ":")
	if f[0] == "acs" {
		return emulator.Alibaba, f[2]
	}
	return emulator.Huawei, f[2]
}

// clouds are the regions of some CMKs, and a volume whose programs know their endpoints and have credentials.
type clouds struct {
	*emulator.Emulator
	*volume
	cmks     []string
	metadata string // URL of the metadata services
	read     int    // bytes of the log that logged has returned
}

// newClouds starts the regions of cmks. When the test ends, it looks for secrets in everything that was printed, logged, stored or sent in a URL.
func newClouds(t *testing.T, o emulator.Options) *clouds {
	t.Helper()
	c := openClouds(t, o)
	t.Cleanup(func() { c.findSecrets(t) })
	return c
}

// openClouds does the same, but does not look for secrets.
func openClouds(t *testing.T, o emulator.Options) *clouds {
	t.Helper()
	if o.CMKs == nil {
		o.CMKs = cloudCMKs()
	}
	e, err := emulator.New(o)
	must(t, err)
	t.Cleanup(func() { e.Close() })
	c := &clouds{Emulator: e, volume: bareVolume(t)}
	listening := map[string]bool{}
	for _, cmk := range o.CMKs {
		c.cmks = append(c.cmks, cmk.URI)
		provider, region := regionOf(cmk.URI)
		if !listening[provider+region] {
			listening[provider+region] = true
			_, err := e.Listen(provider, region, "127.0.0.1:0")
			must(t, err)
		}
	}
	all, err := e.Listen("", "", "127.0.0.1:0")
	must(t, err)
	c.metadata = all.URL
	// No credential of the machine's owner, and no wait for a metadata service that is not there.
	c.env = append(e.Environ(), "HOME="+c.dir, "ALIBABA_CLOUD_ECS_METADATA_DISABLED=true")
	c.configure(t, "[huawei]\nmetadata = 'off'\n")
	return c
}

func (c *clouds) configure(t *testing.T, text string) {
	t.Helper()
	must(t, os.MkdirAll(c.config, 0o700))
	must(t, os.WriteFile(filepath.Join(c.config, "kmsfs.toml"), []byte(text), 0o600))
}

// init makes the volume with all CMKs.
func (c *clouds) init(t *testing.T, args ...string) {
	t.Helper()
	args = append([]string{"init"}, args...)
	for _, cmk := range c.cmks {
		args = append(args, "--cmk", cmk)
	}
	c.ok(t, append(args, c.cipher)...)
}

// reads mounts the volume, reads what save has written, and unmounts.
func (c *clouds) reads(t *testing.T, options ...string) {
	t.Helper()
	c.mount(t, options...)
	if b, err := os.ReadFile(filepath.Join(c.plain, "file")); string(b) != "content\n" {
		t.Errorf("%v: read %q, %v", options, b, err)
	}
	c.umount(t)
}

// save mounts the volume, writes a file, and unmounts.
func (c *clouds) save(t *testing.T) {
	t.Helper()
	c.mount(t)
	must(t, os.WriteFile(filepath.Join(c.plain, "file"), []byte("content\n"), 0o600))
	c.umount(t)
}

func (c *clouds) faults(t *testing.T, faults ...emulator.Fault) {
	t.Helper()
	must(t, c.SetFaults(faults...))
}

// down is a script in which the regions of the CMKs with these indices refuse connections.
func (c *clouds) down(indices ...int) (faults []emulator.Fault) {
	for _, i := range indices {
		provider, region := regionOf(c.cmks[i])
		faults = append(faults, emulator.Fault{Kind: emulator.Refuse, Provider: provider, Region: region})
	}
	return faults
}

// logged returns the log since the last call of it. The file stays as it is: a daemon may add to it at any moment.
func (c *clouds) logged(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(c.log)
	must(t, err)
	b = b[c.read:]
	c.read += len(b)
	c.printed.Write(b)
	return string(b)
}

// asked returns how many calls came for a CMK, those apart that only ask for its state.
func (c *clouds) asked(cmk string) (n int) {
	for _, count := range c.Calls() {
		if (cmk == "" || count.CMK == cmk) && !describing(count.Operation) {
			n += count.Calls
		}
	}
	return n
}

func describing(operation string) bool {
	switch operation {
	case "DescribeKey", "describe-key", "GetPublicKey", "get-publickey", "MetadataToken", "MetadataCredentials":
		return true
	}
	return false
}

// findSecrets looks for credentials and for data keys where they must not be.
func (c *clouds) findSecrets(t *testing.T) {
	t.Helper()
	var places bytes.Buffer
	places.Write(c.printed.Bytes())
	must(t, filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasSuffix(path, "/credentials") {
			return err
		}
		b, err := os.ReadFile(path)
		fmt.Fprintf(&places, "%s\n%s\n", path, b)
		return err
	}))
	requests := c.Requests()
	if len(requests) == 0 {
		t.Error("there was no request")
	}
	for _, r := range requests {
		fmt.Fprintln(&places, r.URL)
	}
	var secrets []string
	for _, cred := range c.Credentials() {
		secrets = append(secrets, cred.ID, cred.Secret, cred.Token)
	}
	secrets = append(secrets, c.Plaintexts()...)
	for _, secret := range secrets {
		if secret == "" {
			continue
		}
		if at := bytes.Index(places.Bytes(), []byte(secret)); at >= 0 {
			t.Errorf("%q shows in %q", secret, places.Bytes()[max(0, at-200):min(places.Len(), at+len(secret)+50)])
		}
	}
}

// TestEachCMKAlone opens a volume of four CMKs at two clouds with each of them alone: the others are not asked.
func TestEachCMKAlone(t *testing.T) {
	c := newClouds(t, emulator.Options{})
	c.init(t, "--context", "team=web")
	c.save(t)
	for _, cmk := range c.cmks {
		c.ResetCalls()
		c.reads(t, "cmk="+cmk)
		if c.asked(cmk) != 1 || c.asked("") != 1 {
			t.Errorf("%s: %+v", cmk, c.Calls())
		}
		c.ok(t, "fsck", "--cmk", cmk, c.cipher)
		c.ok(t, "recover", "--cmk", cmk, "--volume", c.cipher, c.sealedFiles(t)[0], filepath.Join(c.dir, "recovered"))
		if b, err := os.ReadFile(filepath.Join(c.dir, "recovered")); string(b) != "content\n" {
			t.Errorf("recovered %q, %v", b, err)
		}
		must(t, os.Remove(filepath.Join(c.dir, "recovered")))
	}
	// No key and no network for inspect; and nobody is asked who is only in the header.
	c.ResetCalls()
	inspected := c.ok(t, "inspect", c.cipher)
	for _, cmk := range c.cmks {
		if !strings.Contains(inspected, cmk) {
			t.Errorf("inspect does not list %s:\n%s", cmk, inspected)
		}
	}
	must(t, os.RemoveAll(filepath.Join(c.config, "volumes")))
	c.refused(t, 6, append([]string{"no CMK is trusted", "--cmk"}, c.cmks...), "mount", c.cipher, c.plain)
	if n := len(c.Calls()); n != 0 {
		t.Errorf("%+v", c.Calls())
	}
	c.mount(t, "cmk="+c.cmks[0]) // some request for the search of secrets
	c.umount(t)
}

// TestEverySubsetOfRegions lets every set of regions refuse connections.
func TestEverySubsetOfRegions(t *testing.T) {
	t.Parallel() // it waits, most of its time
	c := newClouds(t, emulator.Options{})
	c.init(t)
	c.save(t)
	for set := range 1 << len(c.cmks) {
		var down []int
		for i := range c.cmks {
			if set>>i&1 == 1 {
				down = append(down, i)
			}
		}
		c.faults(t, c.down(down...)...)
		if len(down) < len(c.cmks) {
			c.reads(t)
			continue
		}
		c.refused(t, 6, append([]string{"connection refused"}, c.cmks...), "mount", c.cipher, c.plain)
	}
}

// TestAllOrNothing makes no volume unless every CMK wraps.
func TestAllOrNothing(t *testing.T) {
	c := newClouds(t, emulator.Options{})
	for i, cmk := range c.cmks {
		must(t, c.SetState(cmk, emulator.Disabled))
		args := []string{"init"}
		for _, cmk := range c.cmks {
			args = append(args, "--cmk", cmk)
		}
		c.refused(t, 6, []string{cmk, "disabled"}, append(args, c.cipher)...)
		if _, err := os.Lstat(c.cipher); !os.IsNotExist(err) {
			t.Errorf("%s: something is left: %v", cmk, err)
		}
		must(t, c.SetState(cmk, emulator.Enabled))
		if i == len(c.cmks)-1 {
			c.init(t)
			c.save(t)
		}
	}
}

// TestReplication copies the ciphertext to another region, which has a CMK of its own, other credentials, and no way to the rest.
func TestReplication(t *testing.T) {
	here := newClouds(t, emulator.Options{})
	here.init(t)
	here.save(t)
	there := newClouds(t, emulator.Options{
		CMKs:        cloudCMKs()[3:],
		Credentials: []emulator.Credential{{Provider: emulator.Huawei, ID: "HPUAOTHERREGION", Secret: "the other region's secret"}},
	})
	shell(t, here.dir, "rsync -aHAXS cipher/ "+there.cipher+"/")
	there.reads(t, "cmk="+there.cmks[0])
	there.reads(t) // it has been noted
	there.ok(t, "fsck", there.cipher)
	if there.asked(there.cmks[0]) != 3 || there.asked("") != 3 {
		t.Errorf("%+v", there.Calls())
	}
	if b, err := os.ReadFile(filepath.Join(here.cipher, ".kmsfs/volume")); err != nil || !bytes.Contains(b, []byte(here.cmks[0])) {
		t.Error(err)
	}
}

// TestEconomy counts the calls of a volume's life.
func TestEconomy(t *testing.T) {
	const files = 2000
	cmks := cloudCMKs()
	cmks[1].Spec = "RSA_2048"
	c := newClouds(t, emulator.Options{CMKs: cmks})
	c.init(t)
	made, wrapped := c.Count("", "GenerateDataKey", "create-datakey"), c.Count("", "Encrypt", "encrypt-datakey")
	// Beside these, each CMK that wraps with a call is asked once whether it binds the encryption context.
	bound := c.Count("", "Decrypt", "decrypt-datakey")
	if made != 1 || wrapped != 2 || bound != 3 || c.Count("", "get-publickey") != 1 || c.asked("") != made+wrapped+bound || c.Count("", "DescribeKey", "describe-key") != 4 {
		t.Errorf("init: %+v", c.Calls())
	}
	c.mountUnhurried(t)
	shell(t, c.plain, fmt.Sprintf(`for i in $(seq %d); do echo "content $i" > f$i; done`, files))
	if c.Count("", "Decrypt") != 1 || c.asked("") != 1 {
		t.Errorf("mount and %d creates: %+v", files, c.Calls())
	}
	c.umount(t)
	c.mountUnhurried(t)
	if got := shell(t, c.plain, `cat f* | wc -l`); got != fmt.Sprintln(files) {
		t.Errorf("%s lines", got)
	}
	if c.Count("", "Decrypt") != 1 || c.asked("") != 1 {
		t.Errorf("mount and %d opens: %+v", files, c.Calls())
	}
	c.umount(t)
}

// hurried reports whether the machine was so slow, since the log was last read, that more CMKs than one were asked for the same.
func (c *clouds) hurried(t *testing.T) bool {
	t.Helper()
	return strings.Contains(c.logged(t), "CMK slow")
}

// mountUnhurried mounts the volume and counts from there.
func (c *clouds) mountUnhurried(t *testing.T) {
	t.Helper()
	c.volume.mountUnhurried(t, c.ResetCalls)
}

// mountUnhurried mounts the volume after a call of begin, and again if the machine was so slow that a second region was asked.
func (v *volume) mountUnhurried(t *testing.T, begin func()) {
	t.Helper()
	for range 5 {
		begin()
		before, _ := os.ReadFile(v.log)
		v.mount(t)
		log, err := os.ReadFile(v.log)
		must(t, err)
		if !bytes.Contains(log[len(before):], []byte("CMK slow")) {
			return
		}
		v.umount(t)
	}
	t.Fatal("the first region never answers in time")
}
