package keyring

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestEncryptionContext(t *testing.T) {
	for _, ec := range []EncryptionContext{nil, {"a": ""}, {"a": "1", "b": "2", "ab": "ü"}, {"k": strings.Repeat("v", 8000)}} {
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
	for _, ec := range []EncryptionContext{{"": "x"}, {"a": "\xff"}, {"k": strings.Repeat("v", 9000)}, large} {
		if _, err := ec.AppendTo(nil); !errors.Is(err, ErrContext) {
			t.Errorf("%.40v: %v", ec, err)
		}
	}
	for _, b := range []string{
		"", "\x00", "\x00\x00", "\x00\x01\x00", "\xff\xff\x00\x00",
		"\x00\x03\x00\x00\x00",                               // slack
		"\x00\x0c\x00\x02\x00\x01b\x00\x00\x00\x01a\x00\x00", // not sorted
		"\x00\x0c\x00\x02\x00\x01a\x00\x00\x00\x01a\x00\x00", // twice
		"\x00\x06\x00\x01\x00\x00\x00\x00",                   // empty key
		"\x00\x07\x00\x01\x00\x01\xff\x00\x00",               // not UTF-8
	} {
		if _, _, err := ParseEncryptionContext([]byte(b)); !errors.Is(err, ErrContext) {
			t.Errorf("%q: %v", b, err)
		}
	}
}

func TestDataKeyHides(t *testing.T) {
	dk := DataKey("0123456789abcdef")
	for _, s := range []string{fmt.Sprint(dk), fmt.Sprintf("%v %s %x %q %#v", dk, dk, dk, dk, dk), dk.LogValue().String()} {
		if strings.Contains(s, "0123") || strings.Contains(s, "3031") || strings.Contains(s, "48") {
			t.Errorf("a data key prints as %q", s)
		}
	}
}
