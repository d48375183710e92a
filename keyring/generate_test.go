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
type generator struct {
	*keyringtest.Fake
	made int
}

func (g *generator) GenerateDataKey(ctx context.Context, size int, ec keyring.EncryptionContext) (keyring.DataKey, []keyring.EncryptedDataKey, error) {
	g.made++
	dk := bytes.Repeat([]byte{7}, size)
	edks, err := g.EncryptDataKey(ctx, dk, ec)
	return dk, edks, err
}

func TestGenerateAsksOnlyTheFirst(t *testing.T) {
	a, b := &generator{Fake: keyringtest.NewFake("fake:a")}, &generator{Fake: keyringtest.NewFake("fake:b")}
	dk, edks, err := keyring.GenerateDataKey(t.Context(), keyring.Multi(a, b), 16, nil)
	if err != nil || len(edks) != 2 || len(dk) != 16 || dk[0] != 7 {
		t.Fatalf("%d bytes, %d EDKs, error %v", len(dk), len(edks), err)
	}
	if a.made != 1 || b.made != 0 || b.Encrypts() != 1 {
		t.Errorf("a made %d keys, b made %d and wrapped %d, want 1, 0, 1", a.made, b.made, b.Encrypts())
	}
}

func TestGenerateIsAllOrNothing(t *testing.T) {
	down := errors.New("down")
	for first := range 2 {
		fakes := []*keyringtest.Fake{keyringtest.NewFake("fake:a"), keyringtest.NewFake("fake:b")}
		fakes[first].Fail(down)
		dk, edks, err := keyring.GenerateDataKey(t.Context(), keyring.Multi(fakes[0], fakes[1]), 32, nil)
		if !errors.Is(err, down) || dk != nil || edks != nil {
			t.Errorf("keyring %d down: a key: %t, %d EDKs, error %v", first, dk != nil, len(edks), err)
		}
	}
}
