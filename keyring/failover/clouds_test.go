package failover_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kmsfs/kmsfs/integration/emulator"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/alikms"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/cloud/cloudtest"
	"github.com/kmsfs/kmsfs/keyring/creds"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/keyring/huaweikms"
	"github.com/kmsfs/kmsfs/keyring/keyringtest"
	"github.com/kmsfs/kmsfs/keyring/local"
)

// The CMKs of the tests: two clouds with two regions each, of all kinds of keys.
var cmks = []emulator.CMK{
	{URI: "acs:kms:cn-hangzhou:1234567890123456:key/key-hzz1234567890abcdef"},
	{URI: "huawei:kms:cn-north-4:0d0466b0b4a94e8f9c0f6a6c1c5b1a2b:key/0d0466b0-f727-4d9c-b35d-f84bb474a37f", Spec: "SM4"},
	{URI: "acs:kms:cn-beijing:1234567890123456:key/key-bjj1234567890abcdef", Spec: "SM4"},
	{URI: "huawei:kms:cn-south-1:1d0466b0b4a94e8f9c0f6a6c1c5b1a2b:key/1d0466b0-f727-4d9c-b35d-f84bb474a37f"},
}

// clouds are the emulated regions and the keyrings on their CMKs.
type clouds struct {
	*emulator.Emulator
	keyring *failover.Keyring
	cmks    []failover.CMK

	mu    sync.Mutex
	lines []string // of the log; guarded by mu
}

// newClouds starts the regions. Credentials come from the metadata services.
func newClouds(t *testing.T, o failover.Options, rate float64) *clouds {
	t.Helper()
	e, err := emulator.New(emulator.Options{CMKs: cmks})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	c := &clouds{Emulator: e}
	endpoints := map[string]map[string]string{emulator.Alibaba: {}, emulator.Huawei: {}}
	for _, r := range []struct{ provider, region string }{
		{emulator.Alibaba, "cn-hangzhou"}, {emulator.Huawei, "cn-north-4"}, {emulator.Alibaba, "cn-beijing"}, {emulator.Huawei, "cn-south-1"},
	} {
		p, err := e.Listen(r.provider, r.region, "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		endpoints[r.provider][r.region] = p.URL
	}
	metadata, err := e.Listen("", "", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := func(provider string, keeper func(creds.Options) (*creds.Keeper, error)) cloud.Config {
		k, err := keeper(creds.Options{Instance: true, Metadata: metadata.URL})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { k.Close() })
		return cloud.Config{Credentials: k, Endpoints: endpoints[provider], Rate: rate}
	}
	ali, err := alikms.NewClient(config(emulator.Alibaba, creds.NewAlibaba))
	if err != nil {
		t.Fatal(err)
	}
	huawei, err := huaweikms.NewClient(config(emulator.Huawei, creds.NewHuawei))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ali.Close)
	t.Cleanup(huawei.Close)
	for _, cmk := range cmks {
		var kms cloud.KMS = ali
		if strings.HasPrefix(cmk.URI, "huawei:") {
			kms = huawei
		}
		c.cmks = append(c.cmks, cloud.NewKeyring(kms, cloudtest.CMK(t, cmk.URI), nil))
	}
	o.OnEvent = func(e failover.Event) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.lines = append(c.lines, fmt.Sprint(e.String(), " ", e.LogValue()))
	}
	c.keyring = failover.New(c.cmks, o)
	return c
}

// eager has no pauses worth waiting for.
var eager = failover.Options{Backoff: time.Millisecond, Hedge: 20 * time.Millisecond}

func TestTwoCloudsConform(t *testing.T) {
	c := newClouds(t, failover.Options{}, 1e6)
	keyringtest.Run(t, func(*testing.T) keyring.Keyring { return c.keyring })
}

// TestBudget counts the calls of init and mount.
func TestBudget(t *testing.T) {
	c := newClouds(t, failover.Options{Hedge: time.Minute}, 0)
	_, edks, err := c.keyring.GenerateDataKey(t.Context(), 32, nil)
	if err != nil {
		t.Fatal(err)
	}
	describes := c.Count("", "DescribeKey", "describe-key")
	if made, wrapped := c.Count("", "GenerateDataKey", "create-datakey"), c.Count("", "Encrypt", "encrypt-datakey"); made != 1 || wrapped != 3 || c.Count("") != made+wrapped+describes || describes != 4 {
		t.Errorf("init: %+v", c.Calls())
	}
	c.ResetCalls()
	if _, err := c.keyring.DecryptDataKey(t.Context(), edks, nil); err != nil {
		t.Fatal(err)
	}
	if c.Count("", "Decrypt") != 1 || c.Count("") != 1 {
		t.Errorf("mount: %+v", c.Calls())
	}
}

