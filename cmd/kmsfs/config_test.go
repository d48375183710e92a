package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/volume"
)

func write(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("KMSFS_CONFIG_DIR", dir)
	if c, err := loadConfig(""); err != nil || !reflect.DeepEqual(c, config{}) {
		t.Errorf("no file: %+v, %v", c, err)
	}
	all := "cmk = ['local:/a']\nendpoint = ['huawei/r=https://h']\noptions = ['ro']\nlog = '/l'\nforeground = true\ncontext = {k = 'v'}\n" +
		"algorithm = 'sm4-128-gcm'\nsegment-size = 8192\nplaintext-names = true\ndata-key = 'per-file'\n" +
		"[alibaba]\ncredentials = '/a'\nmetadata = 'off'\nrole = 'r'\nregion = 'r'\naccess-key = 'k'\nsecret-key = 'alibaba-secret://k#s'\nsecurity-token = 'csms://t'\n" +
		"[huawei]\ncredentials = '/h'\nproject = 'p'\n[secrets]\ninterval = '5m'\n"
	want := config{
		CMK: []string{"local:/a"}, Endpoint: []string{"huawei/r=https://h"}, Options: []string{"ro"}, Log: "/l", Foreground: true,
		Context: map[string]string{"k": "v"}, Algorithm: "sm4-128-gcm", SegmentSize: 8192, PlaintextNames: true, DataKey: "per-file",
		Alibaba: cloudSettings{Credentials: "/a", Metadata: "off", Role: "r", Region: "r", AccessKey: "k", SecretKey: "alibaba-secret://k#s", SecurityToken: "csms://t"},
		Huawei:  cloudSettings{Credentials: "/h", Project: "p"}, Secrets: secretSettings{"5m"},
	}
	write(t, filepath.Join(dir, "kmsfs.toml"), all, 0o644)
	if c, err := loadConfig(""); err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("%+v, %v", c, err)
	}
	for name, c := range map[string]struct {
		content, says string
		mode          os.FileMode
	}{
		"unknown":   {"segmentsize = 4096\n", "segmentsize", 0o600},
		"syntax":    {"cmk = [\n", ":1:8", 0o600},
		"type":      {"cmk = 'local:/a'\n", ":1:7", 0o600},
		"group":     {all, "chmod go-w", 0o620},
		"world":     {all, "chmod go-w", 0o602},
		"long":      {strings.Repeat("#", maxConfig+1), "at most", 0o600},
		"record":    {"generation = 1\n", "generation", 0o600},
		"duplicate": {"log = 'a'\nlog = 'b'\n", "log", 0o600},
	} {
		path := write(t, filepath.Join(dir, name), c.content, c.mode)
		_, err := loadConfig(path)
		if exitCode(err) != exitUsage || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, path := range []string{dir, filepath.Join(dir, "missing"), os.DevNull} {
		if _, err := loadConfig(path); exitCode(err) != exitUsage || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestParams merges the command line of init with the configuration: the command line wins, setting by setting.
func TestParams(t *testing.T) {
	conf := config{Context: map[string]string{"a": "b"}, Algorithm: "sm4-128-gcm", SegmentSize: 8192, PlaintextNames: true}
	for _, c := range []struct {
		conf config
		args string
		want volume.Params
	}{
		{config{}, "", volume.Params{Algorithm: header.AES256GCM, SegmentSize: 4096}},
		{conf, "", volume.Params{Algorithm: header.SM4128GCM, SegmentSize: 8192, PlaintextNames: true, Context: map[string]string{"a": "b"}}},
		{conf, "--algorithm aes-128-gcm --segment-size 65536 --plaintext-names=false --context c=d=e,f",
			volume.Params{Algorithm: header.AES128GCM, SegmentSize: 65536, Context: map[string]string{"c": "d=e,f"}}},
	} {
		got, err := paramsOf(t, c.conf, c.args)
		if err != nil || !reflect.DeepEqual(got, c.want) && !(len(got.Context) == 0 && len(c.want.Context) == 0 && got.Algorithm == c.want.Algorithm) {
			t.Errorf("%q: %+v, %v", c.args, got, err)
		}
	}
	for _, bad := range []string{
		"--algorithm=", "--algorithm=des", "--segment-size=0", "--segment-size=-4096", "--segment-size=4095", "--segment-size=131072",
		"--context=x", "--context==x", "--context=a=1 --context=a=2", "--context=\xff=1", "--context=a=" + strings.Repeat("x", 9000),
	} {
		if _, err := paramsOf(t, config{}, bad); exitCode(err) != exitUsage || !strings.Contains(err.Error(), strings.SplitN(bad, "=", 2)[0]) {
			t.Errorf("%.40q: %v", bad, err)
		}
	}
	for _, bad := range []config{{Algorithm: "des"}, {SegmentSize: 5000}, {Context: map[string]string{"": "x"}}} {
		if _, err := paramsOf(t, bad, ""); exitCode(err) != exitUsage {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// paramsOf runs params as init would.
func paramsOf(t *testing.T, conf config, args string) (p volume.Params, err error) {
	t.Helper()
	app := newApp(nil, nil)
	app.Commands = []*cli.Command{initCommand()}
	app.Commands[0].Action = func(c *cli.Context) error {
		p, err = params(c, conf)
		return nil
	}
	if runErr := app.RunContext(context.Background(), append([]string{"kmsfs", "init"}, strings.Fields(args)...)); runErr != nil {
		t.Fatal(runErr)
	}
	return p, err
}
