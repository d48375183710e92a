package volume

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring/local"
)

func unlocked(t *testing.T) *Volume {
	t.Helper()
	tmp := t.TempDir()
	k, err := local.Generate(filepath.Join(tmp, "cmk"))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(tmp, "cipher")
	if _, err := Create(t.Context(), dir, Params{Algorithm: header.AES256GCM, SegmentSize: 4096}, k); err != nil {
		t.Fatal(err)
	}
	v, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	if err := v.Unlock(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestPrintsNoKey prints an unlocked volume, and what holds it, with every verb that shows unexported fields.
func TestPrintsNoKey(t *testing.T) {
	v := unlocked(t)
	dk := v.keys.known.get(v.keys.volume)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, value := range []any{v, v.keys, v.Names(), struct{ v *Volume }{v}} { // what a careless log line would do
			out := fmt.Sprintf(verb, value)
			for _, spelled := range []string{fmt.Sprintf("%x", []byte(dk[:8])), strings.Trim(fmt.Sprint([]byte(dk[:8])), "[]"), string(dk[:8])} {
				if strings.Contains(out, spelled) {
					t.Errorf("%s of %T shows the data key", verb, value)
				}
			}
		}
	}
}

// TestMendHeaders loses and damages each of the two headers; where neither is sound there is nothing to mend from.
func TestMendHeaders(t *testing.T) {
	v := unlocked(t)
	paths := []string{filepath.Join(v.Dir(), MetaDir, headerFile), filepath.Join(v.Dir(), MetaDir, headerCopy)}
	good, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(good)
	bad[200] ^= 1
	for i, path := range paths {
		for _, b := range [][]byte{nil, good[:100], append(bytes.Clone(good), 0), bad} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if faults := v.CheckHeaders(); len(faults) != 1 || filepath.Join(v.Dir(), faults[0].Path) != path || faults[0].Err == nil {
				t.Errorf("header %d: %v", i, faults)
			}
			if err := v.MendHeaders(); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, good) || len(v.CheckHeaders()) > 0 {
				t.Errorf("header %d is not what it was, %v", i, err)
			}
		}
	}
	for _, path := range paths {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.MendHeaders(); err == nil {
		t.Error("mended from nothing")
	}
	if b, err := os.ReadFile(paths[0]); err != nil || !bytes.Equal(b, bad) {
		t.Errorf("changed: %v", err)
	}
}

// TestSealFile makes the header of a known file ID, which opens as the file's.
func TestSealFile(t *testing.T) {
	v := unlocked(t)
	id := header.NewID()
	raw, _, err := v.SealFile(id, v.Header().KeyID)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := header.Parse(raw); err != nil || h.FileID != id || h.FormatVersion() != header.Version {
		t.Errorf("%+v, %v", h, err)
	}
	if _, err := v.OpenFile(t.Context(), raw); err != nil {
		t.Error(err)
	}
}