// TestEverySubset lets every set of regions refuse connections.
func TestEverySubset(t *testing.T) {
	c := newClouds(t, eager, 1e6)
	dk, edks, err := c.keyring.GenerateDataKey(t.Context(), 32, nil)
	if err != nil {
		t.Fatal(err)
	}
	for down := range 1 << len(cmks) {
		var faults []emulator.Fault
		for i, cmk := range cmks {
			if down>>i&1 == 1 {
				f := strings.Split(cmk.URI, ":")
				provider := emulator.Huawei
				if f[0] == "acs" {
					provider = emulator.Alibaba
				}
				faults = append(faults, emulator.Fault{Kind: emulator.Refuse, Provider: provider, Region: f[2]})
			}
		}
		if err := c.SetFaults(faults...); err != nil {
			t.Fatal(err)
		}
		k := failover.New(c.cmks, eager) // nobody rests
		got, err := k.DecryptDataKey(t.Context(), edks, nil)
		if all := down == 1<<len(cmks)-1; all {
			if !errors.Is(err, keyring.ErrUnavailable) || errors.Is(err, keyring.ErrDenied) {
				t.Errorf("all down: %v, want ErrUnavailable", err)
			}
		} else if err != nil || !bytes.Equal(got, dk) {
			t.Errorf("down %04b: same key: %t, error %v", down, bytes.Equal(got, dk), err)
		}
		if down > 0 {
			if _, err := k.EncryptDataKey(t.Context(), dk, nil); !errors.Is(err, keyring.ErrUnavailable) {
				t.Errorf("down %04b: wrapping: %v, want ErrUnavailable", down, err)
			}
		}
	}
}

