package main

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kmsfs/kmsfs/keyring/creds"
	"github.com/kmsfs/kmsfs/secrets"
)

// TestEachText finds every text of a configuration, those of settings that are still to come included.
func TestEachText(t *testing.T) {
	conf := config{
		CMK: []string{"a", "b"}, Endpoint: []string{"c"}, Log: "d", Context: map[string]string{"k": "e"}, SegmentSize: 4096,
		Alibaba: cloudSettings{Role: "f"}, Huawei: cloudSettings{SecretKey: "g"}, Secrets: secretSettings{Interval: "h"}, revealed: map[string]string{"x": "y"},
	}
	got := make(map[string]string)
	err := eachText(reflect.ValueOf(&conf).Elem(), "", func(setting, text string) (string, error) {
		if text != "" {
			got[setting] = text
		}
		return strings.ToUpper(text), nil
	})
	want := map[string]string{"cmk[0]": "a", "cmk[1]": "b", "endpoint[0]": "c", "log": "d", "context.k": "e", "alibaba.role": "f", "huawei.secret-key": "g", "secrets.interval": "h"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if conf.CMK[1] != "B" || conf.Context["k"] != "E" || conf.Huawei.SecretKey != "G" || conf.revealed["x"] != "y" {
		t.Errorf("%+v", conf)
	}
}

// TestRotatedKey renews an access key that a KMS has refused: once, and not if the secret still holds it.
func TestRotatedKey(t *testing.T) {
	now := creds.Credential{ID: "old", Secret: "s"}
	fetched := 0
	p := polledCredentials{secrets.NewPoller(t.Context(), func(context.Context) (creds.Credential, error) {
		fetched++
		return now, nil
	}, time.Hour, func(err error) { t.Error(err) })}
	old, err := p.Get(t.Context())
	if err != nil || old != now {
		t.Fatalf("%v, %v", old.ID, err)
	}
	if _, err := p.Renew(t.Context(), old); err == nil {
		t.Errorf("the same again: %v", err)
	}
	now = creds.Credential{ID: "new", Secret: "t"}
	for range 2 { // the second one finds that it was renewed
		if c, err := p.Renew(t.Context(), old); err != nil || c != now {
			t.Errorf("renewed: %v, %v", c.ID, err)
		}
	}
	if fetched != 3 {
		t.Errorf("%d fetches, want 3", fetched)
	}
}

func TestHide(t *testing.T) {
	conf := config{revealed: map[string]string{"canary": "csms://x"}}
	err := conf.hide(usagef("bad %q", "canary"))
	if exitCode(err) != exitUsage || err.Error() != `bad "csms://x"` {
		t.Errorf("%v", err)
	}
	plain := errors.New("other")
	// One value may be a part of another.
	conf.revealed = map[string]string{"canary": "csms://x", "canary birds": "csms://y", "birds": "csms://z"}
	for range 20 { // the order of a map is any
		if err := conf.hide(usagef("bad %q", "canary birds")); err.Error() != `bad "csms://y"` {
			t.Fatal(err)
		}
	}
	if conf.hide(nil) != nil || (config{}).hide(plain) != plain {
		t.Error("what needs no hiding was changed")
	}
}
