package volume

import (
	"errors"
	"testing"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
)

func perFile(t *testing.T) *site {
	t.Helper()
	return newSite(t, Params{Algorithm: header.SM4128GCM, SegmentSize: 4096, PerFile: true})
}

// TestPerFile gives every file a data key of its own, with one call that makes it and a wrap for each further CMK, and one unwrap when it is not known any more.
func TestPerFile(t *testing.T) {
	s := perFile(t)
	v := s.open()
	s.a.calls()
	if !v.Header().PerFile || v.CurrentKey() != (header.ID{}) {
		t.Fatalf("%+v", v.Header())
	}
	const n = 20
	keys := map[header.ID]bool{}
	var files [][]byte
	for range n {
		raw, h := newFile(t, v)
		files, keys[h.KeyID] = append(files, raw), true
	}
	a, unwraps := s.a.calls()
	b, _ := s.b.calls()
	if len(keys) != n || a != n || b != n || unwraps != 0 {
		t.Errorf("%d data keys, %d and %d wraps, %d unwraps", len(keys), a, b, unwraps)
	}
	open := func(want int64) {
		t.Helper()
		for _, raw := range files {
			if _, err := v.OpenFile(t.Context(), raw); err != nil {
				t.Error(err)
			}
		}
		if _, unwraps := s.a.calls(); unwraps != want {
			t.Errorf("%d unwraps, want %d", unwraps, want)
		}
	}
	open(0)
	v = s.open()
	s.a.calls()
	open(n)
	open(0)
}

// TestReady asks CMKs before the lock is taken under which the header is made, once for each incarnation of a file; what was made before the CMKs of the volume changed is not used.
func TestReady(t *testing.T) {
	s := perFile(t)
	v := s.open()
	supply := v.Supply()
	s.a.calls()
	for range 3 {
		if err := supply.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if wraps, _ := s.a.calls(); wraps != 1 {
		t.Errorf("%d calls to be ready", wraps)
	}
	if _, _, err := supply.NewFile(); err != nil {
		t.Fatal(err)
	}
	if wraps, _ := s.a.calls(); wraps != 0 {
		t.Errorf("%d calls under a lock", wraps)
	}
	if err := supply.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := v.SetEDKs(v.Header().EDKs[1:]); err != nil {
		t.Fatal(err)
	}
	raw, _, err := supply.NewFile()
	if err != nil {
		t.Fatal(err)
	}
	if h, err := header.Parse(raw); err != nil || len(h.EDKs) != 1 || h.EDKs[0].CMK != "fake:b" {
		t.Errorf("%+v, %v", h, err)
	}

	s.b.down.Store(true)
	if err := v.Supply().Ready(t.Context()); !errors.Is(err, ErrNoKey) || !errors.Is(err, keyring.ErrDenied) {
		t.Errorf("%v, want ErrNoKey", err)
	}
	if _, _, err := v.NewFile(); !errors.Is(err, ErrNoKey) {
		t.Errorf("%v, want ErrNoKey", err)
	}
	// Where files share a data key nobody is asked.
	shared := newSite(t, Params{}).open().Supply()
	if shared.Asks() || shared.Ready(t.Context()) != nil {
		t.Error("a volume whose files share a data key asks")
	}
}

// TestKnownIsBounded makes more files than data keys are remembered.
func TestKnownIsBounded(t *testing.T) {
	s := perFile(t)
	v := s.open()
	kept, _ := newFile(t, v)
	for range maxKnown - 2 { // the volume has one
		newFile(t, v)
	}
	if v.Forgets() {
		t.Error("it forgets what it could keep")
	}
	first, _ := newFile(t, v)
	if !v.Forgets() {
		t.Error("it does not tell that it forgets")
	}
	for range maxKnown - 1 {
		newFile(t, v)
	}
	if _, err := v.OpenFile(t.Context(), first); err != nil { // used again: it stays
		t.Fatal(err)
	}
	for range 10 {
		newFile(t, v)
	}
	k := v.keys.known
	if len(k.kept) != maxKnown || len(k.others) != maxKnown || k.recent.Len() != maxKnown {
		t.Errorf("%d, %d and %d data keys", len(k.kept), len(k.others), k.recent.Len())
	}
	s.a.calls()
	for _, raw := range [][]byte{kept, first} {
		if _, err := v.OpenFile(t.Context(), raw); err != nil {
			t.Fatal(err)
		}
	}
	if _, unwraps := s.a.calls(); unwraps != 0 {
		t.Error("what is kept or used is forgotten")
	}
	dk := k.get(v.keys.volume)
	k.wipe()
	if k.get(v.keys.volume) != nil || string(dk) != string(make([]byte, len(dk))) {
		t.Error("a data key is left")
	}
}