// TestFaultsOfTheFirst does to the first region whatever may happen to one; the next answers.
func TestFaultsOfTheFirst(t *testing.T) {
	c := newClouds(t, eager, 1e6)
	dk, edks, err := c.keyring.GenerateDataKey(t.Context(), 32, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, cmk := range cmks[:2] {
		for _, f := range []emulator.Fault{
			{Kind: emulator.Hang}, {Kind: emulator.Reset}, {Kind: emulator.Status, Status: 500}, {Kind: emulator.Status, Status: 503, Body: "<html>"},
			{Kind: emulator.Throttle}, {Kind: emulator.Status, Status: 401}, {Kind: emulator.Redirect}, {Kind: emulator.Truncate}, {Kind: emulator.Empty},
			{Kind: emulator.WrongKeyID}, {Kind: emulator.WrongDigest}, {Kind: emulator.WrongLength}, {Kind: emulator.ClockSkew, Skew: time.Hour},
		} {
			if i == 1 && f.Kind == emulator.WrongKeyID || i == 0 && f.Kind == emulator.WrongDigest {
				continue // there is no such field in the answer
			}
			f.CMK = cmk.URI
			if err := c.SetFaults(f); err != nil {
				t.Fatal(err)
			}
			c.ResetCalls()
			k := failover.New([]failover.CMK{c.cmks[i], c.cmks[2]}, eager)
			got, err := k.DecryptDataKey(t.Context(), edks, nil)
			if err != nil || !bytes.Equal(got, dk) {
				t.Errorf("%s, %s: same key: %t, error %v", cmk.URI, f.Kind, bytes.Equal(got, dk), err)
			}
			alone := failover.New(c.cmks[i:i+1], eager)
			ctx, cancel := context.WithCancel(t.Context())
			if f.Kind == emulator.Hang {
				time.AfterFunc(20*time.Millisecond, cancel)
			}
			if got, err := alone.DecryptDataKey(ctx, edks, nil); err == nil || got != nil {
				t.Errorf("%s, %s: alone it gave a key", cmk.URI, f.Kind)
			}
			cancel()
			for _, r := range c.Requests() {
				if strings.Contains(r.URL, "redirected") {
					t.Errorf("%s: a redirect was followed", cmk.URI)
				}
			}
		}
	}
}

// TestLocalBesideClouds opens with a local CMK when no region answers.
func TestLocalBesideClouds(t *testing.T) {
	c := newClouds(t, eager, 1e6)
	own, err := local.Generate(filepath.Join(t.TempDir(), "cmk"))
	if err != nil {
		t.Fatal(err)
	}
	k := failover.New(append(c.cmks, own), eager)
	dk, edks, err := k.GenerateDataKey(t.Context(), 16, nil)
	if err != nil || len(edks) != 5 {
		t.Fatalf("%d EDKs, error %v", len(edks), err)
	}
	if err := c.SetFaults(emulator.Fault{Kind: emulator.Refuse}); err != nil {
		t.Fatal(err)
	}
	if got, err := k.DecryptDataKey(t.Context(), edks, nil); err != nil || !bytes.Equal(got, dk) {
		t.Errorf("same key: %t, error %v", bytes.Equal(got, dk), err)
	}
}

// TestExpiredCredential has credentials that end before their time.
func TestExpiredCredential(t *testing.T) {
	c := newClouds(t, eager, 1e6)
	dk, edks, err := c.keyring.GenerateDataKey(t.Context(), 32, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range c.cmks {
		c.ExpireCredentials("")
		if got, err := c.cmks[i].DecryptDataKey(t.Context(), edks, nil); err != nil || !bytes.Equal(got, dk) {
			t.Errorf("%s: same key: %t, error %v", cmks[i].URI, bytes.Equal(got, dk), err)
		}
	}
}

// TestNothingShows looks for secrets in the log, the errors and everything that was sent but for the bodies of calls.
func TestNothingShows(t *testing.T) {
	c := newClouds(t, eager, 1e6)
	dk, edks, err := c.keyring.GenerateDataKey(t.Context(), 32, nil)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, f := range []emulator.Fault{
		{Kind: emulator.Reset}, {Kind: emulator.Status, Status: 400, Code: "SignatureDoesNotMatch", Message: "server string to sign is: canary"}, {Kind: emulator.Redirect},
		{Kind: emulator.Truncate}, {Kind: emulator.Throttle}, {Kind: emulator.Status, Status: 500, Body: "canary"}, {Kind: emulator.WrongLength},
	} {
		if err := c.SetFaults(f); err != nil {
			t.Fatal(err)
		}
		_, err := c.keyring.DecryptDataKey(t.Context(), edks, nil)
		_, errWrap := c.keyring.EncryptDataKey(t.Context(), dk, nil)
		fmt.Fprintf(&text, "%v %+v %#v\n%v\n", err, err, err, errWrap)
	}
	fmt.Fprintf(&text, "%v %+v\n", c.keyring, c.keyring.Status())
	c.mu.Lock()
	text.WriteString(strings.Join(c.lines, "\n"))
	c.mu.Unlock()
	secrets := []string{"canary", string(dk), fmt.Sprintf("%x", []byte(dk)), base64.StdEncoding.EncodeToString(dk)}
	requests := c.Requests()
	for _, r := range requests {
		fmt.Fprintln(&text, r.URL)
	}
	if len(requests) < 20 {
		t.Errorf("only %d requests", len(requests))
	}
	for _, secret := range secrets {
		if strings.Contains(text.String(), secret) {
			t.Errorf("%q shows", secret)
		}
	}
	if strings.Contains(text.String(), "Plaintext=") || strings.Contains(text.String(), "CiphertextBlob=") {
		t.Error("a URL holds a parameter")
	}
}

// TestManyGoroutines is for the race detector, with credentials that end meanwhile.
func TestManyGoroutines(t *testing.T) {
	c := newClouds(t, failover.Options{Hedge: time.Minute}, 1e6)
	var wrapped, group sync.WaitGroup
	expired := make(chan struct{})
	wrapped.Add(100)
	for i := range 100 {
		group.Go(func() {
			ec := keyring.EncryptionContext{"i": fmt.Sprint(i)}
			dk, edks, err := c.keyring.GenerateDataKey(t.Context(), 32, ec)
			wrapped.Done()
			if err != nil {
				t.Error(err)
				return
			}
			<-expired
			if got, err := c.cmks[i%4].DecryptDataKey(t.Context(), edks, ec); err != nil || !bytes.Equal(got, dk) {
				t.Errorf("same key: %t, error %v", bytes.Equal(got, dk), err)
			}
		})
	}
	wrapped.Wait()
	c.ExpireCredentials("")
	close(expired)
	group.Wait()
	if n := c.Count("", "MetadataCredentials"); n > 12 {
		t.Errorf("%d calls to the metadata services, want one renewal for all", n)
	}
}
