package huaweikms

import (
	"encoding/base64"
	"encoding/binary"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/cloud/cloudtest"
)

func newManager(t *testing.T, url string) cloudtest.Manager { return newClient(t, url, nil) }

func TestData(t *testing.T) { cloudtest.RunData(t, testCMK, "plain_text", newKeyring) }

func TestSecrets(t *testing.T) {
	cmk := cloudtest.CMK(t, testCMK)
	// CSMS has no code of its own for a name that is taken.
	cloudtest.RunSecrets(t, testCMK, cloud.Secret{Region: cmk.Region, Account: cmk.Account}, cloud.Refused, newManager)
}

// TestDataPieces puts pieces of data together that do not belong together.
func TestDataPieces(t *testing.T) {
	kms := cloudtest.NewKMS(t, testCMK, "AES_256")
	k := newKeyring(t, kms.URL)
	cut := func(sealed []byte) (id, first, second []byte) {
		t.Helper()
		n := dataID + 2 + int(binary.BigEndian.Uint16(sealed[dataID:]))
		return sealed[:dataID], sealed[dataID:n], sealed[n:]
	}
	join := func(parts ...[]byte) (all []byte) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	var id, first, second [2][]byte
	for i := range 2 {
		sealed, err := k.EncryptData(t.Context(), make([]byte, keyring.MaxData), nil)
		if err != nil {
			t.Fatal(err)
		}
		id[i], first[i], second[i] = cut(sealed)
		if _, err := k.DecryptData(t.Context(), join(id[i], first[i], second[i]), nil); err != nil {
			t.Fatal(err)
		}
	}
	for name, sealed := range map[string][]byte{
		"of two messages": join(id[0], first[0], second[1]), "swapped": join(id[0], second[0], first[0]), "the first alone": join(id[0], first[0]),
		"the second alone": join(id[0], second[0]), "three": join(id[0], first[0], second[0], second[0]), "another ID": join(id[1], first[0], second[0]),
		"none": id[0], "nothing": nil, "a length": join(id[0], []byte{0, 0}), "half a length": join(id[0], first[0], second[0], []byte{0}),
	} {
		if _, err := k.DecryptData(t.Context(), sealed, nil); err == nil {
			t.Errorf("%s: opened", name)
		} else {
			cloudtest.MustHide(t, err.Error(), nil)
		}
	}
	if n := len(pieceAAD(string(make([]byte, 64)), id[0], 1, 2)); n > 128 {
		t.Errorf("%d characters of additional data", n)
	}
	if base64.StdEncoding.EncodedLen(pieceSize) > 4096 {
		t.Error("a piece is too long")
	}
}
