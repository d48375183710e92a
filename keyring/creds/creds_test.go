package creds

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

func getenv(env map[string]string) func(string) string {
	return func(name string) string { return env[name] }
}

func TestEnvironment(t *testing.T) {
	for name, c := range map[string]struct {
		make func(Options) (*Keeper, error)
		env  map[string]string
		want error
	}{
		"alibaba":      {NewAlibaba, map[string]string{"ALIBABA_CLOUD_ACCESS_KEY_ID": "i", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "s", "ALIBABA_CLOUD_SECURITY_TOKEN": "t"}, nil},
		"huawei":       {NewHuawei, map[string]string{"HUAWEICLOUD_SDK_AK": "i", "HUAWEICLOUD_SDK_SK": "s", "HUAWEICLOUD_SDK_SECURITY_TOKEN": "t"}, nil},
		"half alibaba": {NewAlibaba, map[string]string{"ALIBABA_CLOUD_ACCESS_KEY_ID": "i"}, ErrFormat},
		"half huawei":  {NewHuawei, map[string]string{"HUAWEICLOUD_SDK_SK": "s"}, ErrFormat},
		"none":         {NewHuawei, nil, ErrNone},
	} {
		k, err := c.make(Options{Getenv: getenv(c.env)})
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.Get(t.Context())
		if !errors.Is(err, c.want) || c.want == nil && !got.same(Credential{ID: "i", Secret: "s", Token: "t"}) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
		k.Close()
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "credentials")
	k, err := NewHuawei(Options{File: path})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if _, err := k.Get(t.Context()); !errors.Is(err, ErrNone) {
		t.Errorf("no file: %v, want ErrNone", err)
	}
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("[basic]\nak = one\nsk = s\n", 0o640)
	if _, err := k.Get(t.Context()); !errors.Is(err, ErrMode) {
		t.Errorf("open to the group: %v, want ErrMode", err)
	}
	write("# mine\n[other]\nak=no\nsk=no\n\n[basic]\r\n ak = one\r\nsk=s=t\niam_endpoint=x\n", 0o600)
	if c, err := k.Get(t.Context()); err != nil || !c.same(Credential{ID: "one", Secret: "s=t"}) {
		t.Errorf("first: %q, error %v", c.ID, err)
	}
	write("[basic]\nak = two\nsk = s\nsecurity_token = t\n", 0o600)
	if c, err := k.Get(t.Context()); err != nil || !c.same(Credential{ID: "two", Secret: "s", Token: "t"}) {
		t.Errorf("changed: %q, error %v", c.ID, err)
	}
	for _, bad := range []string{"", "[basic]\nak = thr", "[basic]\nak"} { // as while it is being written
		write(bad, 0o600)
		if c, err := k.Get(t.Context()); err != nil || c.ID != "two" {
			t.Errorf("%q: %q, error %v, want the last good one", bad, c.ID, err)
		}
	}
}

func TestBadFiles(t *testing.T) {
	const secret = "canary"
	path := filepath.Join(t.TempDir(), "credentials")
	for _, text := range []string{
		"", "ak", "[basic]\nak=i\n", "[other]\nak=i\nsk=" + secret, "[basic]\nak=i\nsk " + secret,
		"ak=i\nsk=" + secret + "\nexpiration=" + secret, "ak=i\nsk=" + secret + "\ntype=ecs_ram_role",
		"ak=i\nsk=" + secret + "\nexpiration=2001-01-01T00:00:00Z", "ak=i\nsk=" + secret + strings.Repeat("\n", maxFile),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := NewHuawei(Options{File: path})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Get(t.Context()); !errors.Is(err, ErrFormat) || strings.Contains(err.Error(), secret) {
			t.Errorf("%.40q: %v, want ErrFormat and no secret", text, err)
		}
		k.Close()
	}
	fifo, err := NewHuawei(Options{File: os.DevNull})
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	if _, err := fifo.Get(t.Context()); !errors.Is(err, ErrFormat) {
		t.Errorf("not a regular file: %v, want ErrFormat", err)
	}
}

