package keyringtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kmsfs/kmsfs/keyring"
)

// Bounds that docs/format.md section 4.1 sets to what a keyring returns; package header has them too, but imports keyring.
const (
	maxCMK     = 512
	maxWrapped = 4096
)

var demo = keyring.EncryptionContext{"project": "demo", "stage": "prüfung"}

// Run tests that the keyrings that make returns do what [keyring.Keyring] says. A keyring on several CMKs is
// tested as a whole and one EDK at a time. make may return the same keyring each time.
func Run(t *testing.T, make func(t *testing.T) keyring.Keyring) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, keyring.Keyring)
	}{
		{"RoundTrip", testRoundTrip},
		{"Generate", testGenerate},
		{"WrongContext", testWrongContext},
		{"BadContext", testBadContext},
		{"Damaged", testDamaged},
		{"DamagedThenSound", testDamagedThenSound},
		{"Foreign", testForeign},
		{"Done", testDone},
		{"Ownership", testOwnership},
		{"Concurrent", testConcurrent},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, make(t)) })
	}
}

func testRoundTrip(t *testing.T, k keyring.Keyring) {
	contexts := map[string]keyring.EncryptionContext{
		"nil": nil, "empty": {}, "one": {"k": ""}, "demo": demo, "awkward": {"a=b,c\"d\\": "line\nline\x00 &+~*/ü語"},
	}
	for _, size := range []int{16, 32} {
		keys := map[string]keyring.DataKey{
			"random": keyring.NewDataKey(size),
			"zeros":  make(keyring.DataKey, size),
			"ones":   bytes.Repeat([]byte{0xff}, size),
		}
		for what, dk := range keys {
			for name, ec := range contexts {
				t.Run(fmt.Sprintf("%d/%s/%s", size, what, name), func(t *testing.T) {
					edks := encrypt(t, k, dk, ec)
					mustDecrypt(t, k, edks, ec, dk)
					for _, e := range edks {
						mustDecrypt(t, k, []keyring.EncryptedDataKey{e}, ec, dk)
						if len(e.CMK) < 1 || len(e.CMK) > maxCMK || len(e.Wrapped) < 1 || len(e.Wrapped) > maxWrapped {
							t.Errorf("EDK of %q does not fit into a header: %d bytes of name, %d wrapped", e.CMK, len(e.CMK), len(e.Wrapped))
						}
						if bytes.Contains(e.Wrapped, dk) {
							t.Errorf("EDK of %q holds the plaintext key", e.CMK)
						}
					}
				})
			}
		}
	}
	mustDecrypt(t, k, encrypt(t, k, make(keyring.DataKey, 32), nil), keyring.EncryptionContext{}, make(keyring.DataKey, 32))
}

func testGenerate(t *testing.T, k keyring.Keyring) {
	seen := make(map[string]bool)
	for range 2 {
		for _, size := range []int{16, 32} {
			dk, edks, err := keyring.GenerateDataKey(t.Context(), k, size, demo)
			if err != nil || len(dk) != size || len(edks) == 0 {
				t.Fatalf("generate %d bytes: %d bytes, %d EDKs, error %v", size, len(dk), len(edks), err)
			}
			if seen[string(dk)] {
				t.Error("generated one key twice")
			}
			seen[string(dk)] = true
			for _, e := range edks {
				mustDecrypt(t, k, []keyring.EncryptedDataKey{e}, demo, dk)
				mustFail(t, k, e, nil, "context changed")
			}
		}
	}
	if dk, edks, err := keyring.GenerateDataKey(t.Context(), k, 32, keyring.EncryptionContext{"": "v"}); !errors.Is(err, keyring.ErrContext) || dk != nil || edks != nil {
		t.Errorf("generate under a bad context: %v, want ErrContext", err)
	}
}

