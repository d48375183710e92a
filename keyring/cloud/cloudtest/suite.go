package cloudtest

import (
	"errors"
	"testing"

	"github.com/kmsfs/kmsfs/integration/emulator"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// A Lie is an answer that a keyring must not believe.
type Lie struct {
	Name      string
	Spec      string // of the CMK
	Operation string
	Field     string // of the answer; empty replaces nothing
	Value     any    // nil drops the field
	Want      cloud.Kind
}

// RunLies tells each lie to a keyring that wraps, unwraps and generates.
func RunLies(t *testing.T, uri string, lies []Lie, make func(t *testing.T, url string) keyring.Keyring) {
	if len(lies) == 0 {
		t.Fatal("no lies")
	}
	for _, l := range lies {
		t.Run(l.Name, func(t *testing.T) {
			kms := NewKMS(t, uri, l.Spec)
			k := make(t, kms.URL)
			kms.Lie(l.Operation, func(answer map[string]any) {
				if l.Value == nil {
					delete(answer, l.Field)
					return
				}
				answer[l.Field] = l.Value
			})
			dk := keyring.NewDataKey(32)
			edks, err := k.EncryptDataKey(t.Context(), dk, nil)
			if err == nil {
				_, err = k.DecryptDataKey(t.Context(), edks, nil)
			}
			if err == nil {
				_, _, err = keyring.GenerateDataKey(t.Context(), k, 32, nil)
			}
			if e := new(cloud.Error); !errors.As(err, &e) || e.Kind != l.Want {
				t.Errorf("%v, want kind %q", err, l.Want)
			} else {
				MustHide(t, err.Error(), dk)
			}
		})
	}
}

// RunStates walks the states of a CMK.
func RunStates(t *testing.T, uri string, make func(t *testing.T, url string) *cloud.Keyring) {
	for _, spec := range []string{"AES_256", "RSA_2048"} {
		kms := NewKMS(t, uri, spec)
		k := make(t, kms.URL)
		edks, err := k.EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			state emulator.State
			want  cloud.Kind
			says  string
		}{
			{emulator.Disabled, cloud.KeyDisabled, cloud.StateDisabled},
			{emulator.PendingDeletion, cloud.PendingDeletion, cloud.StatePendingDeletion},
			{emulator.PendingImport, cloud.KeyDisabled, cloud.StatePendingImport},
			{emulator.Denied, cloud.NoPermission, ""},
			{emulator.Deleted, cloud.KeyNotFound, ""},
		} {
			if err := kms.SetState(uri, c.state); err != nil {
				t.Fatal(err)
			}
			_, err := k.DecryptDataKey(t.Context(), edks, nil)
			// One who asks for the first time must not wrap with what a public key alone permits.
			_, errWrap := make(t, kms.URL).EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil)
			for _, err := range []error{err, errWrap} {
				if e := new(cloud.Error); !errors.As(err, &e) || e.Kind != c.want || !errors.Is(err, keyring.ErrDenied) || e.Temporary() {
					t.Errorf("%s, %s: %v, want kind %q", spec, c.state, err, c.want)
				}
			}
			info, _, err := k.Describe(t.Context())
			switch {
			case c.says == "" && !errors.Is(err, keyring.ErrDenied):
				t.Errorf("%s, %s: described as %+v, error %v, want ErrDenied", spec, c.state, info, err)
			case c.says != "" && (err != nil || info.State != c.says || (info.Deletion != "") != (c.state == emulator.PendingDeletion)):
				t.Errorf("%s, %s: described as %+v, error %v", spec, c.state, info, err)
			}
		}
		if err := kms.SetState(uri, emulator.Enabled); err != nil {
			t.Fatal(err)
		}
		if _, err := k.DecryptDataKey(t.Context(), edks, nil); err != nil {
			t.Errorf("%s, enabled again: %v", spec, err)
		}
	}
}

// RunCheck checks a CMK in several states, and in a region that ignores contexts.
func RunCheck(t *testing.T, uri string, make func(t *testing.T, url string) *cloud.Keyring) {
	kms := NewKMS(t, uri, "AES_256")
	for _, c := range []struct {
		state emulator.State
		fault []emulator.Fault
		want  cloud.Report
	}{
		{emulator.Enabled, nil, cloud.Report{State: cloud.StateEnabled, Wraps: true, Unwraps: true, BindsContext: true}},
		{emulator.PendingDeletion, nil, cloud.Report{State: cloud.StatePendingDeletion}},
		{emulator.Denied, nil, cloud.Report{}},
		{emulator.Enabled, []emulator.Fault{{Kind: emulator.WrongPlaintext}}, cloud.Report{State: cloud.StateEnabled, Wraps: true}},
		{emulator.Enabled, []emulator.Fault{{Kind: emulator.Redirect}}, cloud.Report{}},
	} {
		if err := errors.Join(kms.SetState(uri, c.state), kms.SetFaults(c.fault...)); err != nil {
			t.Fatal(err)
		}
		got := cloud.Check(t.Context(), make(t, kms.URL))
		if got.State != c.want.State || got.Wraps != c.want.Wraps || got.Unwraps != c.want.Unwraps || got.BindsContext != c.want.BindsContext ||
			got.CMK != uri || (len(got.Errors) == 0) != got.OK() || got.OK() && got.Latency <= 0 {
			t.Errorf("%s, %v: %+v, want %+v", c.state, c.fault, got, c.want)
		}
	}
	ignores := newKMS(t, uri, "AES_256", emulator.ContextIgnored)
	if got := cloud.Check(t.Context(), make(t, ignores.URL)); !got.OK() || got.BindsContext || len(got.Errors) != 1 {
		t.Errorf("context ignored: %+v", got)
	}
}
