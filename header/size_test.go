package header

import (
	"errors"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

func TestSizeFor(t *testing.T) {
	// Without EDKs a header uses 56 + 4 + 1 + 64 bytes; each EDK here takes 6 and its wrapped key.
	const empty, each = 125, 6
	edks := func(total int) []keyring.EncryptedDataKey { // that make the header use total bytes
		n := (total-empty)/(each+MaxWrapped) + 1
		list := distinct(n, 1)
		rest := total - empty - n*(each+1)
		for i := range list {
			more := min(rest, MaxWrapped-1)
			list[i].Wrapped = make([]byte, 1+more)
			rest -= more
		}
		if rest != 0 {
			t.Fatalf("cannot make a header of %d bytes", total)
		}
		return list
	}
	steps := []int{1536, 3584, 7680, 15872, 32256, 65024}
	for i, size := range steps {
		for _, c := range []struct {
			used, want int
		}{{size - 513, size}, {size - 512, size}, {size - 511, append(steps, 0)[i+1]}, {size, append(steps, 0)[i+1]}} {
			h := &Header{Kind: Volume, Algorithm: AES256GCM, SegmentSize: 4096, EDKs: edks(c.used)}
			got, err := SizeFor(h)
			if got != c.want || (c.want == 0) != errors.Is(err, ErrBounds) {
				t.Errorf("%d bytes: %d, %v, want %d", c.used, got, err, c.want)
			}
			if c.want == 0 {
				continue
			}
			h.Size = got
			raw, err := h.Seal(keyring.NewDataKey(32))
			if err != nil || len(raw) != got {
				t.Fatalf("%d bytes: sealed %d, error %v", c.used, len(raw), err)
			}
			if used, err := h.Used(); used != c.used || err != nil {
				t.Fatalf("uses %d bytes, error %v, want %d", used, err, c.used)
			}
		}
	}
	if _, err := SizeFor(&Header{Kind: Volume, Algorithm: AES256GCM, SegmentSize: 4096}); !errors.Is(err, ErrBounds) {
		t.Errorf("no EDK: %v, want ErrBounds", err)
	}
}

func TestAlgorithms(t *testing.T) {
	want := map[Algorithm]struct {
		name string
		size int
	}{AES256GCM: {"aes-256-gcm", 32}, AES128GCM: {"aes-128-gcm", 16}, SM4128GCM: {"sm4-128-gcm", 16}}
	if len(Algorithms()) != len(want) {
		t.Errorf("%d algorithms, want %d", len(Algorithms()), len(want))
	}
	for _, a := range Algorithms() {
		if a.String() != want[a].name || a.KeySize() != want[a].size {
			t.Errorf("%d is %s with %d bytes, want %v", a, a, a.KeySize(), want[a])
		}
		if got, err := ParseAlgorithm(a.String()); got != a || err != nil {
			t.Errorf("ParseAlgorithm(%q) = %v, %v", a, got, err)
		}
		h := &Header{Kind: Volume, Algorithm: a, SegmentSize: 65536, PlaintextNames: true, Size: 512, FileID: NewID(), EDKs: distinct(1, 1)}
		dk := keyring.NewDataKey(a.KeySize())
		raw, err := h.Seal(dk)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := got.Verify(dk); err != nil || got.Algorithm != a || got.Kind != Volume || got.SegmentSize != 65536 || !got.PlaintextNames {
			t.Errorf("%v: parsed %+v, error %v", a, got, err)
		}
	}
	for _, name := range []string{"", "aes", "AES-256-GCM", "algorithm 0"} {
		if a, err := ParseAlgorithm(name); err == nil {
			t.Errorf("ParseAlgorithm(%q) = %v", name, a)
		}
	}
	if NewID() == NewID() {
		t.Error("two IDs are the same")
	}
}
