package main

import (
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/keyring/alikms"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/huaweikms"
)

// TestCostPerFile says what files with data keys of their own cost; the caps that it names are those of the clients.
func TestCostPerFile(t *testing.T) {
	for scheme, rate := range map[string]int{cloud.Alibaba: alikms.DefaultRate, cloud.Huawei: huaweikms.DefaultRate} {
		if got := providerOf(scheme).rate; got != rate {
			t.Errorf("%s: %d calls a second, want %d", scheme, got, rate)
		}
	}
	ali, huawei, rsa := "acs:kms:r:1:key/a", "huawei:kms:r:p:key/b", "huawei:kms:r:p:key/c"
	s := &keyrings{opened: map[string]*cloud.Keyring{
		ali: cloud.NewKeyring(nil, cloud.CMK{}, nil), huawei: cloud.NewKeyring(nil, cloud.CMK{}, nil), rsa: cloud.NewKeyring(nil, cloud.CMK{}, &cloud.KeyInfo{Spec: "RSA_2048"}),
	}}
	for _, tt := range []struct {
		cmks []string
		says []string
	}{
		{[]string{"local:/a", "local:/b"}, []string{"no calls"}},
		{[]string{ali, huawei, rsa}, []string{"1 data-key calls and 1 wraps", "1 unwraps", "200 calls a second go to alibaba, so at most 200 such", "10 calls a second go to huawei, so at most 10 such"}},
		{[]string{rsa, huawei, "local:/a"}, []string{"0 data-key calls and 1 wraps", "1 unwraps", "10 such"}},
		{[]string{"local:/a", ali}, []string{"0 data-key calls and 1 wraps", "0 unwraps"}},
	} {
		got := s.costPerFile(tt.cmks)
		for _, w := range tt.says {
			if !strings.Contains(got, w) {
				t.Errorf("%v: %q does not say %q", tt.cmks, got, w)
			}
		}
	}
}
