package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/kmsfs/kmsfs/manifest"
)

// TestNoManifest signs no manifest as a file, not even one that takes the place of another text after that was looked at.
func TestNoManifest(t *testing.T) {
	for text, want := range map[string]error{
		"":                                     nil,
		"text":                                 nil,
		manifest.Magic[:len(manifest.Magic)-1]: nil,
		manifest.Magic:                         errManifest,
		manifest.Magic + "volume":              errManifest,
	} {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		r, err := noManifest(f)
		if !errors.Is(err, want) {
			t.Errorf("%q: %v", text, err)
		}
		if err != nil {
			continue
		}
		if err := os.WriteFile(path, []byte(manifest.Magic), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); err != nil || string(b) != text {
			t.Errorf("%q: read as %q, %v", text, b, err)
		}
	}
}
