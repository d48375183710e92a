package header

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

// example is a header under the data key 00 01 … 1f.
func example(t testing.TB) (*Header, keyring.DataKey, []byte) {
	t.Helper()
	dk := make(keyring.DataKey, 32)
	for i := range dk {
		dk[i] = byte(i)
	}
	h := &Header{
		Kind: File, Algorithm: AES256GCM, SegmentSize: 4096, Size: 1536, FileID: ID{1, 2, 3},
		Context: keyring.EncryptionContext{"project": "demo", "zone": "a"},
		EDKs: []keyring.EncryptedDataKey{
			{CMK: "local:00112233445566778899aabbccddeeff", Wrapped: bytes.Repeat([]byte{7}, 80)},
			{CMK: "acs:kms:cn-hangzhou:1:key/x", Wrapped: bytes.Repeat([]byte{8}, 108)},
		},
	}
	raw, err := h.Seal(dk)
	if err != nil {
		t.Fatal(err)
	}
	return h, dk, raw
}

func TestRoundTrip(t *testing.T) {
	want, dk, raw := example(t)
	if len(raw) != want.Size {
		t.Fatalf("Seal returned %d bytes, want %d", len(raw), want.Size)
	}
	read := bytes.Clone(raw)
	got, err := Parse(read)
	if err != nil {
		t.Fatal(err)
	}
	clear(read) // whoever has read it may use the buffer again
	if err := got.Verify(dk); err != nil {
		t.Fatal(err)
	}
	if got.FileID != want.FileID || got.KeyID != KeyID(dk) || !got.Context.Equal(want.Context) || len(got.EDKs) != 2 {
		t.Errorf("parsed %+v", got)
	}
	other := bytes.Repeat([]byte{1}, 32)
	if err := got.Verify(other); !errors.Is(err, ErrAuth) {
		t.Errorf("Verify under another data key: %v", err)
	}
}

func TestFlipAnyBit(t *testing.T) {
	_, dk, raw := example(t)
	for i := range raw {
		for bit := range 8 {
			raw[i] ^= 1 << bit
			if h, err := Parse(raw); err == nil {
				if err := h.Verify(dk); !errors.Is(err, ErrAuth) {
					t.Errorf("bit %d of byte %d: Verify says %v", bit, i, err)
				}
			}
			raw[i] ^= 1 << bit
		}
	}
}

