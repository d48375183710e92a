package sdkformat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

// TestTamper cuts messages at every length, extends them, and flips every bit; of messages of the SDKs and of this package.
func TestTamper(t *testing.T) {
	for _, f := range Formats() {
		message, dk := seal(t, f, AES256GCM, keyring.EncryptionContext{"one": "eins", "two": "zwei"}, plaintext(50), true)
		tamper(t, f.String(), f, message, dk)
	}
	n := 0
	for _, v := range vectors(t) {
		if m, err := Parse(v.format, v.message); err != nil || !m.Authenticated() || len(v.message) > 1000 {
			continue // those are for TestWeaknesses
		}
		n++
		tamper(t, v.ID, v.format, v.message, v.dk)
	}
	if n < 10 {
		t.Errorf("only %d vectors", n)
	}
}

func tamper(t *testing.T, name string, f Format, message []byte, dk keyring.DataKey) {
	t.Helper()
	m, err := Parse(f, message)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, at int, b []byte) {
		if plain, err := open(f, b, dk); !errors.Is(err, ErrFormat) && !errors.Is(err, ErrAuth) {
			t.Errorf("%s, %s %d: %d bytes, %v", name, what, at, len(plain), err)
		} else if len(plain) > 0 && !m.Segmented() {
			t.Errorf("%s, %s %d: %d bytes of plaintext before the error", name, what, at, len(plain))
		}
	}
	for n := range message {
		if m.Segmented() && n == m.Prefix() {
			continue // a stream of no segments
		}
		refused("cut to", n, message[:n])
	}
	refused("extended by", 1, append(bytes.Clone(message), 0))
	for i := range message {
		for bit := range 8 {
			b := bytes.Clone(message)
			b[i] ^= 1 << bit
			// What a Huawei message calls an endpoint is under its tag, too, as is everything.
			refused("flipped bit of byte", i, b)
		}
	}
	refused("another data key", 0, func() []byte { dk = keyring.NewDataKey(len(dk)); return message }())
}

// TestChangedBetweenReadings changes a message after its tag was checked.
func TestChangedBetweenReadings(t *testing.T) {
	message, dk := seal(t, AlibabaStream, AES256GCM, nil, plaintext(3<<20), true)
	m, err := Parse(AlibabaStream, message)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	r := &changing{b: message, after: len(message) + pieceSize}
	if err := m.Open(&out, r, int64(len(message)), dk); !errors.Is(err, ErrAuth) {
		t.Errorf("opened to %d bytes, %v", out.Len(), err)
	}
	if !bytes.Equal(out.Bytes(), plaintext(3 << 20)[:out.Len()]) {
		t.Error("what was changed came out")
	}
}

// changing flips bits once it has been read for a while.
type changing struct {
	b     []byte
	after int
}

func (c *changing) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, c.b[off:])
	if c.after -= n; c.after < 0 {
		p[0] ^= 1
	}
	return n, nil
}

// TestWeaknesses shows what the formats do not protect, as docs/sdk-formats.md lists it.
func TestWeaknesses(t *testing.T) {
	plain := plaintext(3000)
	message, dk := seal(t, HuaweiStream, AES256GCM, nil, plain, true)
	m, err := Parse(HuaweiStream, message)
	if err != nil {
		t.Fatal(err)
	}
	const sealed = gcmIVSize + 8 + segmentSize + gcmTagSize
	first := message[m.Prefix() : m.Prefix()+sealed]
	second := message[m.Prefix()+sealed : m.Prefix()+2*sealed]
	swapped := append(append(bytes.Clone(message[:m.Prefix()]), second...), first...)
	if got, err := open(HuaweiStream, swapped, dk); err != nil || len(got) != 2*segmentSize {
		t.Errorf("segments swapped, and the last one dropped: %d bytes, %v", len(got), err)
	}
	flipped := 0
	for _, v := range vectors(t) {
		m, err := Parse(v.format, v.message)
		if err != nil {
			t.Fatal(err)
		}
		if m.Authenticated() {
			continue
		}
		rest := bytes.NewReader(v.message[m.Prefix():])
		if m.Segmented() {
			err = m.OpenSegments(new(bytes.Buffer), rest, v.dk)
		} else {
			err = m.Open(new(bytes.Buffer), bytes.NewReader(v.message), int64(len(v.message)), v.dk)
		}
		if !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("%s: %v", v.ID, err)
		}
		if m.suite().mode == modeCTR {
			b := bytes.Clone(v.message)
			b[m.Prefix()] ^= 1
			if got, err := open(v.format, b, v.dk); err != nil || got[0] != plaintext(1)[0]^1 {
				t.Errorf("%s, flipped: %v", v.ID, err)
			}
			flipped++
		}
	}
	if flipped == 0 {
		t.Error("no vector of CTR")
	}
}

// TestLongSegment refuses a segment whose length is a lie without making room for it.
func TestLongSegment(t *testing.T) {
	message, dk := seal(t, HuaweiStream, AES256GCM, nil, plaintext(1), true)
	m, err := Parse(HuaweiStream, message)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint64{0, 15, maxSegment, maxSegment + 1, 1 << 63, 1<<64 - 1} {
		b := bytes.Clone(message)
		binary.BigEndian.PutUint64(b[m.Prefix()+gcmIVSize:], n)
		if _, err := open(HuaweiStream, b, dk); !errors.Is(err, ErrAuth) {
			t.Errorf("length %d: %v", n, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.message[:min(len(v.message), 1200)])
	}
	for _, format := range Formats() {
		message, _ := seal(f, format, SM4128GCM, keyring.EncryptionContext{"a": "b"}, plaintext(20), true)
		f.Add(message)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, format := range Formats() {
			m, err := Parse(format, b)
			if err != nil {
				if !errors.Is(err, ErrFormat) {
					t.Fatal(err)
				}
				continue
			}
			again, err := m.Append(nil)
			if err != nil || !bytes.Equal(again, b[:m.Prefix()]) {
				t.Fatalf("%v: a second spelling, %v", format, err)
			}
			m.Names()
			m.EDKs([]string{"acs:kms:r:a:key/k", "huawei:kms:r:p:key/k"})
			dk := make(keyring.DataKey, m.KeySize())
			if m.Verify(dk) == nil && m.Authenticated() {
				t.Fatal("authentic under a key of zeros")
			}
			var out bytes.Buffer
			if m.Segmented() {
				m.OpenSegmentsUnauthenticated(&out, bytes.NewReader(b[m.Prefix():]), dk)
			} else if m.Authenticated() {
				m.Open(&out, bytes.NewReader(b), int64(len(b)), dk)
			} else {
				m.OpenUnauthenticated(&out, bytes.NewReader(b), int64(len(b)), dk)
			}
			if out.Len() > len(b) {
				t.Fatalf("%d bytes of plaintext from %d", out.Len(), len(b))
			}
		}
	})
}
