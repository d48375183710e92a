package sdkformat

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

// TestOrder reads messages whose wrapped keys and pairs are in another order than this package writes: the tags do not depend on it at Alibaba Cloud,
// and are over what is there at Huawei Cloud.
func TestOrder(t *testing.T) {
	for _, f := range Formats() {
		ec := keyring.EncryptionContext{"b": "1", "a": "2", "c": "0", "路径": "/数据", "🔑": "😀"}
		dk := keyring.NewDataKey(32)
		m, err := New(f, AES256GCM, ec, edks(), dk)
		if err != nil {
			t.Fatal(err)
		}
		slices.Reverse(m.Keys)
		if f == Alibaba { // a SET; elsewhere the pairs are the AAD
			var pairs []string
			for i := len(m.pairs) - 2; i >= 0; i -= 2 {
				pairs = append(pairs, m.pairs[i], m.pairs[i+1])
			}
			m.pairs = pairs
		}
		if !f.OfAlibaba() { // a map's order: two values are the same
			m.ctx = []byte("\x00\x03\x00\x01x\x00\x01v\x00\x01y\x00\x01v\x00\x01a\x00\x01w")
			ec = keyring.EncryptionContext{"x": "v", "y": "v", "a": "w"}
			m.headerTag = m.authenticate(dk)
		}
		var out bytes.Buffer
		if err := m.Seal(&out, bytes.NewReader(plaintext(1024)), 1024, dk, nil); err != nil {
			t.Fatal(err)
		}
		got, err := Detect(out.Bytes(), int64(out.Len()))
		if err != nil || got.Format != f || !got.Context.Equal(ec) || len(got.Keys) != 3 {
			t.Fatalf("%v: detected %v, %v", f, got, err)
		}
		if plain, err := open(f, out.Bytes(), dk); err != nil || !bytes.Equal(plain, plaintext(1024)) {
			t.Errorf("%v: opened to %d bytes, %v", f, len(plain), err)
		}
	}
}

// TestBounds refuses, whole and before anything is allocated for it, what none of the SDKs writes.
func TestBounds(t *testing.T) {
	many := func(n int) (keys []keyring.EncryptedDataKey) {
		for i := range n {
			keys = append(keys, keyring.EncryptedDataKey{CMK: fmt.Sprintf("acs:kms:r:1:key/%03d", i), Wrapped: []byte("w")})
		}
		return keys
	}
	for _, f := range Formats() {
		dk := keyring.NewDataKey(16)
		m, err := New(f, SM4128GCM, nil, many(127), dk)
		if err != nil {
			t.Fatalf("%v: 127 wrapped keys: %v", f, err)
		}
		prefix, err := m.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Parse(f, prefix); err != nil || len(got.Keys) != 127 || got.Verify(dk) != nil {
			t.Errorf("%v: 127 wrapped keys were read as %v, %v", f, got, err)
		}
		for _, n := range []int{0, 128, 256, 300} {
			if _, err := New(f, SM4128GCM, nil, many(n), dk); !errors.Is(err, ErrBounds) {
				t.Errorf("%v: %d wrapped keys: %v", f, n, err)
			}
			m.Keys = nil
			for _, k := range many(n) {
				m.Keys = append(m.Keys, Key{CMK: k.CMK, Wrapped: k.Wrapped, provider: providerKMS, info: []byte{infoUnnamed}})
			}
			if prefix, err = m.Append(nil); err != nil {
				t.Fatal(err)
			}
			if _, err := Parse(f, prefix); !errors.Is(err, ErrFormat) {
				t.Errorf("%v: %d wrapped keys are read: %v", f, n, err)
			}
		}
		if m, err = New(f, SM4128GCM, nil, many(1), dk); err != nil {
			t.Fatal(err)
		}
		at := map[Format]int{Alibaba: 0, AlibabaStream: 7, Huawei: 2, HuaweiStream: 4}[f] // of the algorithm's last byte
		if prefix, err = m.Append(nil); err != nil {
			t.Fatal(err)
		}
		if f == Alibaba {
			at = bytes.Index(prefix, []byte{derInteger, 1, 9}) + 2
		}
		known := map[bool]int{true: 12, false: 4}[f.OfAlibaba()]
		for id := range 128 { // further ones are negative in DER
			b := bytes.Clone(prefix)
			b[at] = byte(id)
			if _, err := Parse(f, b); errors.Is(err, errAlgorithm) != (id == 0 || id > known) {
				t.Errorf("%v: algorithm %d: %v", f, id, err)
			}
		}
		version := map[Format]int{Alibaba: at - 3, AlibabaStream: 3, Huawei: 0, HuaweiStream: 2}[f]
		for v := range 256 {
			b := bytes.Clone(prefix)
			b[version] = byte(v)
			if _, err := Parse(f, b); (err == nil) != (v == 1) {
				t.Errorf("%v: version %d: %v", f, v, err)
			}
		}
	}
}
