package cloudtest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"github.com/kmsfs/kmsfs/integration/emulator"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// RunData lets the CMK that make returns encrypt small data. plaintext is the field of an answer that has it.
func RunData(t *testing.T, uri, plaintext string, make func(t *testing.T, url string) *cloud.Keyring) {
	kms := NewKMS(t, uri, "SM4")
	k := make(t, kms.URL)
	ec := keyring.EncryptionContext{"app": "web"}
	var last []byte
	for _, size := range []int{1, 16, 3071, 3072, 3073, 4095, keyring.MaxData} {
		plain := random(size)
		sealed, err := k.EncryptData(t.Context(), plain, ec)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if got, err := k.DecryptData(t.Context(), sealed, ec); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: the same: %t, error %v", size, bytes.Equal(got, plain), err)
		}
		for _, other := range []keyring.EncryptionContext{nil, {"app": "mail"}} {
			_, err := k.DecryptData(t.Context(), sealed, other)
			mustBe(t, fmt.Sprintf("%d bytes, context %v", size, other), err, cloud.NotWrapped)
		}
		for i := 0; i < len(sealed); i += 1 + len(sealed)/16 {
			changed := bytes.Clone(sealed)
			changed[i] ^= 4
			if _, err := k.DecryptData(t.Context(), changed, ec); err == nil {
				t.Errorf("%d bytes: byte %d changed, and opened", size, i)
			}
			if _, err := k.DecryptData(t.Context(), sealed[:i], ec); err == nil {
				t.Errorf("%d bytes: cut to %d, and opened", size, i)
			}
		}
		last = sealed
	}

	dk, edks, err := k.GenerateDataKey(t.Context(), 32, ec)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.DecryptData(t.Context(), edks[0].Wrapped[2:], ec); err == nil {
		t.Errorf("a wrapped data key opens as data: the same: %t", bytes.Equal(got, dk))
	}

	for _, f := range []struct {
		fault   emulator.Fault
		encrypt cloud.Kind
		decrypt cloud.Kind
	}{
		{emulator.Fault{Kind: emulator.Empty}, cloud.BadAnswer, cloud.BadAnswer},
		{emulator.Fault{Kind: emulator.Redirect}, cloud.BadAnswer, cloud.BadAnswer},
		{emulator.Fault{Kind: emulator.DropField, Field: "KeyId"}, cloud.BadAnswer, cloud.BadAnswer},
		{emulator.Fault{Kind: emulator.Throttle}, cloud.Throttled, cloud.Throttled},
		{emulator.Fault{Kind: emulator.Status, Status: 503}, cloud.Unavailable, cloud.Unavailable},
		{emulator.Fault{Kind: emulator.Reset}, cloud.Unavailable, cloud.Unavailable},
	} {
		if f.fault.Field == "KeyId" && plaintext == "plain_text" {
			f.fault.Field = "key_id"
		}
		if err := kms.SetFaults(f.fault); err != nil {
			t.Fatal(err)
		}
		_, err := k.EncryptData(t.Context(), []byte("data"), ec)
		mustBe(t, string(f.fault.Kind), err, f.encrypt)
		_, err = k.DecryptData(t.Context(), last, ec)
		mustBe(t, string(f.fault.Kind), err, f.decrypt)
	}
	for _, f := range []emulator.Fault{{Kind: emulator.WrongKeyID}, {Kind: emulator.DropField, Field: plaintext}} {
		if err := kms.SetFaults(f); err != nil {
			t.Fatal(err)
		}
		if got, err := k.DecryptData(t.Context(), last, ec); err == nil || got != nil {
			t.Errorf("%s: believed, error %v", f.Kind, err)
		}
	}
	if err := errors.Join(kms.SetFaults(), kms.SetState(uri, emulator.Disabled)); err != nil {
		t.Fatal(err)
	}
	_, err = k.DecryptData(t.Context(), last, ec)
	mustBe(t, "disabled", err, cloud.KeyDisabled)
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// mustBe checks the kind of an error, and that it hides what it must.
func mustBe(t *testing.T, what string, err error, want cloud.Kind) {
	t.Helper()
	e := new(cloud.Error)
	if !errors.As(err, &e) || e.Kind != want || e.CMK == "" || e.Call == "" {
		t.Errorf("%s: %v, want kind %q", what, err, want)
		return
	}
	MustHide(t, fmt.Sprintf("%v %+v", err, e), nil)
}
