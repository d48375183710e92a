package sdkformat

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/emmansun/gmsm/sm4"

	"github.com/kmsfs/kmsfs/keyring"
)

// spool is a temporary file in memory.
type spool struct {
	bytes.Buffer
}

func (s *spool) Seek(int64, int) (int64, error) { return 0, nil }

// plaintext is what the vectors hold.
func plaintext(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + (i>>8)*13 + 5)
	}
	return b
}

func sizes() []int { return []int{0, 1, 15, 16, 17, 1023, 1024, 1025, 2048, 70000} }

func contexts() []keyring.EncryptionContext {
	return []keyring.EncryptionContext{nil, {"one": "eins"}, {"b": "1", "a": "2", "路径": "/数据", "long": strings.Repeat("x", 300), "empty": ""}}
}

func edks() []keyring.EncryptedDataKey {
	return []keyring.EncryptedDataKey{
		{CMK: "acs:kms:cn-hangzhou:1:key/b", Wrapped: []byte("wrapped by the second")},
		{CMK: "acs:kms:cn-beijing:1:key/long", Wrapped: bytes.Repeat([]byte("w"), 200)},
		{CMK: "acs:kms:cn-hangzhou:1:key/a", Wrapped: []byte("x")},
	}
}

func seal(t testing.TB, f Format, c Cipher, ec keyring.EncryptionContext, plain []byte, known bool) ([]byte, keyring.DataKey) {
	t.Helper()
	dk := keyring.NewDataKey(map[Cipher]int{AES256GCM: 32, AES128GCM: 16, SM4128GCM: 16}[c])
	m, err := New(f, c, ec, edks(), dk)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(-1)
	if known {
		size = int64(len(plain))
	}
	var out bytes.Buffer
	if err := m.Seal(&out, iotest.HalfReader(bytes.NewReader(plain)), size, dk, new(spool)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), dk
}

// TestRoundTrip opens what it has sealed, and has it read by a second reader.
func TestRoundTrip(t *testing.T) {
	for _, f := range Formats() {
		for _, c := range []Cipher{AES256GCM, AES128GCM, SM4128GCM} {
			for _, ec := range contexts() {
				for _, n := range sizes() {
					for _, known := range []bool{true, false} {
						plain := plaintext(n)
						message, dk := seal(t, f, c, ec, plain, known)
						m, err := Detect(message, int64(len(message)))
						if err != nil || m.Format != f || !m.Context.Equal(ec) || len(m.Keys) != 3 {
							t.Fatalf("%v, %d bytes: detected %v, %v", f, n, m, err)
						}
						got, err := open(f, message, dk)
						if err != nil || !bytes.Equal(got, plain) {
							t.Fatalf("%v, %d bytes: opened to %d bytes, %v", f, n, len(got), err)
						}
						newBlock := aes.NewCipher
						if c == SM4128GCM {
							newBlock = sm4.NewCipher
						}
						block, err := newBlock(dk)
						if err != nil {
							t.Fatal(err)
						}
						aead, err := cipher.NewGCM(block)
						if err != nil {
							t.Fatal(err)
						}
						if got, err := secondReader(f, message, aead, ec); err != nil || !bytes.Equal(got, plain) {
							t.Fatalf("%v, %d bytes: the second reader got %d bytes, %v", f, n, len(got), err)
						}
					}
				}
			}
		}
	}
}