func TestCutAtEveryLength(t *testing.T) {
	_, _, raw := example(t)
	for n := range raw {
		if _, err := Parse(raw[:n]); !errors.Is(err, ErrFormat) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestRefused(t *testing.T) {
	h, _, raw := example(t)
	used, err := h.Used()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		edit func(b []byte)
		want error
	}{
		"Magic":          {func(b []byte) { b[0] = 'K' }, ErrFormat},
		"NewerReader":    {func(b []byte) { b[8], b[9] = 2, 2 }, ErrVersion},
		"NewerReaderOld": {func(b []byte) { b[9] = 255 }, ErrVersion},
		"NewerVersion":   {func(b []byte) { b[8] = 2 }, nil},
		"LaterFlags":     {func(b []byte) { b[8], b[14] = 2, 0xff }, nil},
		"LaterFlag":      {func(b []byte) { b[8], b[15] = 2, 2 }, ErrFormat},
		"LaterReserved":  {func(b []byte) { b[8], b[13] = 2, 1 }, ErrFormat},
		"LaterReader0":   {func(b []byte) { b[8], b[9] = 2, 0 }, ErrFormat},
		"NoVersion":      {func(b []byte) { b[8] = 0 }, ErrFormat},
		"NoReader":       {func(b []byte) { b[9] = 0 }, ErrFormat},
		"NoKind":         {func(b []byte) { b[10] = 0 }, ErrFormat},
		"Kind":           {func(b []byte) { b[10] = 3 }, ErrFormat},
		"NoAlgorithm":    {func(b []byte) { b[11] = 0 }, ErrFormat},
		"Algorithm":      {func(b []byte) { b[11] = 4 }, ErrFormat},
		"SmallSegments":  {func(b []byte) { b[12] = 11 }, ErrFormat},
		"LargeSegments":  {func(b []byte) { b[12] = 17 }, ErrFormat},
		"HugeSegments":   {func(b []byte) { b[12] = 255 }, ErrFormat},
		"Reserved":       {func(b []byte) { b[13] = 1 }, ErrFormat},
		"HighFlag":       {func(b []byte) { b[14] = 0x80 }, ErrFormat},
		"Flag":           {func(b []byte) { b[15] = 2 }, ErrFormat},
		"VolumeFlag":     {func(b []byte) { b[10], b[15] = 2, 3 }, ErrFormat},
		"FileWithFlag":   {func(b []byte) { b[15] = 1 }, ErrFormat},
		"NoSize":         {func(b []byte) { binary.BigEndian.PutUint32(b[16:], 0) }, ErrFormat},
		"OddSize":        {func(b []byte) { binary.BigEndian.PutUint32(b[16:], 1024+1) }, ErrFormat},
		"SizeOverMax":    {func(b []byte) { binary.BigEndian.PutUint32(b[16:], MaxSize+512) }, ErrFormat},
		"HugeSize":       {func(b []byte) { binary.BigEndian.PutUint32(b[16:], 1<<32-512) }, ErrFormat},
		"NoUsed":         {func(b []byte) { binary.BigEndian.PutUint32(b[20:], 0) }, ErrFormat},
		"SmallUsed":      {func(b []byte) { binary.BigEndian.PutUint32(b[20:], 56+64-1) }, ErrFormat},
		"UsedTooSmall":   {func(b []byte) { binary.BigEndian.PutUint32(b[20:], uint32(used-1)) }, ErrFormat},
		"UsedTooLarge":   {func(b []byte) { binary.BigEndian.PutUint32(b[20:], uint32(used+1)) }, ErrFormat},
		"UsedOverSize":   {func(b []byte) { binary.BigEndian.PutUint32(b[20:], uint32(len(b)+1)) }, ErrFormat},
		"HugeUsed":       {func(b []byte) { binary.BigEndian.PutUint32(b[20:], 1<<32-1) }, ErrFormat},
		"HugeContext":    {func(b []byte) { b[56], b[57] = 0xff, 0xff }, ErrFormat},
		"ContextCounts":  {func(b []byte) { b[59]++ }, ErrFormat},
		"ManyEntries":    {func(b []byte) { b[58], b[59] = 0xff, 0xff }, ErrFormat},
		"Padding":        {func(b []byte) { b[used] = 1 }, ErrFormat},
		"LastPadding":    {func(b []byte) { b[len(b)-1] = 1 }, ErrFormat},
	} {
		b := bytes.Clone(raw)
		c.edit(b)
		b = append(b, make([]byte, MaxSize)...) // so that nothing is refused for being cut
		if _, err := Parse(b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// TestLaterVersion reads, changes and writes a header of version 2 whose minimum reader version is 1.
func TestLaterVersion(t *testing.T) {
	h, dk, _ := example(t)
	h.later = later{version: 2, flags: 0x8100, fields: "a field of version 2\x00"}
	raw, err := h.Seal(dk)
	if err != nil {
		t.Fatal(err)
	}
	if raw[8] != 2 || raw[9] != 1 || raw[14] != 0x81 {
		t.Fatalf("versions %d and %d, flags %x", raw[8], raw[9], raw[14:16])
	}
	read, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := read.Verify(dk); err != nil {
		t.Fatal(err)
	}
	if read.later != h.later || read.FormatVersion() != 2 || len(read.EDKs) != len(h.EDKs) {
		t.Errorf("read %+v, version %d", read.later, read.FormatVersion())
	}
	used, err := read.Used()
	if err != nil {
		t.Fatal(err)
	}
	for i := range used { // what is not known is authenticated like all else
		b := bytes.Clone(raw)
		b[i] ^= 1
		if h, err := Parse(b); err == nil && h.Verify(dk) == nil {
			t.Errorf("byte %d may be changed", i)
		}
	}
	read.EDKs = read.EDKs[:1] // as a rewrap does
	again, err := read.Seal(dk)
	if err != nil {
		t.Fatal(err)
	}
	if kept, err := Parse(again); err != nil || kept.later != h.later || kept.Verify(dk) != nil {
		t.Errorf("after a rewrap: %+v, %v", kept, err)
	}
	read.later.fields = strings.Repeat("x", read.Size)
	if _, err := read.Seal(dk); !errors.Is(err, ErrBounds) {
		t.Errorf("fields that do not fit: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	h, dk, raw := example(f)
	f.Add(raw)
	h.later = later{version: 9, flags: 0x4000, fields: "later"}
	raw, err := h.Seal(dk)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	volume := &Header{Kind: Volume, Algorithm: SM4128GCM, SegmentSize: 1 << 16, PlaintextNames: true, Size: 512,
		EDKs: []keyring.EncryptedDataKey{{CMK: "x", Wrapped: []byte{1}}}}
	if raw, err = volume.Seal(make(keyring.DataKey, 16)); err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	volume.PerFile, volume.Generation = true, 1<<40
	if raw, err = volume.Seal(make(keyring.DataKey, 16)); err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	_, _, _, raw = current(f)
	f.Add(raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Parse(b)
		if err != nil {
			return
		}
		again, err := h.appendSigned(nil)
		if err != nil {
			t.Fatalf("parsed, but cannot be marshalled: %v", err)
		}
		again = append(again, h.mac[:]...)
		again = append(again, make([]byte, h.Size-len(again))...)
		if !bytes.Equal(again, b[:h.Size]) {
			t.Fatal("a second spelling of a header")
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	h, dk, _ := example(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Seal(dk); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseAndVerify(b *testing.B) {
	_, dk, raw := example(b)
	b.ReportAllocs()
	for b.Loop() {
		h, err := Parse(raw)
		if err != nil {
			b.Fatal(err)
		}
		if err := h.Verify(dk); err != nil {
			b.Fatal(err)
		}
	}
}
