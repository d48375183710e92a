package header

import (
	"bytes"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

// TestLasting flips every bit of a header: what is lasting changes with every one of them, but for those of EDKs, used length and MAC.
func TestLasting(t *testing.T) {
	h, dk, raw := example(t)
	want, err := h.AppendLasting(nil)
	if err != nil {
		t.Fatal(err)
	}
	used, err := h.Used()
	if err != nil {
		t.Fatal(err)
	}
	fixed, err := h.appendFixed(nil)
	if err != nil {
		t.Fatal(err)
	}
	parsed := 0
	for i := range raw[:used] {
		for bit := range 8 {
			raw[i] ^= 1 << bit
			if got, err := Parse(raw); err == nil {
				parsed++
				lasting, err := got.AppendLasting(nil)
				changing := i >= len(fixed) && i < used-commitmentSize-macSize || i >= used-macSize
				if err != nil || bytes.Equal(lasting, want) != changing {
					t.Errorf("bit %d of byte %d: same %v, %v", bit, i, bytes.Equal(lasting, want), err)
				}
			}
			raw[i] ^= 1 << bit
		}
	}
	if parsed < 8*(commitmentSize+macSize+2*len(ID{})) {
		t.Errorf("only %d of the changed headers parse", parsed)
	}
	h.EDKs = []keyring.EncryptedDataKey{{CMK: "local:other", Wrapped: []byte{9}}}
	if _, err := h.Seal(dk); err != nil {
		t.Fatal(err)
	}
	if got, err := h.AppendLasting(nil); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a rewrap changes what is lasting: %v", err)
	}
}
