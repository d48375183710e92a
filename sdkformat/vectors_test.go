package sdkformat

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

// A vector is a message that a vendor's own SDK made.
type vector struct {
	ID          string            `json:"id"`
	API         string            `json:"api"` // bytes or stream
	AlgorithmID int               `json:"algorithm_id"`
	Keyring     string            `json:"keyring"`
	Context     map[string]string `json:"context"`
	DEK         string            `json:"dek_hex"`
	EDKs        []struct {
		CMK  string `json:"cmk"`
		Blob string `json:"blob_hex"`
	} `json:"edks"`
	PlaintextLen    int    `json:"plaintext_len"`
	PlaintextSHA256 string `json:"plaintext_sha256"`
	MessageFile     string `json:"message_file"`
	RawMasterKey    string `json:"raw_master_key_hex"`
	RawPrivateKey   string `json:"raw_private_key_pkcs8_hex"`

	format  Format
	message []byte
	dk      keyring.DataKey
}

// vectors reads the messages of both vendors.
func vectors(t testing.TB) (all []vector) {
	t.Helper()
	for vendor, formats := range map[string][2]Format{"alibaba": {Alibaba, AlibabaStream}, "huawei": {Huawei, HuaweiStream}} {
		b, err := os.ReadFile(filepath.Join("testdata", vendor, "index.json"))
		if err != nil {
			t.Fatal(err)
		}
		var index struct {
			Vectors []vector `json:"vectors"`
		}
		if err := json.Unmarshal(b, &index); err != nil {
			t.Fatal(err)
		}
		if len(index.Vectors) < 20 {
			t.Fatalf("only %d vectors of %s", len(index.Vectors), vendor)
		}
		for _, v := range index.Vectors {
			if v.message, err = os.ReadFile(filepath.Join("testdata", vendor, v.MessageFile)); err != nil {
				t.Fatal(err)
			}
			if v.dk, err = hex.DecodeString(v.DEK); err != nil {
				t.Fatal(err)
			}
			v.format = formats[0]
			if v.API == "stream" {
				v.format = formats[1]
			}
			all = append(all, v)
		}
	}
	return all
}

// open opens a message with its data key, as a command would.
func open(f Format, message []byte, dk keyring.DataKey) ([]byte, error) {
	m, err := Parse(f, message)
	if err != nil {
		return nil, err
	}
	if err := m.Verify(dk); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	rest := bytes.NewReader(message[m.Prefix():])
	switch {
	case m.Segmented() && m.Authenticated():
		err = m.OpenSegments(&out, rest, dk)
	case m.Segmented():
		err = m.OpenSegmentsUnauthenticated(&out, rest, dk)
	case m.Authenticated():
		err = m.Open(&out, bytes.NewReader(message), int64(len(message)), dk)
	default:
		err = m.OpenUnauthenticated(&out, bytes.NewReader(message), int64(len(message)), dk)
	}
	return out.Bytes(), err
}

// TestVectors opens what the vendors' SDKs made.
func TestVectors(t *testing.T) {
	for _, v := range vectors(t) {
		m, err := Detect(v.message, int64(len(v.message)))
		if err != nil || m.Format != v.format {
			t.Errorf("%s: detected %v, %v", v.ID, m, err)
			continue
		}
		if m.Algorithm != v.AlgorithmID || !m.Context.Equal(v.Context) || len(m.Keys) != len(v.EDKs) {
			t.Errorf("%s: parsed as %v, context %v, %d EDKs", v.ID, m, m.Context, len(m.Keys))
		}
		for _, e := range v.EDKs {
			found := false
			for i, k := range m.Keys {
				named := m.Names()[i]
				found = found || hex.EncodeToString(k.Wrapped) == e.Blob && (!v.format.OfAlibaba() && !strings.HasPrefix(named, "huawei:") || strings.HasSuffix(named, e.CMK))
			}
			if !found {
				t.Errorf("%s: no EDK of %q in %v", v.ID, e.CMK, m.Names())
			}
		}
		if again, err := m.Append(nil); err != nil || !bytes.Equal(again, v.message[:m.Prefix()]) {
			t.Errorf("%s: written anew, it is another, %v", v.ID, err)
		}
		plain, err := open(v.format, v.message, v.dk)
		if sum := sha256.Sum256(plain); err != nil || len(plain) != v.PlaintextLen || hex.EncodeToString(sum[:]) != v.PlaintextSHA256 {
			t.Errorf("%s: opened to %d bytes, %v", v.ID, len(plain), err)
		}
	}
}

// TestDocs compares the dumps in docs/sdk-formats.md with the messages that they are of.
func TestDocs(t *testing.T) {
	doc, err := os.ReadFile("../docs/sdk-formats.md")
	if err != nil {
		t.Fatal(err)
	}
	dumps := regexp.MustCompile("(?s)```\n(.*?)```\n\n\\(`sdkformat/(.*?)`").FindAllStringSubmatch(string(doc), -1)
	if len(dumps) != len(Formats()) {
		t.Fatalf("%d dumps", len(dumps))
	}
	for _, d := range dumps {
		message, err := os.ReadFile(d[2])
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(d[1]), "\n")
		for i, line := range lines {
			line, _, _ = strings.Cut(line, ";")
			offset, text, _ := strings.Cut(line, " ")
			start, err := strconv.Atoi(offset)
			if err != nil {
				t.Fatal(err)
			}
			end := len(message)
			if i+1 < len(lines) {
				next, _, _ := strings.Cut(lines[i+1], " ")
				if end, err = strconv.Atoi(next); err != nil {
					t.Fatal(err)
				}
			}
			is := message[start:end]
			first, last, cut := strings.Cut(strings.ReplaceAll(text, " ", ""), "…")
			head, err1 := hex.DecodeString(first)
			tail, err2 := hex.DecodeString(last)
			if err1 != nil || err2 != nil || !bytes.HasPrefix(is, head) || !bytes.HasSuffix(is, tail) || !cut && len(is) != len(head) {
				t.Errorf("%s: line %q is %x", d[2], line, is)
			}
		}
	}
}
