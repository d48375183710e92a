package volume

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
)

// TestCurrentTampered has somebody with write access to the ciphertext, who may wrap under the CMKs, plant, cut, swap and take away the data key of new files. Nobody ever gets an older key without
// a word, no CMK is asked for what the volume's data key does not vouch for, and all files open.
func TestCurrentTampered(t *testing.T) {
	s := newSite(t, Params{})
	v := s.open()
	s.rotate(v)
	first := s.state()
	s.rotate(v)
	good := s.state()
	raw, _ := newFile(t, v)

	planted := func(volumeKey keyring.DataKey) []byte {
		dk, edks, err := s.ring.GenerateDataKey(t.Context(), 32, nil)
		if err != nil {
			t.Fatal(err)
		}
		h := &header.Header{Kind: header.Current, Algorithm: header.AES256GCM, SegmentSize: 4096, Size: v.Header().Size, FileID: v.Header().FileID, Generation: 9, EDKs: edks}
		h.Endorse(volumeKey, dk)
		raw, err := h.Seal(dk)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	own := keyring.NewDataKey(32) // the attacker's
	edited := func(at int) []byte {
		b := bytes.Clone(good[currentFile])
		b[at] ^= 1
		return b
	}
	used := func() int { h, _ := header.Parse(good[currentFile]); n, _ := h.Used(); return n }()
	other := newSite(t, Params{})
	ov := other.open()
	other.rotate(ov)
	fileHeader, _ := newFile(t, v)

	for name, b := range map[string][]byte{
		"missing": nil, "empty": {}, "cut": good[currentFile][:700], "extended": append(bytes.Clone(good[currentFile]), 0), "planted": planted(own), "another volume's": other.state()[currentFile],
		"the volume header": good[headerFile], "the header of a file": fileHeader, "EDK changed": edited(80), "MAC changed": edited(used - 1), "generation changed": edited(used - 32 - 32 - 32 - 1), "older": first[currentFile],
	} {
		// Beside a good one, on either side, it is worth a word.
		for _, side := range []string{currentFile, currentCopy} {
			s.restore(good)
			s.restore(map[string][]byte{side: b})
			v := s.open()
			if _, err := v.Current(); err != nil || v.Generation() != 2 {
				t.Errorf("%s as %s: generation %d, %v", name, side, v.Generation(), err)
			}
			if faults := v.CheckCurrent(); len(faults) != 1 || filepath.Base(faults[0].Path) != side {
				t.Errorf("%s as %s: %v", name, side, faults)
			}
			if err := v.MendCurrent(); err != nil || len(v.CheckCurrent()) > 0 || !bytes.Equal(s.state()[side], good[side]) {
				t.Errorf("%s as %s: %v", name, side, err)
			}
		}
		// Alone, it is refused.
		s.restore(good)
		s.restore(map[string][]byte{currentFile: b, currentCopy: b})
		s.a.calls()
		s.b.calls()
		v := s.open()
		_, asked := s.a.calls()
		if _, err := v.Current(); !errors.Is(err, ErrCurrent) && !errors.Is(err, ErrRolledBack) && !errors.Is(err, keyring.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
		if name != "EDK changed" && name != "MAC changed" && asked != 1 {
			t.Errorf("%s: %d unwraps, want that of the volume header alone", name, asked)
		}
		if _, _, err := v.NewFile(); !errors.Is(err, ErrNoKey) {
			t.Errorf("%s: a new file: %v, want ErrNoKey", name, err)
		}
		if v.CurrentKey() != (header.ID{}) {
			t.Errorf("%s: a current key", name)
		}
		if _, err := v.OpenFile(t.Context(), raw); err != nil {
			t.Errorf("%s: a file: %v", name, err)
		}
		if len(v.CheckCurrent()) == 0 || !errors.Is(v.MendCurrent(), ErrCurrent) {
			t.Errorf("%s: %v", name, v.CheckCurrent())
		}
		s.rotate(v) // which is the way out
		if v = s.open(); v.Generation() < 3 || len(v.CheckCurrent()) > 0 {
			t.Errorf("%s, rotated: generation %d, %v", name, v.Generation(), v.CheckCurrent())
		}
	}
}

// TestRolledBack puts all headers of the volume's own back as they were: only who has seen the newer generation can tell.
func TestRolledBack(t *testing.T) {
	s := newSite(t, Params{})
	never := s.state()
	v := s.open()
	s.rotate(v)
	first := s.state()
	s.rotate(v)
	for generation, state := range []map[string][]byte{never, first} {
		s.restore(state)
		v := s.open()
		if _, err := v.Current(); err != nil || v.Generation() != uint64(generation) {
			t.Errorf("who has seen nothing: generation %d, %v", v.Generation(), err)
		}
		v.Expect(2)
		if _, err := v.Current(); !errors.Is(err, ErrRolledBack) {
			t.Errorf("%v, want ErrRolledBack", err)
		}
		if _, _, err := v.NewFile(); !errors.Is(err, ErrRolledBack) {
			t.Errorf("a new file: %v, want ErrRolledBack", err)
		}
		if len(v.CheckCurrent()) == 0 {
			t.Error("no fault")
		}
		s.rotate(v)
		if v.Generation() != 3 {
			t.Errorf("rotated to generation %d", v.Generation())
		}
		newFile(t, v)
	}
	// One of the two volume headers is enough to know that there must be a data key.
	for _, name := range []string{headerFile, headerCopy} {
		s.restore(first)
		s.restore(map[string][]byte{name: never[name], currentFile: nil, currentCopy: nil})
		v := s.open()
		if _, err := v.Current(); err == nil {
			t.Errorf("%s of before: nothing is missed", name)
		}
	}
}
