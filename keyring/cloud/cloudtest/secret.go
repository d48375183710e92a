package cloudtest

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/integration/emulator"
	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// A Manager is a client of a secret manager.
type Manager interface {
	GetSecret(ctx context.Context, s cloud.Secret) ([]byte, error)
	CreateSecret(ctx context.Context, s cloud.Secret, n cloud.NewSecret) error
}

// RunSecrets creates and reads secrets where s is with the client that make returns. s has no name yet, and exists is what creating one twice fails with.
func RunSecrets(t *testing.T, uri string, s cloud.Secret, exists cloud.Kind, make func(t *testing.T, url string) Manager) {
	kms := NewKMS(t, uri, "AES_256")
	m := make(t, kms.URL)
	cmk := CMK(t, uri)
	provider := emulator.Alibaba
	if cmk.Provider == cloud.Huawei {
		provider = emulator.Huawei
	}
	named := func(name, version string) cloud.Secret {
		s := s
		s.Name, s.Version, s.URI = name, version, "secret "+name
		return s
	}
	for name, value := range map[string][]byte{
		"text": []byte("a secret, <&> ü\n"), "binary": {0xff, 0, 1}, "one": {'x'}, "long": bytes.Repeat([]byte("x"), 30<<10), "long-binary": bytes.Repeat([]byte{0xff}, 30<<10),
	} {
		if err := m.CreateSecret(t.Context(), named(name, ""), cloud.NewSecret{Value: value, KeyID: cmk.KeyID}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, version := range []string{"", "v1"} {
			if got, err := m.GetSecret(t.Context(), named(name, version)); err != nil || !bytes.Equal(got, value) {
				t.Errorf("%s@%s: the same: %t, error %v", name, version, bytes.Equal(got, value), err)
			}
		}
		mustBe(t, name+" again", m.CreateSecret(t.Context(), named(name, ""), cloud.NewSecret{Value: value}), exists)
	}
	// Versions.
	const first, second = "the first version", "the second version"
	kms.PutSecret(provider, s.Region, s.Account, "db", []byte(first))
	kms.PutSecret(provider, s.Region, s.Account, "db", []byte(second))
	for version, want := range map[string]string{"": second, "v1": first, "v2": second} {
		if got, err := m.GetSecret(t.Context(), named("db", version)); err != nil || string(got) != want {
			t.Errorf("db@%s: %q, %v", version, got, err)
		}
	}
	_, err := m.GetSecret(t.Context(), named("db", "v3"))
	mustBe(t, "no such version", err, cloud.SecretNotFound)
	_, err = m.GetSecret(t.Context(), named("none", ""))
	mustBe(t, "no such secret", err, cloud.SecretNotFound)
	// States.
	for state, want := range map[emulator.State]cloud.Kind{
		emulator.Disabled: cloud.SecretDisabled, emulator.PendingDeletion: cloud.SecretDisabled, emulator.Deleted: cloud.SecretNotFound, emulator.Denied: cloud.NoPermission,
	} {
		if err := kms.SetSecretState(provider, s.Region, s.Account, "db", state); err != nil {
			t.Fatal(err)
		}
		_, err := m.GetSecret(t.Context(), named("db", ""))
		mustBe(t, string(state), err, want)
	}
	if err := kms.SetSecretState(provider, s.Region, s.Account, "db", emulator.Enabled); err != nil {
		t.Fatal(err)
	}
	// Faults, and answers that must not be believed.
	for _, f := range []struct {
		fault emulator.Fault
		want  cloud.Kind
	}{
		{emulator.Fault{Kind: emulator.Empty}, cloud.BadAnswer},
		{emulator.Fault{Kind: emulator.Redirect}, cloud.BadAnswer},
		{emulator.Fault{Kind: emulator.Truncate}, cloud.Unavailable},
		{emulator.Fault{Kind: emulator.Reset}, cloud.Unavailable},
		{emulator.Fault{Kind: emulator.Throttle}, cloud.Throttled},
		{emulator.Fault{Kind: emulator.Status, Status: 502, Body: "<html>"}, cloud.Unavailable},
		{emulator.Fault{Kind: emulator.Status, Status: 404, Body: "<html>"}, cloud.SecretNotFound},
		{emulator.Fault{Kind: emulator.Status, Status: 403, Body: "<html>"}, cloud.NoPermission},
		{emulator.Fault{Kind: emulator.Status, Status: 400, Code: "Never.Heard", Message: second}, cloud.Refused},
		{emulator.Fault{Kind: emulator.WrongKeyID}, cloud.BadAnswer},
		{emulator.Fault{Kind: emulator.DropField, Field: "SecretData"}, cloud.BadAnswer},
		{emulator.Fault{Kind: emulator.DropField, Field: "SecretDataType"}, cloud.BadAnswer},
		{emulator.Fault{Kind: emulator.DropField, Field: "version"}, cloud.BadAnswer},
	} {
		if (f.fault.Field == "version") != (provider == emulator.Huawei) && f.fault.Field != "" {
			continue
		}
		if err := kms.SetFaults(f.fault); err != nil {
			t.Fatal(err)
		}
		got, err := m.GetSecret(t.Context(), named("db", ""))
		mustBe(t, string(f.fault.Kind)+" "+f.fault.Field, err, f.want)
		if len(got) > 0 && strings.Contains(string(got), second) || err != nil && strings.Contains(err.Error(), second) {
			t.Errorf("%s: a value, or an error with it: %v", f.fault.Kind, err)
		}
	}
	for _, f := range []emulator.Fault{{Kind: emulator.Empty}, {Kind: emulator.WrongKeyID}} {
		if err := kms.SetFaults(f); err != nil {
			t.Fatal(err)
		}
		mustBe(t, "create: "+string(f.Kind), m.CreateSecret(t.Context(), named("new-"+string(f.Kind), ""), cloud.NewSecret{Value: []byte("x")}), cloud.BadAnswer)
	}
	// Nothing of a secret, and no key of the account, is in a URL.
	for _, r := range kms.Requests() {
		if strings.Contains(r.URL, "SecretData") || strings.Contains(r.URL, Credential.ID) || strings.Contains(r.URL, "version%20") || strings.Contains(r.URL, "SecretName") {
			t.Errorf("URL %s", r.URL)
		}
	}
}