// secondReader reads well-formed messages of three EDKs, and shares no code with the package.
func secondReader(f Format, message []byte, aead cipher.AEAD, ec map[string]string) (plain []byte, err error) {
	u32 := func(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
	length32 := func(s string) []byte { return append(u32(len(s)), s...) }
	check := func(iv, tag, aad []byte) error {
		if _, err := aead.Open(nil, iv, tag, aad); err != nil {
			return fmt.Errorf("header: %w", err)
		}
		return nil
	}
	var ctx []byte
	if len(ec) > 0 && f.OfAlibaba() {
		ctx = u32(len(ec))
		for _, k := range slices.Sorted(maps.Keys(ec)) {
			ctx = append(ctx, append(length32(k), length32(ec[k])...)...)
		}
	}
	aad := func(algorithm int, keys []string) []byte {
		b := append(append(u32(1), u32(algorithm)...), u32(len(ec))...)
		b = append(append(b, ctx...), u32(len(keys))...)
		slices.Sort(keys) // none is the beginning of another
		for _, k := range keys {
			cmk, wrapped, _ := strings.Cut(k, "\x00")
			b = append(append(b, length32(cmk)...), length32(wrapped)...)
		}
		return b
	}
	at := 0
	next := func(n int) []byte { at += n; return message[at-n : at] }
	number := func(n int) int { return int(binary.BigEndian.Uint64(append(make([]byte, 8-n), next(n)...))) }
	switch f {
	case Alibaba:
		type pair struct{ A, B []byte }
		var m struct {
			Header struct {
				Version, Algorithm int
				Keys, Context      []pair `asn1:"set"`
				IV, Tag            []byte
			}
			Body struct{ IV, Ciphertext, Tag []byte }
		}
		if rest, err := asn1.Unmarshal(message, &m); err != nil || len(rest) > 0 {
			return nil, fmt.Errorf("%d bytes left: %w", len(rest), err)
		}
		if again, err := asn1.Marshal(m); err != nil || !bytes.Equal(again, message) { // the library sorts sets
			return nil, fmt.Errorf("not DER: %w", err)
		}
		var keys []string
		for _, k := range m.Header.Keys {
			keys = append(keys, string(k.A)+"\x00"+base64.StdEncoding.EncodeToString(k.B))
		}
		if err := check(m.Header.IV, m.Header.Tag, aad(m.Header.Algorithm, keys)); err != nil {
			return nil, err
		}
		return aead.Open(nil, m.Body.IV, append(m.Body.Ciphertext, m.Body.Tag...), ctx)
	case AlibabaStream:
		next(4)
		algorithm := number(4)
		if stored := next(number(4)); !bytes.Equal(stored, ctx) {
			return nil, errors.New("another context")
		}
		var keys []string
		for range number(4) {
			keys = append(keys, string(next(number(4)))+"\x00"+string(next(number(4))))
		}
		if !slices.IsSorted(keys) {
			return nil, errors.New("EDKs not sorted")
		}
		if err := check(next(number(4)), next(number(4)), aad(algorithm, keys)); err != nil {
			return nil, err
		}
		iv := next(int(binary.LittleEndian.Uint32(next(4))))
		return aead.Open(nil, iv, message[at:], ctx)
	}
	start := 0
	if f == HuaweiStream {
		start = 2
		next(2)
	}
	next(3)
	ctx = next(number(2))
	if want := 2 + 4*len(ec); len(ec) > 0 && int(binary.BigEndian.Uint16(ctx)) != len(ec) || len(ec) == 0 && len(ctx) > 0 || len(ec) > 0 && len(ctx) < want {
		return nil, errors.New("bad context")
	}
	for range number(1) {
		if string(next(number(1))) != "huawei-kms" || string(next(number(1))) != "\x02" {
			return nil, errors.New("bad EDK")
		}
		next(number(2))
	}
	next(2)
	fields := message[start:at]
	tag := next(number(2))
	if f == HuaweiStream && int(binary.BigEndian.Uint16(message)) != at-2 {
		return nil, errors.New("bad length of the header")
	}
	if err := check(tag[:12], tag[12:], fields); err != nil {
		return nil, err
	}
	if f == Huawei {
		iv, n := next(12), number(8)
		return aead.Open(nil, iv, next(n+16), ctx)
	}
	for at < len(message) {
		iv, n := next(12), number(8)
		segment, err := aead.Open(nil, iv, next(n), ctx)
		if err != nil || len(segment) != 1024 && at < len(message) {
			return nil, fmt.Errorf("segment of %d bytes, %w", len(segment), err)
		}
		plain = append(plain, segment...)
	}
	return plain, nil
}

// TestHuaweiContextOrder has pairs sorted by value, in the order of UTF-16.
func TestHuaweiContextOrder(t *testing.T) {
	m, err := New(Huawei, AES256GCM, keyring.EncryptionContext{"a": "\U00010000", "b": "\uffee", "c": "z"}, edks(), keyring.NewDataKey(32))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"c", "z", "a", "\U00010000", "b", "\uffee"}; !slices.Equal(m.pairs, want) {
		t.Errorf("%q, want %q", m.pairs, want)
	}
}

