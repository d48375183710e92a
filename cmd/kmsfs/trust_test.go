package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring/local"
)

func TestCheckCMKs(t *testing.T) {
	for _, good := range []string{
		"local:/a", "local:/a b:c", "acs:kms:cn-hangzhou:1234567890:key/key-hzz62f1cb66fa42qo5wrk",
		"huawei:kms:cn-north-4:0123456789abcdef:key/0d0466b0-e727-4d9c-b35d-f84bb474a37f",
	} {
		if err := checkCMKs([]string{good}); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{
		"", "local:", "local:a", "/a", "local", "acs:kms:cn:1:key/", "acs:kms:cn:1:alias/x", "acs:kms::1:key/x", "acs:kms:cn:1:key/a/b", "acs:kms:cn:1:key/x\n",
		"huawei:kms:cn:key/x", "huawei:kms:CN:p:key/x", "aws:kms:us:1:key/x", " local:/a",
	} {
		if err := checkCMKs([]string{bad}); exitCode(err) != exitUsage {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := checkCMKs([]string{"local:/a", "local:/a"}); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "twice") {
		t.Error(err)
	}
}

func TestEndpoints(t *testing.T) {
	got, err := parseEndpoints([]string{"huawei/r=https://a", "huawei/r=https://later,alibaba/r=http://127.0.0.1:80", "", "huawei/s=http://[::1]:1", "huawei/t=http://localhost"})
	if err != nil || len(got) != 4 || got["huawei/r"] != "https://a" || got["alibaba/r"] != "http://127.0.0.1:80" {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{
		"x", "aws/r=https://a", "huawei/=https://a", "huawei=https://a", "huawei/r=", "huawei/r=a", "huawei/r=https://", "huawei/r=http://example.org",
		"huawei/r=http://127.0.0.1.example.org", "huawei/r=http://localhost@example.org", "huawei/r=https://user:secret@example.org", "huawei/r=ftp://localhost", "huawei/r=https://a/path", "huawei/r=://",
	} {
		if _, err := parseEndpoints([]string{bad}); exitCode(err) != exitUsage {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestTrustedBy goes through the sources of trust in their order.
func TestTrustedBy(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("KMSFS_CONFIG_DIR", dir)
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	id := header.NewID()
	check := func(tr trust, want ...string) {
		t.Helper()
		if got, err := tr.trustedBy(id); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	check(trust{})
	check(trust{config: []string{"local:/c"}}, "local:/c")
	named := trust{named: []string{"local:/n"}, config: []string{"local:/c"}}
	if err := named.note(id); err != nil {
		t.Fatal(err)
	}
	check(trust{}, "local:/n")
	check(trust{config: []string{"local:/c"}}, "local:/c", "local:/n")
	check(trust{config: []string{"local:/n", "local:/c"}}, "local:/n", "local:/c")
	check(named, "local:/n")
	// A record is not changed by a later --cmk.
	if err := (trust{named: []string{"local:/other"}}).note(id); err != nil {
		t.Fatal(err)
	}
	check(trust{}, "local:/n")

	credentials := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	write(t, filepath.Join(credentials, "kmsfs.cmk"), "x", 0o400)
	write(t, filepath.Join(credentials, "password"), "x", 0o400)
	check(trust{}, "local:"+credentials+"/kmsfs.cmk", "local:/n")
	check(named, "local:/n")
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Join(credentials, "missing"))
	if _, err := (trust{}).trustedBy(id); err == nil || !strings.Contains(err.Error(), "CREDENTIALS_DIRECTORY") {
		t.Error(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")

	path := filepath.Join(dir, "volumes", id.String()+".toml")
	for content, says := range map[string]string{"cmk = ['local:relative']": "absolute", "cmk = 1": ":1:7", "x = 1": "unknown"} {
		write(t, path, content, 0o600)
		if _, err := (trust{}).trustedBy(id); exitCode(err) != exitUsage || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", content, err)
		}
	}
	write(t, path, "cmk = ['local:/n']", 0o666)
	if _, err := (trust{}).trustedBy(id); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("%v", err)
	}
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

func TestKeyrings(t *testing.T) {
	dir := t.TempDir()
	good, copied := filepath.Join(dir, "good"), filepath.Join(dir, "copied")
	k, err := local.Generate(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := copyFile(good, copied); err != nil {
		t.Fatal(err)
	}
	missing := "local:" + filepath.Join(dir, "missing")
	var s keyrings
	if one, err := s.open("local:" + good); err != nil || one.CMK() != k.CMK() {
		t.Errorf("%v, %v", one, err)
	}
	if _, err := s.all([]string{"local:" + good, missing}); exitCode(err) != exitCMK || !strings.Contains(err.Error(), missing) || !strings.Contains(err.Error(), "kmsfs key new") {
		t.Errorf("all: %v", err)
	}
	if _, err := s.all([]string{"local:" + good, "local:" + copied}); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "the same") {
		t.Errorf("one CMK in two files: %v", err)
	}
	if _, failures := s.any([]string{missing, "local:" + good}); len(failures) != 1 || !strings.Contains(failures[0].Error(), missing) {
		t.Errorf("any: %v", failures)
	}
}
