package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// TestRegionFaults lets the first region fail in every way: the mount works through the next, and the log says what happened where.
func TestRegionFaults(t *testing.T) {
	t.Parallel()                        // it waits, most of its time
	for _, first := range []int{0, 1} { // an Alibaba region, a Huawei region
		c := newClouds(t, emulator.Options{})
		c.cmks[0], c.cmks[first] = c.cmks[first], c.cmks[0]
		c.init(t)
		c.save(t)
		unwrap := "Decrypt"
		provider, region := regionOf(c.cmks[0])
		if provider == emulator.Huawei {
			unwrap = "decrypt-datakey"
		}
		for name, f := range map[string]struct {
			fault emulator.Fault
			log   []string
		}{
			"hang":            {emulator.Fault{Kind: emulator.Hang}, []string{"CMK slow"}},
			"reset":           {emulator.Fault{Kind: emulator.Reset}, []string{"no answer"}},
			"503":             {emulator.Fault{Kind: emulator.Status, Status: 503, Code: "ServiceUnavailable"}, []string{"kms.status=503"}},
			"429":             {emulator.Fault{Kind: emulator.Throttle}, []string{"kms.status=429", "too many calls"}},
			"403":             {emulator.Fault{Kind: emulator.Status, Status: 403, Code: "Strange"}, []string{"kms.status=403"}},
			"redirect":        {emulator.Fault{Kind: emulator.Redirect}, []string{"redirect"}},
			"truncated":       {emulator.Fault{Kind: emulator.Truncate}, []string{"kms.error="}},
			"empty":           {emulator.Fault{Kind: emulator.Empty}, []string{"cannot be trusted"}},
			"wrong key id":    {emulator.Fault{Kind: emulator.WrongKeyID}, []string{"another CMK"}},
			"wrong length":    {emulator.Fault{Kind: emulator.WrongLength}, []string{"cannot be trusted"}},
			"wrong plaintext": {emulator.Fault{Kind: emulator.WrongPlaintext}, nil}, // nothing but the header tells
			"clock":           {emulator.Fault{Kind: emulator.ClockSkew, Skew: time.Hour}, []string{"the clock here differs by"}},
		} {
			t.Run(provider+" "+name, func(t *testing.T) {
				if provider == emulator.Huawei && name == "wrong key id" {
					f.fault, f.log = emulator.Fault{Kind: emulator.WrongDigest}, []string{"cannot be trusted"} // it names no CMK in this answer
				}
				f.fault.Provider, f.fault.Region, f.fault.Operation = provider, region, unwrap
				c.faults(t, f.fault)
				slow := 0
				if name == "hang" {
					slow = 1
				}
				log := c.readsUnhurried(t, slow)
				for _, want := range f.log {
					if !strings.Contains(log, want) || !strings.Contains(log, "kms.cmk="+c.cmks[0]) {
						t.Errorf("%q is not in\n%s", want, log)
					}
				}
				for _, r := range c.Requests() {
					if strings.Contains(r.URL, "/emulator/") {
						t.Error("a redirect was followed")
					}
				}
			})
		}
		// With nobody else to ask, the reason is on standard error; the volume is not to blame.
		c.faults(t, emulator.Fault{Kind: emulator.Status, Status: 403, Code: "Strange", Provider: provider, Region: region})
		c.refused(t, 6, []string{c.cmks[0], "HTTP 403 Strange"}, "mount", "--cmk", c.cmks[0], c.cipher, c.plain)
	}
}

// readsUnhurried is reads, with the log of it, repeated where the machine was so slow that more CMKs than those were asked because another one had not
// answered in time.
func (c *clouds) readsUnhurried(t *testing.T, slow int, options ...string) string {
	t.Helper()
	for range 5 {
		c.ResetCalls()
		c.reads(t, options...)
		if log := c.logged(t); strings.Count(log, "CMK slow") <= slow {
			return log
		}
	}
	t.Fatal("the regions never answer in time")
	return ""
}

