package header

import (
	"bytes"
	"encoding/hex"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

// worked is the header of docs/format.md section 11 and its data key.
func worked(t *testing.T) (*Header, keyring.DataKey) {
	t.Helper()
	wrapped, err := hex.DecodeString("c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedf" +
		"a2ec15f1a7185fc2f7b00b3aa67582db9304a4113f859e3bba314621e98a3f946a53fa03fe860cebed8f1cf7c1de93c8")
	if err != nil {
		t.Fatal(err)
	}
	dk := make(keyring.DataKey, 32)
	var fileID ID
	for i := range dk {
		dk[i] = byte(i)
	}
	for i := range fileID {
		fileID[i] = 0x40 + byte(i)
	}
	return &Header{
		Kind: File, Algorithm: AES256GCM, SegmentSize: 4096, Size: 1536, FileID: fileID,
		Context: keyring.EncryptionContext{"project": "demo"},
		EDKs:    []keyring.EncryptedDataKey{{CMK: "local:808182838485868788898a8b8c8d8e8f", Wrapped: wrapped}},
	}, dk
}

func TestWorkedHeader(t *testing.T) {
	frozen, err := os.ReadFile("testdata/example.kmsfs")
	if err != nil {
		t.Fatal(err)
	}
	h, dk := worked(t)
	sealed, err := h.Seal(dk)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sealed, frozen) {
		t.Errorf("Seal returns other bytes than testdata/example.kmsfs holds:\n%s", hex.Dump(sealed))
	}
	parsed, err := Parse(frozen)
	if err != nil {
		t.Fatal(err)
	}
	if err := parsed.Verify(dk); err != nil {
		t.Error(err)
	}

	dump := readDump(t, "../docs/format.md")
	used, err := parsed.Used()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(dump, frozen[:used]) {
		t.Errorf("docs/format.md section 11 shows other bytes than testdata/example.kmsfs holds:\n%s", hex.Dump(dump))
	}
}

// readDump returns the bytes of the hex dump in section 11 of the format: lines of offset, bytes, and a comment after a semicolon.
func readDump(t *testing.T, path string) []byte {
	t.Helper()
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(doc), "\n## 11. A worked header\n")
	section, _, _ = strings.Cut(section, "\n## ")
	_, block, opened := strings.Cut(section, "\n```\n")
	block, _, closed := strings.Cut(block, "\n```\n")
	if !found || !opened || !closed {
		t.Fatalf("%s has no hex dump in a section 11", path)
	}
	var dump []byte
	for line := range strings.Lines(block) {
		data, _, _ := strings.Cut(line, ";")
		fields := strings.Fields(data)
		if len(fields) == 0 || fields[0] != strconv.Itoa(len(dump)) {
			t.Fatalf("line %q is not at offset %d", line, len(dump))
		}
		b, err := hex.DecodeString(strings.Join(fields[1:], ""))
		if err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		dump = append(dump, b...)
	}
	return dump
}