func testWrongContext(t *testing.T, k keyring.Keyring) {
	edks := encrypt(t, k, keyring.NewDataKey(32), demo)
	for _, e := range edks {
		for _, ec := range []keyring.EncryptionContext{
			nil,
			{"project": "demo"},
			{"project": "demo", "stage": ""},
			{"project": "Demo", "stage": "prüfung"},
			{"project": "prüfung", "stage": "demo"},
			{"project": "demo", "stage": "prüfung", "x": ""},
		} {
			mustFail(t, k, e, ec, "context changed")
		}
	}
}

func testBadContext(t *testing.T, k keyring.Keyring) {
	edks := encrypt(t, k, keyring.NewDataKey(32), nil)
	for _, ec := range []keyring.EncryptionContext{{"": "v"}, {"\xff": "v"}, {"k": "\xff"}} {
		if _, err := k.EncryptDataKey(t.Context(), keyring.NewDataKey(32), ec); !errors.Is(err, keyring.ErrContext) {
			t.Errorf("encrypt under %q: %v, want ErrContext", ec, err)
		}
		if _, err := k.DecryptDataKey(t.Context(), edks, ec); !errors.Is(err, keyring.ErrContext) {
			t.Errorf("decrypt under %q: %v, want ErrContext", ec, err)
		}
	}
}

func testDamaged(t *testing.T, k keyring.Keyring) {
	for _, e := range encrypt(t, k, keyring.NewDataKey(32), demo) {
		for i := range e.Wrapped {
			bad := clone(e)
			bad.Wrapped[i] ^= 1 << (i % 8)
			mustFail(t, k, bad, demo, fmt.Sprintf("bit of byte %d flipped", i))
		}
		for _, n := range []int{0, 1, len(e.Wrapped) / 2, len(e.Wrapped) - 1} {
			bad := clone(e)
			bad.Wrapped = bad.Wrapped[:n]
			mustFail(t, k, bad, demo, fmt.Sprintf("cut to %d bytes", n))
		}
		bad := clone(e)
		bad.Wrapped = append(bad.Wrapped, 0)
		mustFail(t, k, bad, demo, "a byte appended")
	}
}

// testDamagedThenSound has an EDK that fails before one that does not.
func testDamagedThenSound(t *testing.T, k keyring.Keyring) {
	dk := keyring.NewDataKey(32)
	edks := encrypt(t, k, dk, demo)
	bad := clone(edks[0])
	bad.Wrapped[len(bad.Wrapped)-1] ^= 1
	mustDecrypt(t, k, append([]keyring.EncryptedDataKey{bad}, edks...), demo, dk)
}

func testForeign(t *testing.T, k keyring.Keyring) {
	dk := keyring.NewDataKey(32)
	own := encrypt(t, k, dk, demo)
	foreign := encrypt(t, NewFake("foreign:kms:nowhere:0:key/0"), dk, demo)
	relabelled := clone(own[0]) // an own wrapped key under a foreign name must not reach the CMK
	relabelled.CMK = foreign[0].CMK
	for name, edks := range map[string][]keyring.EncryptedDataKey{
		"none": nil, "foreign": foreign, "relabelled": {relabelled},
	} {
		if got, err := k.DecryptDataKey(t.Context(), edks, demo); !errors.Is(err, keyring.ErrNoMatch) || got != nil {
			t.Errorf("%s EDK: got a key: %t, error %v, want ErrNoMatch", name, got != nil, err)
		}
	}
	mustDecrypt(t, k, append(foreign, own...), demo, dk)

	claimed := clone(foreign[0])
	claimed.CMK = own[0].CMK
	mustFail(t, k, claimed, demo, "wrapped by a foreign CMK")
}

func testDone(t *testing.T, k keyring.Keyring) {
	edks := encrypt(t, k, keyring.NewDataKey(32), demo)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for _, ctx := range []context.Context{cancelled, late} {
		if got, err := k.EncryptDataKey(ctx, keyring.NewDataKey(32), demo); !errors.Is(err, ctx.Err()) || got != nil {
			t.Errorf("encrypt: %v, %v, want %v", got, err, ctx.Err())
		}
		if got, _, err := keyring.GenerateDataKey(ctx, k, 32, demo); !errors.Is(err, ctx.Err()) || got != nil {
			t.Errorf("generate: a key: %t, %v, want %v", got != nil, err, ctx.Err())
		}
		if got, err := k.DecryptDataKey(ctx, edks, demo); !errors.Is(err, ctx.Err()) || got != nil {
			t.Errorf("decrypt: %v, %v, want %v", got, err, ctx.Err())
		}
	}
}