// TestBadCredential has a credential that only one of the clouds takes.
func TestBadCredential(t *testing.T) {
	c := newClouds(t, emulator.Options{})
	c.init(t)
	c.save(t)
	good := slices.Clone(c.env)
	for _, other := range []struct{ variable, provider, cmk string }{
		{"ALIBABA_CLOUD_ACCESS_KEY_SECRET", emulator.Alibaba, c.cmks[0]}, {"HUAWEICLOUD_SDK_SK", emulator.Huawei, c.cmks[1]},
	} {
		c.env = append(slices.Clone(good), other.variable+"=canary-of-a-secret")
		c.refused(t, 6, []string{other.cmk, "the credential is unknown, expired or wrong"}, "mount", "--cmk", other.cmk, c.cipher, c.plain)
		c.reads(t)
		c.env = append(slices.Clone(good), other.variable+"=")
		c.refused(t, 6, []string{other.cmk, "no credential", "only one of", other.variable}, "mount", "--cmk", other.cmk, c.cipher, c.plain)
		c.reads(t)
		if strings.Contains(c.printed.String()+c.logged(t), "canary-of-a-secret") {
			t.Error("a secret shows")
		}
	}
}

// TestCredentialSources takes credentials from a file and from the instance's metadata service.
func TestCredentialSources(t *testing.T) {
	c := newClouds(t, emulator.Options{})
	c.init(t)
	c.save(t)
	none := []string{"HOME=" + c.dir}
	for _, e := range c.env {
		if strings.HasPrefix(e, "KMSFS_ENDPOINTS=") {
			none = append(none, e)
		}
	}
	ali, huawei := c.Credential(emulator.Alibaba), c.Credential(emulator.Huawei)
	for cmk, f := range map[string]struct{ table, file, content, variables string }{
		c.cmks[0]: {"alibaba", ".alibabacloud/credentials", "[default]\ntype = access_key\naccess_key_id = " + ali.ID + "\naccess_key_secret = " + ali.Secret + "\n", "ALIBABA_CLOUD_ACCESS_KEY_ID"},
		c.cmks[1]: {"huawei", ".huaweicloud/credentials", "[basic]\nak = " + huawei.ID + "\nsk = " + huawei.Secret + "\n", "HUAWEICLOUD_SDK_AK"},
	} {
		c.env = none
		off := "[" + f.table + "]\nmetadata = 'off'\n"
		c.configure(t, off)
		c.refused(t, 6, []string{"no credential", "hint: set " + f.variables, "credentials=", "[" + f.table + "]"}, "mount", "--cmk", cmk, c.cipher, c.plain)

		usual := filepath.Join(c.dir, f.file)
		must(t, os.MkdirAll(filepath.Dir(usual), 0o700))
		must(t, os.WriteFile(usual, []byte(f.content), 0o600))
		c.reads(t, "cmk="+cmk)
		must(t, os.Chmod(usual, 0o640))
		c.refused(t, 6, []string{usual, "chmod 600"}, "mount", "--cmk", cmk, c.cipher, c.plain)

		named := filepath.Join(c.dir, f.table, "credentials")
		must(t, os.MkdirAll(filepath.Dir(named), 0o700))
		must(t, os.WriteFile(named, []byte(f.content), 0o600))
		c.configure(t, off+"credentials = '"+named+"'\n")
		c.reads(t, "cmk="+cmk)

		must(t, os.Remove(usual))
		c.configure(t, "["+f.table+"]\nmetadata = '"+c.metadata+"'\n")
		c.ResetCalls()
		c.reads(t, "cmk="+cmk)
		if n := c.Count("", "MetadataCredentials"); n == 0 {
			t.Errorf("the metadata service was not asked: %+v", c.Calls())
		}
		c.configure(t, "["+f.table+"]\nmetadata = 'http://example.org'\n")
		c.refused(t, 6, []string{"metadata service", "plain http"}, "mount", "--cmk", cmk, c.cipher, c.plain)
	}
}

// TestHangingRegion bounds what a first region that never answers adds to a mount, by the times at which calls arrive.
func TestHangingRegion(t *testing.T) {
	c := newClouds(t, emulator.Options{})
	c.init(t)
	c.save(t)
	provider, region := regionOf(c.cmks[0])
	c.faults(t, emulator.Fault{Kind: emulator.Hang, Provider: provider, Region: region})
	var least time.Duration
	for range 5 { // a machine that is busy with other things may need another one
		c.readsUnhurried(t, 1)
		arrived := map[string]time.Time{}
		for _, r := range c.Requests() {
			if describing(r.Operation) {
				continue
			}
			if _, again := arrived[r.CMK]; again {
				t.Errorf("%s is asked twice", r.CMK)
			}
			arrived[r.CMK] = r.Time
		}
		if len(arrived) > 2 {
			t.Errorf("%d CMKs are asked, want 2: %v", len(arrived), arrived)
		}
		if len(arrived) < 2 {
			continue // the first call was given up before the region, on a busy machine, got to it
		}
		if more := arrived[c.cmks[1]].Sub(arrived[c.cmks[0]]); least == 0 || more < least {
			least = more
		}
		if least <= 1500*time.Millisecond {
			return
		}
	}
	t.Errorf("the first region costs %v", least)
}

