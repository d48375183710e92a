package header

import (
	"bytes"
	"errors"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

// current returns the header of a data key that new files get, sealed, with the volume's data key and the new one.
func current(t testing.TB) (h *Header, volumeKey, dk keyring.DataKey, raw []byte) {
	t.Helper()
	volumeKey, dk = keyring.NewDataKey(32), keyring.NewDataKey(32)
	h = &Header{Kind: Current, Algorithm: AES256GCM, SegmentSize: 4096, Size: 512, FileID: NewID(), Generation: 7,
		EDKs: []keyring.EncryptedDataKey{{CMK: "local:x", Wrapped: []byte("wrapped")}}}
	h.Endorse(volumeKey, dk)
	raw, err := h.Seal(dk)
	if err != nil {
		t.Fatal(err)
	}
	return h, volumeKey, dk, raw
}

// TestCurrent changes every bit of the header of a current data key, and has others vouch for it.
func TestCurrent(t *testing.T) {
	h, volumeKey, dk, raw := current(t)
	if raw[8] != 2 || raw[9] != 1 || raw[10] != 3 {
		t.Errorf("version %d, minimum reader version %d, kind %d", raw[8], raw[9], raw[10])
	}
	read, err := Parse(raw)
	if err != nil || read.Generation != 7 || read.FormatVersion() != 2 || read.Endorsement != h.Endorsement {
		t.Fatalf("%+v, %v", read, err)
	}
	if err := errors.Join(read.Verify(dk), read.EndorsedBy(volumeKey)); err != nil {
		t.Error(err)
	}
	used, err := h.Used()
	if err != nil {
		t.Fatal(err)
	}
	for i := range used * 8 {
		b := bytes.Clone(raw)
		b[i/8] ^= 1 << (i % 8)
		if h, err := Parse(b); err == nil && h.Verify(dk) == nil {
			t.Errorf("bit %d may be changed", i)
		}
	}
	// Whoever knows a CMK's public key makes a data key of his own, but cannot vouch for it; nor does an older word serve for another generation, key or volume.
	for name, edit := range map[string]func(*Header){
		"own word":         func(h *Header) { h.Endorse(dk, dk) },
		"other generation": func(h *Header) { h.Generation++ },
		"other key":        func(h *Header) { h.KeyID[0] ^= 1 },
		"other volume":     func(h *Header) { h.FileID[0] ^= 1 },
	} {
		forged := *h
		edit(&forged)
		if err := forged.EndorsedBy(volumeKey); !errors.Is(err, ErrAuth) {
			t.Errorf("%s: %v, want ErrAuth", name, err)
		}
	}
}

// TestCurrentRefused parses and seals headers whose parts do not go together.
func TestCurrentRefused(t *testing.T) {
	_, _, dk, raw := current(t)
	edit := func(at int, to byte) []byte {
		b := bytes.Clone(raw)
		b[at] = to
		return b
	}
	for name, b := range map[string][]byte{
		"version 1":         edit(8, 1),
		"plaintext names":   edit(15, 1),
		"volume, version 1": append([]byte(nil), append(edit(8, 1)[:10:10], append([]byte{2}, raw[11:]...)...)...),
	} {
		if _, err := Parse(b); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, want ErrFormat", name, err)
		}
	}
	base := Header{Algorithm: AES256GCM, SegmentSize: 4096, Size: 512, EDKs: []keyring.EncryptedDataKey{{CMK: "x", Wrapped: []byte{1}}}}
	for name, set := range map[string]func(*Header){
		"current without generation": func(h *Header) { h.Kind = Current },
		"current per file":           func(h *Header) { h.Kind, h.Generation, h.PerFile = Current, 1, true },
		"file with generation":       func(h *Header) { h.Kind, h.Generation = File, 1 },
		"file per file":              func(h *Header) { h.Kind, h.PerFile = File, true },
	} {
		h := base
		set(&h)
		if _, err := h.Seal(dk); !errors.Is(err, ErrBounds) {
			t.Errorf("%s: %v, want ErrBounds", name, err)
		}
	}
	cut := base
	cut.Kind, cut.later = Volume, later{version: 2, flags: flagRotated, fields: "short"}
	sealed, err := cut.Seal(dk)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(sealed); !errors.Is(err, ErrFormat) {
		t.Errorf("a generation that is cut: %v, want ErrFormat", err)
	}
}

// TestVolumeOfVersion2 writes what version 2 adds to the header of a volume; without it a header stays as version 1 has it.
func TestVolumeOfVersion2(t *testing.T) {
	dk := keyring.NewDataKey(16)
	for _, tt := range []struct {
		perFile    bool
		generation uint64
		version    int
	}{{false, 0, 1}, {true, 0, 2}, {false, 3, 2}, {true, 1 << 63, 2}} {
		h := &Header{Kind: Volume, Algorithm: SM4128GCM, SegmentSize: 4096, PlaintextNames: true, Size: 512, PerFile: tt.perFile, Generation: tt.generation,
			EDKs: []keyring.EncryptedDataKey{{CMK: "x", Wrapped: []byte{1}}}}
		raw, err := h.Seal(dk)
		if err != nil {
			t.Fatal(err)
		}
		read, err := Parse(raw)
		if err != nil || read.Verify(dk) != nil || read.PerFile != tt.perFile || read.Generation != tt.generation || read.FormatVersion() != tt.version || int(raw[8]) != tt.version || raw[9] != 1 {
			t.Errorf("%+v: %+v, %v", tt, read, err)
		}
		// What is not known of a still later version is kept beside.
		h.later = later{version: 5, flags: 0x8000, fields: "more"}
		if raw, err = h.Seal(dk); err != nil {
			t.Fatal(err)
		}
		read, err = Parse(raw)
		if err != nil || read.Verify(dk) != nil || read.later != h.later || read.PerFile != tt.perFile || read.Generation != tt.generation || read.FormatVersion() != 5 {
			t.Errorf("%+v: %+v, %v", tt, read, err)
		}
	}
}
