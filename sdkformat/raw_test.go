package sdkformat

import (
	"bytes"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

// TestRawKeys unwraps with the master keys of the vectors of raw keyrings, and with no other.
func TestRawKeys(t *testing.T) {
	keys := make(map[string]*RawKey)
	messages := make(map[string]vector)
	for _, v := range vectors(t) {
		if !strings.HasPrefix(v.Keyring, "raw") {
			continue
		}
		text := []byte(v.RawMasterKey + "\n")
		if v.RawPrivateKey != "" {
			der, err := hex.DecodeString(v.RawPrivateKey)
			if err != nil {
				t.Fatal(err)
			}
			text = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		}
		k, err := ParseRawKey(text)
		if err != nil {
			t.Fatal(v.ID, err)
		}
		if s := fmt.Sprintf("%v %s %+v", k, k, k); strings.Contains(s, "{") {
			t.Errorf("prints as %s", s)
		}
		keys[v.ID], messages[v.ID] = k, v
	}
	if len(keys) < 8 {
		t.Fatalf("only %d vectors", len(keys))
	}
	for id, v := range messages {
		m, err := Parse(v.format, v.message)
		if err != nil {
			t.Fatal(err)
		}
		for other, k := range keys {
			dk, err := k.Unwrap(m)
			switch {
			case other == id && (err != nil || !bytes.Equal(dk, v.dk)):
				t.Errorf("%s: %v", id, err)
			case other != id && m.Authenticated() && !errors.Is(err, keyring.ErrNoMatch):
				t.Errorf("%s with the key of %s: %v", id, other, err)
			}
		}
	}
	for _, text := range []string{"", "00", strings.Repeat("0", 48), strings.Repeat("x", 64), "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"} {
		if _, err := ParseRawKey([]byte(text)); !errors.Is(err, ErrRawKey) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