// TestKeyStates goes through what the owner of a CMK may do to it, while a volume is mounted and before the next mount.
func TestKeyStates(t *testing.T) {
	c := newClouds(t, emulator.Options{})
	c.init(t)
	c.save(t)
	for _, i := range []int{0, 1} {
		for state, reason := range map[emulator.State]string{
			emulator.Disabled:        "is disabled",
			emulator.PendingDeletion: "IS PENDING DELETION",
			emulator.Deleted:         "no such CMK",
			emulator.Denied:          "no permission",
			emulator.PendingImport:   "is disabled",
		} {
			cmk := c.cmks[i]
			c.mount(t, "cmk="+cmk)
			must(t, c.SetState(cmk, state))
			name := filepath.Join(c.plain, "later")
			must(t, os.WriteFile(name, []byte("in use"), 0o600))
			if b, err := os.ReadFile(filepath.Join(c.plain, "file")); string(b) != "content\n" {
				t.Errorf("%s: a mounted volume reads %q, %v", state, b, err)
			}
			must(t, os.Remove(name))
			c.umount(t)

			c.refused(t, 6, []string{cmk, reason}, "mount", "--cmk", cmk, c.cipher, c.plain)
			c.logged(t)
			if log := c.readsUnhurried(t, 0, "cmk="+cmk, "cmk="+c.cmks[3]); !strings.Contains(log, reason) {
				t.Errorf("%s: %q is not in\n%s", state, reason, log)
			}
			if state == emulator.PendingDeletion {
				// It warns even where another CMK comes first.
				c.mount(t, "cmk="+c.cmks[3], "cmk="+cmk)
				eventually(t, "a warning of the deletion", func() bool { return strings.Contains(c.logged(t), "CMK "+cmk+" "+reason) })
				c.umount(t)
			}
			must(t, c.SetState(cmk, emulator.Enabled))
			c.reads(t, "cmk="+cmk)
		}
	}
}

// TestKeyringCheck looks at what the check says of CMKs in several states.
func TestKeyringCheck(t *testing.T) {
	cmks := cloudCMKs()
	cmks = append(cmks, emulator.CMK{URI: "acs:kms:eu-central-1:1000000000000001:key/key-rsa00000000000000000000", Spec: "RSA_2048"})
	c := newClouds(t, emulator.Options{CMKs: cmks, Contexts: map[string]emulator.ContextMode{"huawei/ap-southeast-3": emulator.ContextIgnored}})
	c.init(t)
	check := func(code int, args ...string) (rows []map[string]any) {
		t.Helper()
		r := c.run(t, append([]string{"keyring", "check", "--json"}, args...)...)
		if r.code != code {
			t.Errorf("exit code %d, want %d\n%s", r.code, code, r.stderr)
		}
		must(t, json.Unmarshal([]byte(r.stdout), &rows))
		return rows
	}
	rows := check(0, c.cipher)
	for i, r := range rows {
		if r["cmk"] != c.cmks[i] || r["wraps"] != true || r["unwraps"] != true || r["opens"] != true || r["state"] != "enabled" || r["bindsContext"] != (i != 3) {
			t.Errorf("%v", r)
		}
	}
	if len(rows) != 5 {
		t.Errorf("%d rows", len(rows))
	}
	must(t, c.SetState(c.cmks[0], emulator.PendingDeletion))
	must(t, c.SetState(c.cmks[1], emulator.Disabled))
	provider, region := regionOf(c.cmks[2])
	c.faults(t, append(c.down(4), emulator.Fault{Kind: emulator.ClockSkew, Skew: time.Hour, Provider: provider, Region: region})...)
	rows = check(11, c.cipher)
	for i, want := range []struct{ state, says string }{
		{"pending deletion", "IS PENDING DELETION"}, {"disabled", "is disabled"}, {"", "the clock here differs by"}, {"enabled", "does not bind"}, {"", "connection refused"},
	} {
		r := rows[i]
		said, _ := json.Marshal(r["errors"])
		if state, _ := r["state"].(string); state != want.state || r["opens"] != (i == 3) || !strings.Contains(string(said), want.says) {
			t.Errorf("%v, want %+v", r, want)
		}
	}
	if skew, _ := rows[2]["skew"].(float64); time.Duration(skew).Round(time.Minute) != -time.Hour {
		t.Errorf("the clock differs by %v", time.Duration(skew))
	}
	rows = check(6, "--cmk", c.cmks[0], "--cmk", c.cmks[1])
	if _, has := rows[0]["opens"]; has || len(rows) != 2 {
		t.Errorf("%v", rows)
	}
	table := c.run(t, "keyring", "check", c.cipher)
	if table.code != 11 || !strings.Contains(table.stdout, "BINDS CONTEXT") || !strings.Contains(table.stdout, "pending deletion, ") || strings.Count(table.stdout, "\n"+c.cmks[1]+" ") != 1 {
		t.Errorf("%+v", table)
	}
	c.refused(t, 2, []string{"CIPHERDIR is missing"}, "keyring", "check")
	c.refused(t, 3, []string{"not a kmsfs volume"}, "keyring", "check", c.plain)
}

