package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/local"
	"github.com/kmsfs/kmsfs/volume"
)

const (
	aliCMK    = "acs:kms:cn-hangzhou:1000000000000001:key/a"
	huaweiCMK = "huawei:kms:cn-north-4:cafe:key/b"
)

// TestHints says what to do about failed calls, once each.
func TestHints(t *testing.T) {
	noName := &net.DNSError{Err: "no such host", Name: "kms.x", IsNotFound: true}
	for _, c := range []struct {
		err  error
		want []string
	}{
		{&cloud.Error{CMK: aliCMK, Kind: cloud.NoCredential}, []string{"ALIBABA_CLOUD_ACCESS_KEY_ID", "[alibaba]", "RAM role"}},
		{&cloud.Error{CMK: huaweiCMK, Kind: cloud.NoCredential}, []string{"HUAWEICLOUD_SDK_AK", "[huawei]", "agency"}},
		{&cloud.Error{CMK: aliCMK, Kind: cloud.Unavailable, Err: noName}, []string{"--endpoint alibaba/cn-hangzhou="}},
		{&cloud.Error{CMK: huaweiCMK, Kind: cloud.Unavailable, Err: fmt.Errorf("dial: %w", noName)}, []string{"--endpoint huawei/cn-north-4="}},
		{&cloud.Error{CMK: aliCMK, Kind: cloud.Unavailable, Err: &net.DNSError{Err: "server misbehaving", Name: "kms.x", IsTemporary: true}}, []string{"name service"}},
		{&cloud.Error{CMK: aliCMK, Kind: cloud.Unavailable, Err: &tls.CertificateVerificationError{Err: errors.New("x")}}, []string{"SSL_CERT_FILE"}},
		{&cloud.Error{CMK: aliCMK, Kind: cloud.NoPermission}, []string{"keyring check --cmk " + aliCMK}},
		{&cloud.Error{CMK: aliCMK, Kind: cloud.BadCredential, Skew: time.Minute}, []string{"ALIBABA_CLOUD_ACCESS_KEY_ID", "[alibaba]"}},
		{&cloud.Error{CMK: aliCMK, Kind: cloud.BadCredential, Skew: -20 * time.Minute}, []string{"the clock of this machine"}},
		{&cloud.Error{CMK: huaweiCMK, Kind: cloud.KeyNotFound}, []string{"region, account or project, and ID"}},
	} {
		err := hinted(fmt.Errorf("open: %w", errors.Join(c.err, c.err)))
		if !errors.Is(err, c.err) || strings.Count(err.Error(), "hint: ") != 1 {
			t.Errorf("%v", err)
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q is not in %v", w, err)
			}
		}
	}
	for _, err := range []error{nil, errors.New("x"), &cloud.Error{CMK: aliCMK, Kind: cloud.KeyDisabled}, &cloud.Error{Kind: cloud.NoCredential}} {
		if got := hinted(err); got != err {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// TestLearn takes over what a volume knows of its CMKs, but not what would keep them from wrapping.
func TestLearn(t *testing.T) {
	s := newKeyrings(nil, config{})
	if got := s.info([]string{aliCMK}); got != nil {
		t.Errorf("nothing is known: %s", got)
	}
	s.known = map[string]*cloud.KeyInfo{
		aliCMK:    {Spec: "RSA_2048", State: cloud.StateEnabled, Version: "v", PublicKey: []byte("key")},
		huaweiCMK: {Spec: "RSA_2048"}, // without its key
		"foreign": {Spec: "SM4"},
	}
	info := s.info([]string{aliCMK, huaweiCMK, "local:x"})
	dir := t.TempDir()
	k, err := local.Generate(filepath.Join(dir, "cmk"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		info string
		want int
	}{{string(info), 1}, {"", 0}, {"{", 0}, {`{"a": null}`, 0}, {`[]`, 0}} {
		cipher := filepath.Join(t.TempDir(), "cipher")
		p := volume.Params{Algorithm: header.AES256GCM, SegmentSize: 4096, CMKInfo: func() []byte { return []byte(c.info) }}
		if _, err := volume.Create(t.Context(), cipher, p, k); err != nil {
			t.Fatal(err)
		}
		v, err := volume.Open(cipher)
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		if err := v.Unlock(t.Context(), k); err != nil {
			t.Fatal(err)
		}
		learned := newKeyrings(nil, config{})
		learned.learn(v)
		if len(learned.known) != c.want || c.want == 1 && string(learned.known[aliCMK].PublicKey) != "key" {
			t.Errorf("%q: %v", c.info, learned.known)
		}
	}
}
