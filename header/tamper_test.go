package header

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

// remac returns h as the holder of dk could forge it: every field as it is, under a MAC that is right.
func remac(t *testing.T, h *Header, dk keyring.DataKey) *Header {
	t.Helper()
	signed, err := h.appendSigned(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _, macKey := h.secrets(dk)
	mac := hmac.New(sha256.New, macKey)
	mac.Write(signed)
	raw := make([]byte, h.Size)
	copy(raw, mac.Sum(signed))
	forged, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return forged
}

// TestTwoKeysForOneBody forges headers of which one check of Verify alone can tell that something is wrong.
func TestTwoKeysForOneBody(t *testing.T) {
	h, a, _ := example(t)
	b := keyring.DataKey(bytes.Repeat([]byte{0xb}, 32))
	other := *h
	if _, err := other.Seal(b); err != nil {
		t.Fatal(err)
	}
	if err := remac(t, h, a).Verify(a); err != nil {
		t.Fatalf("a header signed anew: %v", err)
	}

	commitment := *h
	commitment.commitment = other.commitment
	keyID := *h
	keyID.KeyID = other.KeyID
	both := other // sealed under B, but MACed under A
	for name, f := range map[string]Header{"commitment of B": commitment, "key ID of B": keyID, "all of B": both} {
		forged := remac(t, &f, a)
		for key, dk := range map[string]keyring.DataKey{"A": a, "B": b} {
			if err := forged.Verify(dk); !errors.Is(err, ErrAuth) {
				t.Errorf("%s, Verify under %s: %v, want ErrAuth", name, key, err)
			}
		}
	}
	mac := *h
	mac.mac = other.mac
	if err := mac.Verify(a); !errors.Is(err, ErrAuth) {
		t.Errorf("MAC of B: %v, want ErrAuth", err)
	}
	if err := h.Verify(b); !errors.Is(err, ErrAuth) {
		t.Errorf("Verify under B: %v, want ErrAuth", err)
	}
	if secret, err := h.Open(b); secret != nil || !errors.Is(err, ErrAuth) {
		t.Errorf("Open under B: a secret of %d bytes, %v, want ErrAuth", len(secret), err)
	}
	for _, dk := range []keyring.DataKey{nil, a[:16], append(slices.Clone(a), 0)} {
		if err := h.Verify(dk); !errors.Is(err, ErrAuth) {
			t.Errorf("data key of %d bytes: %v, want ErrAuth", len(dk), err)
		}
		if secret, err := h.Open(dk); secret != nil || !errors.Is(err, ErrAuth) {
			t.Errorf("Open under a data key of %d bytes: a secret of %d bytes, %v, want ErrAuth", len(dk), len(secret), err)
		}
	}
}

// TestFieldsEdited changes what a header says, in its one right spelling, without the data key.
func TestFieldsEdited(t *testing.T) {
	_, dk, raw := example(t)
	for name, edit := range map[string]func(*Header){
		"nothing":          func(*Header) {},
		"EDK dropped":      func(h *Header) { h.EDKs = h.EDKs[:1] },
		"EDK added":        func(h *Header) { h.EDKs = append(h.EDKs, keyring.EncryptedDataKey{CMK: "x", Wrapped: []byte{1}}) },
		"EDKs reordered":   func(h *Header) { slices.Reverse(h.EDKs) },
		"CMK renamed":      func(h *Header) { h.EDKs[0].CMK = "local:ffffffffffffffffffffffffffffffff" },
		"wrapped changed":  func(h *Header) { h.EDKs[1].Wrapped[0] ^= 1 },
		"wrapped swapped":  func(h *Header) { h.EDKs[0].Wrapped, h.EDKs[1].Wrapped = h.EDKs[1].Wrapped, h.EDKs[0].Wrapped },
		"context changed":  func(h *Header) { h.Context["zone"] = "b" },
		"context added to": func(h *Header) { h.Context["x"] = "" },
		"context dropped":  func(h *Header) { h.Context = nil },
		"file ID":          func(h *Header) { h.FileID[15] ^= 1 },
		"kind":             func(h *Header) { h.Kind = Volume },
		"segment size":     func(h *Header) { h.SegmentSize *= 2 },
		"header length":    func(h *Header) { h.Size += 512 },
	} {
		h, err := Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		edit(h)
		want := error(ErrAuth)
		if name == "nothing" {
			want = nil
		}
		if err := h.Verify(dk); !errors.Is(err, want) {
			t.Errorf("%s, changed after Parse: %v, want %v", name, err, want)
		}
		signed, err := h.appendSigned(nil)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, h.Size)
		copy(b, append(signed, h.mac[:]...))
		if h, err = Parse(b); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := h.Verify(dk); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

// TestListsRefused has encryption contexts and EDK lists as an attacker could spell them.
func TestListsRefused(t *testing.T) {
	const none = "\x00\x02\x00\x00" // no encryption context
	edk := func(cmk, wrapped string) string {
		return string(binary.BigEndian.AppendUint16(nil, uint16(len(cmk)))) + cmk +
			string(binary.BigEndian.AppendUint16(nil, uint16(len(wrapped)))) + wrapped
	}
	many := func(n int) string {
		list := string(rune(n))
		for i := range n {
			list += edk(fmt.Sprint(i), "w")
		}
		return list
	}
	for name, c := range map[string]struct {
		lists string
		ok    bool
	}{
		"one":               {none + many(1), true},
		"sixteen":           {none + many(16), true},
		"longest":           {none + "\x01" + edk(strings.Repeat("u", MaxCMK), strings.Repeat("w", MaxWrapped)), true},
		"sorted":            {"\x00\x0c\x00\x02\x00\x01a\x00\x00\x00\x01b\x00\x00" + many(1), true},
		"unsorted":          {"\x00\x0c\x00\x02\x00\x01b\x00\x00\x00\x01a\x00\x00" + many(1), false},
		"duplicated":        {"\x00\x0c\x00\x02\x00\x01a\x00\x00\x00\x01a\x00\x00" + many(1), false},
		"empty key":         {"\x00\x06\x00\x01\x00\x00\x00\x00" + many(1), false},
		"context too long":  {"\x40\x00\x00\x00" + many(1), false},
		"no EDK":            {none + "\x00", false},
		"seventeen":         {none + many(17), false},
		"255 EDKs":          {none + "\xff" + edk("a", "w"), false},
		"one announced":     {none + "\x01" + edk("a", "w") + edk("b", "w"), false},
		"two announced":     {none + "\x02" + edk("a", "w"), false},
		"no list":           {none, false},
		"nothing":           {"", false},
		"CMK twice":         {none + "\x02" + edk("a", "v") + edk("a", "w"), false},
		"CMK empty":         {none + "\x01" + edk("", "w"), false},
		"CMK too long":      {none + "\x01" + edk(strings.Repeat("u", MaxCMK+1), "w"), false},
		"CMK over the end":  {none + "\x01\xff\xffa", false},
		"wrapped empty":     {none + "\x01" + edk("a", ""), false},
		"wrapped too long":  {none + "\x01" + edk("a", strings.Repeat("w", MaxWrapped+1)), false},
		"wrapped over end":  {none + "\x01\x00\x01a\xff\xffw", false},
		"wrapped over MACs": {none + "\x01\x00\x01a\x00\x41w", false}, // 65 bytes, of which 64 are commitment and MAC
	} {
		h := &Header{Kind: File, Algorithm: AES256GCM, SegmentSize: 4096, Size: 7680,
			EDKs: []keyring.EncryptedDataKey{{CMK: "x", Wrapped: []byte{1}}}}
		raw, err := h.Seal(make(keyring.DataKey, 32))
		if err != nil {
			t.Fatal(err)
		}
		used := FixedSize + len(c.lists) + commitmentSize + macSize
		clear(raw[FixedSize:])
		copy(raw[FixedSize:], c.lists)
		binary.BigEndian.PutUint32(raw[20:], uint32(used))
		if _, err := Parse(raw); c.ok && err != nil || !c.ok && !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNoLargeAllocation parses headers whose lengths promise far more than there is.
func TestNoLargeAllocation(t *testing.T) {
	_, _, raw := example(t)
	for _, at := range []int{16, 20, 54, 55, 56, 57, 58, 59} {
		b := bytes.Clone(raw)
		binary.BigEndian.PutUint32(b[at:], math.MaxUint32)
		const runs = 100
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			Parse(b)
		}
		runtime.ReadMemStats(&after)
		if n := (after.TotalAlloc - before.TotalAlloc) / runs; n > 16<<10 {
			t.Errorf("ones at %d: Parse allocates %d bytes", at, n)
		}
	}
}

func TestSealRefuses(t *testing.T) {
	for name, edit := range map[string]func(*Header){
		"kind":              func(h *Header) { h.Kind = 0 },
		"algorithm":         func(h *Header) { h.Algorithm = 0 },
		"other algorithm":   func(h *Header) { h.Algorithm = AES128GCM }, // a 32-byte key
		"segments 0":        func(h *Header) { h.SegmentSize = 0 },
		"segments below":    func(h *Header) { h.SegmentSize = 2048 },
		"segments above":    func(h *Header) { h.SegmentSize = 1 << 17 },
		"segments odd":      func(h *Header) { h.SegmentSize = 4096 + 1024 },
		"segments below 0":  func(h *Header) { h.SegmentSize = math.MinInt },
		"plaintext names":   func(h *Header) { h.PlaintextNames = true },
		"length 0":          func(h *Header) { h.Size = 0 },
		"length below 0":    func(h *Header) { h.Size = -512 },
		"length odd":        func(h *Header) { h.Size = 1537 },
		"length too large":  func(h *Header) { h.Size = MaxSize + 512 },
		"length huge":       func(h *Header) { h.Size = math.MaxInt &^ 511 },
		"does not fit":      func(h *Header) { h.EDKs[0].Wrapped = make([]byte, 1536) },
		"no EDK":            func(h *Header) { h.EDKs = nil },
		"17 EDKs":           func(h *Header) { h.EDKs = distinct(17, 1) },
		"one CMK twice":     func(h *Header) { h.EDKs[1].CMK = h.EDKs[0].CMK },
		"CMK empty":         func(h *Header) { h.EDKs[0].CMK = "" },
		"CMK too long":      func(h *Header) { h.EDKs[0].CMK = strings.Repeat("u", MaxCMK+1) },
		"wrapped empty":     func(h *Header) { h.EDKs[0].Wrapped = nil },
		"wrapped too long":  func(h *Header) { h.Size, h.EDKs[0].Wrapped = MaxSize, make([]byte, MaxWrapped+1) },
		"context not valid": func(h *Header) { h.Context = keyring.EncryptionContext{"": ""} },
	} {
		h, dk, _ := example(t)
		edit(h)
		if b, err := h.Seal(dk); !errors.Is(err, ErrBounds) || b != nil {
			t.Errorf("%s: %d bytes, error %v, want ErrBounds", name, len(b), err)
		}
	}
	h, dk, _ := example(t)
	if _, err := h.Seal(dk[:16]); !errors.Is(err, ErrBounds) {
		t.Errorf("short data key: %v, want ErrBounds", err)
	}
}

// distinct returns n EDKs of size wrapped bytes.
func distinct(n, size int) []keyring.EncryptedDataKey {
	var edks []keyring.EncryptedDataKey
	for i := range n {
		edks = append(edks, keyring.EncryptedDataKey{CMK: fmt.Sprintf("%02d", i), Wrapped: make([]byte, size)})
	}
	return edks
}

// TestSealAgain re-encrypts: the same header under another data key is that key's alone.
func TestSealAgain(t *testing.T) {
	h, a, _ := example(t)
	b := keyring.NewDataKey(32)
	raw, err := h.Seal(b)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := parsed.Verify(b); err != nil {
		t.Errorf("Verify under the new key: %v", err)
	}
	if err := parsed.Verify(a); !errors.Is(err, ErrAuth) {
		t.Errorf("Verify under the old key: %v, want ErrAuth", err)
	}
}