// TestRSAAlone warns of a volume whose CMKs are all RSA ones, and goes on without the public keys that the volume keeps.
func TestRSAAlone(t *testing.T) {
	c := newClouds(t, emulator.Options{CMKs: []emulator.CMK{
		{URI: "acs:kms:cn-hangzhou:1000000000000001:key/key-rsa00000000000000000000", Spec: "RSA_2048"},
		{URI: "huawei:kms:cn-north-4:0000000000000000000000000000cafe:key/11111111-1111-4111-8111-111111111111", Spec: "RSA_2048"},
	}})
	c.init(t)
	if !strings.Contains(c.printed.String(), "every CMK is an RSA one") {
		t.Error("there is no warning")
	}
	if c.asked("") != 0 {
		t.Errorf("wrapping asked: %+v", c.Calls())
	}
	c.save(t)
	for _, cmk := range c.cmks {
		c.reads(t, "cmk="+cmk)
	}
	kept := filepath.Join(c.cipher, ".kmsfs/cmks")
	b, err := os.ReadFile(kept)
	if err != nil || !strings.Contains(string(b), "publicKey") {
		t.Fatalf("%s: %q, %v", kept, b, err)
	}
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(kept, b, 0o600))
	c.logged(t)
	c.reads(t)
	if log := c.logged(t); !strings.Contains(log, "does not authenticate") {
		t.Errorf("no word of %s:\n%s", kept, log)
	}
	must(t, os.Remove(kept))
	c.reads(t)
}

// TestEndpointSources says in each place where a region is. Those of the command line win.
func TestEndpointSources(t *testing.T) {
	c := newClouds(t, emulator.Options{CMKs: cloudCMKs()[:1]})
	c.init(t)
	c.save(t)
	i := slices.IndexFunc(c.env, func(e string) bool { return strings.HasPrefix(e, "KMSFS_ENDPOINTS=") })
	endpoint := strings.TrimPrefix(c.env[i], "KMSFS_ENDPOINTS=")
	nowhere, _, _ := strings.Cut(endpoint, "=")
	nowhere += "=http://127.0.0.1:1"
	c.env[i] = "KMSFS_ENDPOINTS=" + nowhere
	c.refused(t, 6, []string{c.cmks[0], "connection refused"}, "mount", c.cipher, c.plain)
	c.reads(t, "endpoint="+endpoint)
	c.ok(t, "fsck", "--endpoint", endpoint, c.cipher)
	c.env[i] = "KMSFS_ENDPOINTS="
	c.configure(t, "endpoint = ['"+endpoint+"']\n")
	c.reads(t)
	c.refused(t, 6, []string{c.cmks[0]}, "mount", "--endpoint", nowhere, c.cipher, c.plain)
	c.configure(t, "")
	c.refused(t, 2, []string{"alibaba/cn-hangzhou", "loopback"}, "mount", "--endpoint", "alibaba/cn-hangzhou=http://192.0.2.1", c.cipher, c.plain)
}