// TestNewRefuses refuses what the vendors' SDKs could not read.
func TestNewRefuses(t *testing.T) {
	long := keyring.EncryptionContext{"k": strings.Repeat("v", maxCTX)}
	for name, err := range map[string]error{
		"equal values":    second(New(Huawei, AES256GCM, keyring.EncryptionContext{"a": "x", "b": "x"}, edks(), keyring.NewDataKey(32))),
		"long context":    second(New(HuaweiStream, AES256GCM, long, edks(), keyring.NewDataKey(32))),
		"long context, A": second(New(AlibabaStream, AES256GCM, long, edks(), keyring.NewDataKey(32))),
		"not UTF-8":       second(New(Alibaba, AES256GCM, keyring.EncryptionContext{"a": "\xff"}, edks(), keyring.NewDataKey(32))),
		"no EDK":          second(New(Huawei, AES256GCM, nil, nil, keyring.NewDataKey(32))),
		"128 EDKs":        second(New(Huawei, AES256GCM, nil, make([]keyring.EncryptedDataKey, 128), keyring.NewDataKey(32))),
		"short key":       second(New(Huawei, AES256GCM, nil, edks(), keyring.NewDataKey(16))),
		"long header":     second(New(HuaweiStream, AES256GCM, nil, []keyring.EncryptedDataKey{{Wrapped: make([]byte, 32767)}}, keyring.NewDataKey(32))),
	} {
		if !errors.Is(err, ErrBounds) {
			t.Errorf("%s: %v", name, err)
		}
	}
	dk := keyring.NewDataKey(32)
	for _, n := range []int64{9, 11} {
		m, err := New(Alibaba, AES256GCM, nil, edks(), dk)
		if err == nil {
			err = m.Seal(new(bytes.Buffer), strings.NewReader("ten bytes."), n, dk, nil)
		}
		if err == nil {
			t.Errorf("ten bytes sealed as %d", n)
		}
	}
}

// TestTooLong refuses at once what the SDKs could not hold.
func TestTooLong(t *testing.T) {
	for f, n := range map[Format]int64{Alibaba: maxWhole + 1, Huawei: maxWhole + 1, AlibabaStream: maxGCM + 1} {
		dk := keyring.NewDataKey(32)
		m, err := New(f, AES256GCM, nil, edks(), dk)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := m.Seal(&out, iotest.ErrReader(errors.New("read")), n, dk, nil); !errors.Is(err, ErrBounds) || out.Len() > 0 {
			t.Errorf("%v: %v, %d bytes written", f, err, out.Len())
		}
	}
}

func second(_ *Message, err error) error { return err }

// TestEDKs matches EDKs to CMKs: by what the message names, or by trying all of the cloud.
func TestEDKs(t *testing.T) {
	ali, hw := "acs:kms:cn-beijing:1234567890123456:key/key-bjj62f5ba3dnpb6v8j8w1", "huawei:kms:cn-north-4:0022edc16a52e7697de40af114bc0001:key/bb6a3d22-dc93-47ac-b5bd-88df7ad35f1e"
	other := []string{"local:/x", "acs:kms:cn-hangzhou:1:key/x", "huawei:kms:cn-south-1:1:key/x", "huawei:kms:cn-south-1:0022edc16a52e7697de40af114bc0001:key/bb6a3d22-dc93-47ac-b5bd-88df7ad35f1e"}
	seen := 0
	for _, v := range vectors(t) {
		m, err := Parse(v.format, v.message)
		if err != nil {
			t.Fatal(err)
		}
		n, wrong := len(m.EDKs([]string{ali, hw})), len(m.EDKs(other))
		switch {
		case v.format.OfAlibaba() && (n != 1 || wrong != 0),
			v.Keyring == "kms-multi" && (n != len(m.Keys) || wrong != 2*len(m.Keys)),
			v.Keyring == "kms-discovery" && (n != 1 || wrong != 0),
			strings.HasPrefix(v.Keyring, "raw") && (n != 0 || wrong != 0):
			t.Errorf("%s: %d and %d EDKs", v.ID, n, wrong)
		}
		seen++
	}
	if seen == 0 {
		t.Fatal("no vectors")
	}
	if m := (&Message{Format: Alibaba, Keys: []Key{{CMK: "key-bjj62f5ba3dnpb6v8j8w1"}}}); len(m.EDKs([]string{ali, other[1]})) != 1 {
		t.Error("a CMK that is named by its ID alone is not found")
	}
}