func TestMetadata(t *testing.T) {
	e, err := emulator.New(emulator.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	server := httptest.NewServer(e.Handler("", ""))
	defer server.Close()
	for provider, make := range map[string]func(Options) (*Keeper, error){emulator.Alibaba: NewAlibaba, emulator.Huawei: NewHuawei} {
		k, err := make(Options{Instance: true, Metadata: server.URL})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		c, err := k.Get(t.Context())
		if err != nil || c.Token == "" || c.Expiry.IsZero() {
			t.Fatalf("%s: error %v", provider, err)
		}
		if _, err := k.Get(t.Context()); err != nil || e.Count(provider, "MetadataCredentials") > 2 {
			t.Errorf("%s: %d calls, error %v", provider, e.Count(provider, "MetadataCredentials"), err)
		}
		if renewed, err := k.Renew(t.Context(), c); err != nil || renewed.same(c) {
			t.Errorf("%s: renewed to the same: %t, error %v", provider, renewed.same(c), err)
		}
	}
}

// TestOldMetadata has a service without sessions, and answers that are not right.
func TestOldMetadata(t *testing.T) {
	for _, c := range []struct {
		answer string
		want   error
	}{
		{`{"credential":{"access":"i","secret":"s","securitytoken":"t","expires_at":"2999-01-01T00:00:00.000000Z"}}`, nil},
		{`{"credential":{"access":"i","secret":"s","securitytoken":"t"}}`, ErrFormat},
		{`{"credential":{"access":"i","secret":"s","securitytoken":"t","expires_at":"2001-01-01T00:00:00Z"}}`, ErrFormat},
		{`{"credential":{"access":"i","secret":"canary","securitytoken":"t","expires_at":"canary"}}`, ErrFormat},
		{`{"credential":"canary"}`, ErrFormat},
		{`canary`, ErrFormat},
		{``, ErrFormat},
		{`{}`, ErrFormat},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				http.NotFound(w, r)
				return
			}
			fmt.Fprint(w, c.answer)
		}))
		m, err := newInstance(vendor{metadata: "http://169.254.169.254", tokenPath: "/meta-data/latest/api/token", tokenHeader: "X", fetch: fetchHuawei}, server.URL, "")
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.Fetch(t.Context())
		if err == nil && !got.Expiry.IsZero() && got.Expiry.Year() < 2010 {
			err = ErrFormat // the keeper says so
		}
		if !errors.Is(err, c.want) || err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v, want %v", c.answer, err, c.want)
		}
		server.Close()
	}
}

func TestMetadataAddress(t *testing.T) {
	for _, base := range []string{"http://10.0.0.1", "http://example.com", "ftp://127.0.0.1", "http://", "http://u@127.0.0.1", "http://u:secret@127.0.0.1", "http://u:secret@%zz", "x"} {
		if k, err := NewHuawei(Options{Instance: true, Metadata: base}); err == nil {
			k.Close()
			t.Errorf("%s: no error", base)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", base, err)
		}
	}
	for _, base := range []string{"", "http://169.254.169.254", "http://127.0.0.1:80/", "http://[::1]:80", "https://metadata.example"} {
		if k, err := NewHuawei(Options{Instance: true, Metadata: base}); err != nil {
			t.Errorf("%s: %v", base, err)
		} else {
			k.Close()
		}
	}
	if k, err := NewAlibaba(Options{Instance: true, Getenv: getenv(map[string]string{"ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"})}); err != nil {
		t.Error(err)
	} else if _, err := k.Get(t.Context()); !errors.Is(err, ErrNone) {
		t.Errorf("disabled: %v, want ErrNone", err)
	}
}

func TestCredentialHides(t *testing.T) {
	c := Credential{ID: "canary-id", Secret: "canary-secret", Token: "canary-token"}
	k := NewKeeper([]Source{fixed{c}}, nil, nil)
	defer k.Close()
	if _, err := k.Get(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprintf("%v %+v %#v", k, k, k), fmt.Sprint(c), fmt.Sprintf("%v %+v %#v %s %q", c, c, c, c, c), fmt.Sprintf("%v", struct{ C Credential }{c}), c.LogValue().String()} {
		if strings.Contains(s, "canary") {
			t.Errorf("a credential prints as %q", s)
		}
	}
}
