package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/keyringtest"
)

func TestMultiConformance(t *testing.T) {
	keyringtest.Run(t, func(*testing.T) keyring.Keyring {
		inner := keyring.Multi(keyringtest.NewFake("fake:b"), keyringtest.NewFake("fake:c"))
		return keyring.Multi(keyringtest.NewFake("fake:a"), inner)
	})
}

func TestMultiEncryptsUnderAllOrNone(t *testing.T) {
	a, b, c := keyringtest.NewFake("fake:a"), keyringtest.NewFake("fake:b"), keyringtest.NewFake("fake:c")
	m := keyring.Multi(a, b, c)
	dk := keyring.NewDataKey(32)
	edks, err := m.EncryptDataKey(t.Context(), dk, nil)
	if err != nil || len(edks) != 3 {
		t.Fatalf("%d EDKs, error %v, want 3", len(edks), err)
	}
	for i, k := range []*keyringtest.Fake{a, b, c} {
		if edks[i].CMK != k.CMK() {
			t.Errorf("EDK %d is from %s, want %s", i, edks[i].CMK, k.CMK())
		}
		if got, err := k.DecryptDataKey(t.Context(), edks, nil); err != nil || !bytes.Equal(got, dk) {
			t.Errorf("%s alone: same key: %t, error %v", k.CMK(), bytes.Equal(got, dk), err)
		}
	}
	down := errors.New("down")
	for _, k := range []*keyringtest.Fake{a, b, c} {
		k.Fail(down)
		if edks, err := m.EncryptDataKey(t.Context(), dk, nil); !errors.Is(err, down) || edks != nil {
			t.Errorf("with %s down: %d EDKs, error %v, want none and its error", k.CMK(), len(edks), err)
		}
		k.Fail(nil)
	}
}

func TestMultiDecrypts(t *testing.T) {
	var (
		downA = errors.New("a is down")
		downB = errors.New("b is down")
	)
	for name, c := range map[string]struct {
		failA, failB error
		edks         []int // of a (0), b (1) and a stranger (2)
		want         []error
		not          error
		callsA       int
		callsB       int
	}{
		"first":           {edks: []int{0, 1}, callsA: 1},
		"own order":       {edks: []int{1, 0}, callsA: 1},
		"only second":     {edks: []int{1}, callsB: 1},
		"fails over":      {failA: downA, edks: []int{0, 1}, callsA: 1, callsB: 1},
		"past strangers":  {failA: downA, edks: []int{2, 0, 1}, callsA: 1, callsB: 1},
		"all fail":        {failA: downA, failB: downB, edks: []int{0, 1}, want: []error{downA, downB}, not: keyring.ErrNoMatch, callsA: 1, callsB: 1},
		"one fails":       {failA: downA, edks: []int{0, 2}, want: []error{downA}, not: keyring.ErrNoMatch, callsA: 1},
		"second fails":    {failB: downB, edks: []int{1, 2}, want: []error{downB}, not: keyring.ErrNoMatch, callsB: 1},
		"only a stranger": {edks: []int{2}, want: []error{keyring.ErrNoMatch}},
		"nothing":         {want: []error{keyring.ErrNoMatch}},
	} {
		a, b := keyringtest.NewFake("fake:a"), keyringtest.NewFake("fake:b")
		dk := keyring.NewDataKey(16)
		all, err := keyring.Multi(a, b, keyringtest.NewFake("fake:stranger")).EncryptDataKey(t.Context(), dk, nil)
		if err != nil {
			t.Fatal(err)
		}
		var edks []keyring.EncryptedDataKey
		for _, i := range c.edks {
			edks = append(edks, all[i])
		}
		a.Fail(c.failA)
		b.Fail(c.failB)
		got, err := keyring.Multi(a, b).DecryptDataKey(t.Context(), edks, nil)
		if len(c.want) == 0 && (err != nil || !bytes.Equal(got, dk)) || len(c.want) > 0 && got != nil {
			t.Errorf("%s: same key: %t, error %v", name, bytes.Equal(got, dk), err)
		}
		for _, want := range c.want {
			if !errors.Is(err, want) {
				t.Errorf("%s: error %v does not wrap %v", name, err, want)
			}
		}
		if c.not != nil && errors.Is(err, c.not) {
			t.Errorf("%s: error %v wraps %v", name, err, c.not)
		}
		if a.Decrypts() != c.callsA || b.Decrypts() != c.callsB {
			t.Errorf("%s: %d and %d calls, want %d and %d", name, a.Decrypts(), b.Decrypts(), c.callsA, c.callsB)
		}
	}
}

// TestMultiStopsWhenDone cancels between two keyrings: the second is not asked, and the first one's error is not lost.
func TestMultiStopsWhenDone(t *testing.T) {
	a, b := keyringtest.NewFake("fake:a"), keyringtest.NewFake("fake:b")
	edks, err := keyring.Multi(a, b).EncryptDataKey(t.Context(), keyring.NewDataKey(32), nil)
	if err != nil {
		t.Fatal(err)
	}
	down := errors.New("down")
	a.Fail(down)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err = keyring.Multi(cancelling{a, cancel}, b).DecryptDataKey(ctx, edks, nil)
	if !errors.Is(err, context.Canceled) || !errors.Is(err, down) || b.Decrypts() != 0 {
		t.Errorf("error %v after %d calls, want both errors and none", err, b.Decrypts())
	}
}

// cancelling is a keyring during whose calls the context is cancelled.
type cancelling struct {
	keyring.Keyring
	cancel context.CancelFunc
}

func (c cancelling) DecryptDataKey(ctx context.Context, edks []keyring.EncryptedDataKey, ec keyring.EncryptionContext) (keyring.DataKey, error) {
	defer c.cancel()
	return c.Keyring.DecryptDataKey(ctx, edks, ec)
}
