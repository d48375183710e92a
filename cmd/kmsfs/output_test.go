package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOutput gives a complete file its name, from none or from a temporary one, where something has that name or not.
func TestOutput(t *testing.T) {
	for _, nameless := range []bool{true, false} {
		for _, force := range []bool{true, false} {
			for _, taken := range []bool{true, false} {
				dir := t.TempDir()
				create := namedFile
				if nameless {
					create = tempFile
				}
				o, err := newOutput(create, filepath.Join(dir, "out"), force)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := o.Write([]byte("new")); err != nil {
					t.Fatal(err)
				}
				want := "new"
				if taken { // in the meantime
					if err := os.WriteFile(o.name, []byte("old"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				err = o.commit()
				if taken && !force {
					want = "old"
					if !errors.Is(err, unix.EEXIST) {
						t.Errorf("nameless %t: %v", nameless, err)
					}
				} else if err != nil {
					t.Errorf("nameless %t, force %t, taken %t: %v", nameless, force, taken, err)
				}
				o.discard()
				if b, err := os.ReadFile(o.name); err != nil || string(b) != want {
					t.Errorf("nameless %t, force %t, taken %t: %q, %v", nameless, force, taken, b, err)
				}
				if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
					t.Errorf("nameless %t, force %t, taken %t: %v, %v", nameless, force, taken, entries, err)
				}
			}
		}
	}
}