// testOwnership checks that a keyring changes no argument, and that nobody else holds the keys that it returns.
func testOwnership(t *testing.T, k keyring.Keyring) {
	dk := keyring.NewDataKey(32)
	want := slices.Clone(dk)
	ec := keyring.EncryptionContext{"project": "demo"}
	edks := encrypt(t, k, dk, ec)
	if !bytes.Equal(dk, want) {
		t.Error("EncryptDataKey changed the data key")
	}
	dk.Wipe()
	var before []keyring.EncryptedDataKey
	for _, e := range edks {
		before = append(before, clone(e))
	}
	for range 2 {
		got, err := k.DecryptDataKey(t.Context(), edks, ec)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("decrypt: same key: %t, error %v", bytes.Equal(got, want), err)
		}
		got.Wipe()
	}
	same := func(a, b keyring.EncryptedDataKey) bool { return a.CMK == b.CMK && bytes.Equal(a.Wrapped, b.Wrapped) }
	if !slices.EqualFunc(edks, before, same) || !ec.Equal(keyring.EncryptionContext{"project": "demo"}) {
		t.Error("DecryptDataKey changed its arguments")
	}
}

func testConcurrent(t *testing.T, k keyring.Keyring) {
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			dk := keyring.NewDataKey(16 + 16*(i%2))
			ec := keyring.EncryptionContext{"goroutine": fmt.Sprint(i)}
			edks, err := k.EncryptDataKey(t.Context(), dk, ec)
			if err != nil {
				t.Errorf("encrypt: %v", err)
				return
			}
			for range 3 {
				if got, err := k.DecryptDataKey(t.Context(), edks, ec); err != nil || !bytes.Equal(got, dk) {
					t.Errorf("decrypt: same key: %t, error %v", bytes.Equal(got, dk), err)
				}
			}
		})
	}
	group.Wait()
}

func encrypt(t *testing.T, k keyring.Keyring, dk keyring.DataKey, ec keyring.EncryptionContext) []keyring.EncryptedDataKey {
	t.Helper()
	edks, err := k.EncryptDataKey(t.Context(), dk, ec)
	if err != nil {
		t.Fatalf("encrypt: %v", err)
	}
	if len(edks) == 0 {
		t.Fatal("encrypt: no EDKs and no error")
	}
	return edks
}

func mustDecrypt(t *testing.T, k keyring.Keyring, edks []keyring.EncryptedDataKey, ec keyring.EncryptionContext, want keyring.DataKey) {
	t.Helper()
	got, err := k.DecryptDataKey(t.Context(), edks, ec)
	if err != nil {
		t.Errorf("decrypt: %v", err)
	} else if !bytes.Equal(got, want) {
		t.Error("decrypt: another key")
	}
}

// mustFail checks that the CMK refuses one EDK.
func mustFail(t *testing.T, k keyring.Keyring, e keyring.EncryptedDataKey, ec keyring.EncryptionContext, what string) {
	t.Helper()
	got, err := k.DecryptDataKey(t.Context(), []keyring.EncryptedDataKey{e}, ec)
	if !errors.Is(err, keyring.ErrDenied) || errors.Is(err, keyring.ErrNoMatch) || got != nil {
		t.Errorf("%s: got a key: %t, error %v, want ErrDenied", what, got != nil, err)
	}
}

func clone(e keyring.EncryptedDataKey) keyring.EncryptedDataKey {
	return keyring.EncryptedDataKey{CMK: e.CMK, Wrapped: slices.Clone(e.Wrapped)}
}
