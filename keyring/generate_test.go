package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/keyringtest"
)

// generator is a fake whose KMS makes data keys; they are all the same.
type generator struct{ *keyringtest.Fake }

func (g generator) GenerateDataKey(ctx context.Context, size int, ec keyring.EncryptionContext) (keyring.DataKey, []keyring.EncryptedDataKey, error) {
	dk := bytes.Repeat([]byte{7}, size)
	edks, err := g.EncryptDataKey(ctx, dk, ec)
	return dk, edks, err
}

// TestGenerate has a KMS make the key if it can.
func TestGenerate(t *testing.T) {
	k := keyringtest.NewFake("fake:a")
	for _, made := range []bool{false, true} {
		var from keyring.Keyring = k
		if made {
			from = generator{k}
		}
		dk, edks, err := keyring.GenerateDataKey(t.Context(), from, 16, nil)
		if err != nil || len(edks) != 1 || len(dk) != 16 || made != bytes.Equal(dk, bytes.Repeat([]byte{7}, 16)) {
			t.Errorf("made by the KMS: %t: %d bytes, %d EDKs, error %v", made, len(dk), len(edks), err)
		}
	}
	down := errors.New("down")
	k.Fail(down)
	if dk, edks, err := keyring.GenerateDataKey(t.Context(), k, 32, nil); !errors.Is(err, down) || dk != nil || edks != nil {
		t.Errorf("down: a key: %t, %d EDKs, error %v", dk != nil, len(edks), err)
	}
}
