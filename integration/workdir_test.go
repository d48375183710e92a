package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// TestWorkingDirectory names everything by relative paths, in the environment and the configuration file, too. A daemon leaves the directory that they are relative to, and finds its files
// all the same: the record of the volume, where it notes new CMKs and data keys, and a credential that it did not need before.
func TestWorkingDirectory(t *testing.T) {
	c := openClouds(t, emulator.Options{CMKs: cloudCMKs()[:3]})
	alibaba, huawei := c.Credential(emulator.Alibaba), c.Credential(emulator.Huawei)
	must(t, os.WriteFile(filepath.Join(c.dir, "a"), []byte("[default]\naccess_key_id = "+alibaba.ID+"\naccess_key_secret = "+alibaba.Secret+"\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(c.dir, "h"), []byte("[basic]\nak = "+huawei.ID+"\nsk = "+huawei.Secret+"\n"), 0o600))
	c.configure(t, "[huawei]\nmetadata = 'off'\ncredentials = 'h'\n")
	var env []string
	for _, v := range c.env {
		if strings.HasPrefix(v, "KMSFS_") {
			env = append(env, v)
		}
	}
	env = append(env, "KMSFS_CONFIG_DIR=config", "ALIBABA_CLOUD_CREDENTIALS_FILE=a", "HOME=.", "PATH="+os.Getenv("PATH"))
	kmsfs := func(args ...string) {
		t.Helper()
		cmd := exec.Command(binary, args...)
		cmd.Dir, cmd.Env = c.dir, env
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	local := filepath.Join(c.dir, "cmk")
	kmsfs("key", "new", "cmk")
	kmsfs("init", "--cmk", "local:"+local, "cipher")
	kmsfs("mount", "--log", "log", "cipher", "plain")
	c.mounted = true
	var clouds []string
	for _, cmk := range c.cmks {
		clouds = append(clouds, "--add", cmk)
	}
	kmsfs(append(append([]string{"rewrap", "--remove", "local:" + local}, clouds...), "cipher")...)
	kmsfs("rotate", "cipher")
	kmsfs("umount", "plain")
	c.mounted = false
	must(t, os.Remove(local))
	kmsfs("mount", "--log", "log", "cipher", "plain") // with what the daemon has noted
	c.mounted = true
	kmsfs("umount", "plain")
	c.mounted = false
	records, err := filepath.Glob(filepath.Join(c.config, "volumes", "*.toml"))
	must(t, err)
	if len(records) != 1 {
		t.Fatalf("records: %q", records)
	}
	if b, err := os.ReadFile(records[0]); err != nil || !strings.Contains(string(b), "generation = 1") || !strings.Contains(string(b), c.cmks[2]) {
		t.Errorf("the record: %s, %v", b, err)
	}
}
