package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// request returns the body of an answer of status 200.
func request(method, url, body string) (string, error) {
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status + ": " + string(b))
	}
	return string(b), err
}

// TestRun runs the program with what it does by default and a script, closes a region and interrupts it.
func TestRun(t *testing.T) {
	script := filepath.Join(t.TempDir(), "faults.json")
	must(t, os.WriteFile(script, []byte(`[{"fault":"hang","region":"nowhere","delay":"1s"}]`), 0o644))
	ctx, interrupt := context.WithCancel(context.Background())
	defer interrupt()
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, []string{"--faults", script}, in, io.Discard)
		in.CloseWithError(err)
		ended <- err
	}()
	env, cmks := map[string]string{}, 0
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "# ready"; {
		if v, ok := strings.CutPrefix(lines.Text(), "export "); ok {
			name, value, _ := strings.Cut(v, "=")
			env[name] = value
		} else if strings.HasPrefix(lines.Text(), "# --cmk ") {
			cmks++
		}
	}
	endpoints := strings.Split(env["KMSFS_ENDPOINTS"], ",")
	if cmks != len(defaultCMKs) || len(endpoints) != len(defaultCMKs) || env["ALIBABA_CLOUD_ACCESS_KEY_ID"] == "" || env["HUAWEICLOUD_SDK_SK"] == "" {
		t.Fatalf("%d CMKs, %v", cmks, env)
	}
	faults, err := request("GET", env["KMSEMU"]+"/emulator/faults", "")
	must(t, err)
	if !strings.Contains(faults, `"nowhere"`) {
		t.Errorf("faults: %s", faults)
	}
	_, err = request("PUT", env["KMSEMU"]+"/emulator/faults", `[{"fault":"refuse","provider":"alibaba","region":"cn-hangzhou"}]`)
	must(t, err)
	for _, e := range endpoints {
		region, url, _ := strings.Cut(e, "=")
		if _, err := request("GET", url+"/emulator/calls", ""); errors.Is(err, syscall.ECONNREFUSED) != (region == "alibaba/cn-hangzhou") {
			t.Errorf("%s: %v", region, err)
		}
	}
	interrupt()
	must(t, <-ended)
	if calls, err := request("GET", env["KMSEMU"]+"/emulator/calls", ""); err == nil {
		t.Errorf("it serves after its end: %s", calls)
	}
}

func TestWrongCommandLine(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // what is accepted ends at once
	for _, args := range [][]string{
		{"argument"}, {"--nothing"}, {"--cmk", "local:x"}, {"--cmk", defaultCMKs[0] + ",DES"}, {"--listen", "huawei=127.0.0.1:0"}, {"--listen", "aws/x=127.0.0.1:0"},
		{"--listen", "alibaba/cn-hangzhou=0.0.0.0:0"}, {"--faults", "/nonexistent"}, {"--tls-cert", "/nonexistent"},
	} {
		if err := run(ctx, args, io.Discard, io.Discard); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
}
