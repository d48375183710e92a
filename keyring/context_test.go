package keyring

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestEncryptionContext(t *testing.T) {
	for _, ec := range []EncryptionContext{nil, {"a": ""}, {"a": "1", "b": "2", "ab": "ü"}, {"k": strings.Repeat("v", 8192-2-4-1)}} {
		b, err := ec.AppendTo(nil)
		if err != nil {
			t.Fatal(err)
		}
		got, rest, err := ParseEncryptionContext(append(b, 9))
		if err != nil || !got.Equal(ec) || len(rest) != 1 {
			t.Errorf("%v: parsed %v, %d bytes left, %v", ec, got, len(rest), err)
		}
	}
	large := make(EncryptionContext)
	for i := range MaxContextEntries + 1 {
		large[fmt.Sprint(i)] = ""
	}
	for _, ec := range []EncryptionContext{{"": "x"}, {"a": "\xff"}, {"\xff": "a"}, {"k": strings.Repeat("v", 9000)}, {"k": strings.Repeat("v", 8192-2-4-1+1)},
		{strings.Repeat("k", 1<<16): ""}, {"k": strings.Repeat("v", 1<<16)}, large} {
		if _, err := ec.AppendTo(nil); !errors.Is(err, ErrContext) {
			t.Errorf("%.40v: %v", ec, err)
		}
	}
	tooMany := "\x01\x47\x00\x41" // 65 entries
	for i := range MaxContextEntries + 1 {
		tooMany += "\x00\x01" + string(rune(' '+i)) + "\x00\x00"
	}
	for _, b := range []string{
		"", "\x00", "\x00\x00", "\x00\x01\x00", "\xff\xff\x00\x00",
		"\x00\x03\x00\x00\x00",                                            // slack
		"\x00\x0c\x00\x02\x00\x01b\x00\x00\x00\x01a\x00\x00",              // not sorted
		"\x00\x0c\x00\x02\x00\x01a\x00\x00\x00\x01a\x00\x00",              // twice
		"\x00\x06\x00\x01\x00\x00\x00\x00",                                // empty key
		"\x00\x07\x00\x01\x00\x01\xff\x00\x00",                            // not UTF-8
		"\x00\x08\x00\x01\x00\x01a\x00\x01\xff",                           // not UTF-8
		"\x00\x07\x00\x02\x00\x01a\x00\x00",                               // an entry short
		"\x00\x07\x00\x00\x00\x01a\x00\x00",                               // an entry long
		"\x00\x07\x00\x01\x00\x01a\x00\x01" + "b",                         // a value over the end of the field
		"\x20\x01\x00\x01\x00\x01k\x1f\xfa" + strings.Repeat("v", 0x1ffa), // 8,193 bytes
		tooMany,
	} {
		if _, _, err := ParseEncryptionContext([]byte(b)); !errors.Is(err, ErrContext) {
			t.Errorf("%q: %v", b, err)
		}
	}
}

func TestContextDigest(t *testing.T) {
	for _, c := range []struct {
		ec   EncryptionContext
		want string // the encoding
	}{
		{nil, "\x00\x02\x00\x00"},
		{EncryptionContext{}, "\x00\x02\x00\x00"},
		{EncryptionContext{"project": "demo"}, "\x00\x11\x00\x01\x00\x07project\x00\x04demo"},
		{EncryptionContext{"b": "", "a": "1", "B": "2"}, "\x00\x13\x00\x03\x00\x01B\x00\x012\x00\x01a\x00\x011\x00\x01b\x00\x00"},
	} {
		b, err := c.ec.AppendTo([]byte("before"))
		if err != nil || string(b) != "before"+c.want {
			t.Errorf("%v: encoded as %q, error %v, want %q", c.ec, b, err, c.want)
		}
		got, err := c.ec.Digest()
		if err != nil || got != sha256.Sum256([]byte(c.want)) {
			t.Errorf("%v: digest %x, error %v", c.ec, got, err)
		}
	}
	if _, err := (EncryptionContext{"": ""}).Digest(); !errors.Is(err, ErrContext) {
		t.Errorf("digest of a bad context: %v, want ErrContext", err)
	}
}

func FuzzParseEncryptionContext(f *testing.F) {
	f.Add([]byte("\x00\x02\x00\x00"))
	f.Add([]byte("\x00\x13\x00\x03\x00\x01B\x00\x012\x00\x01a\x00\x011\x00\x01b\x00\x00rest"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ec, rest, err := ParseEncryptionContext(b)
		if err != nil {
			return
		}
		again, err := ec.AppendTo(nil)
		if err != nil {
			t.Fatalf("parsed, but cannot be encoded: %v", err)
		}
		if !bytes.Equal(append(again, rest...), b) {
			t.Fatal("a second spelling of a context")
		}
	})
}

func TestDataKeyHides(t *testing.T) {
	dk := DataKey("0123456789abcdef")
	for _, s := range []string{fmt.Sprint(dk), fmt.Sprintf("%v %s %x %q %#v", dk, dk, dk, dk, dk), dk.LogValue().String()} {
		if strings.Contains(s, "0123") || strings.Contains(s, "3031") || strings.Contains(s, "48") {
			t.Errorf("a data key prints as %q", s)
		}
	}
}
