package volume

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/keyring/keyringtest"
)

// TestCMKInfo keeps what is known of CMKs, and believes only what a holder of the data key wrote.
func TestCMKInfo(t *testing.T) {
	k := keyringtest.NewFake("a")
	made := func(info string) string {
		dir := filepath.Join(t.TempDir(), "cipher")
		p := Params{Algorithm: header.AES256GCM, SegmentSize: 4096}
		if info != "" {
			p.CMKInfo = func() []byte { return []byte(info) }
		}
		if _, err := Create(t.Context(), dir, p, k); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	info := func(dir string) ([]byte, error) {
		v := unlock(t, dir, k)
		return v.CMKInfo()
	}
	if got, err := info(made("")); got != nil || err != nil {
		t.Errorf("nothing kept: %q, %v", got, err)
	}
	dir := made("known")
	if got, err := info(dir); string(got) != "known" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := unlock(t, dir, k).SetCMKInfo([]byte("more")); err != nil {
		t.Fatal(err)
	}
	if got, err := info(dir); string(got) != "more" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	file := filepath.Join(dir, MetaDir, cmkInfoFile)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := os.ReadFile(filepath.Join(made("more"), MetaDir, cmkInfoFile))
	if err != nil {
		t.Fatal(err)
	}
	bad := [][]byte{nil, good[:10], good[:len(good)-1], append(bytes.Clone(good), 0), foreign}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 1
		bad = append(bad, b)
	}
	for _, b := range bad {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := info(dir); got != nil || !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %q, %v", b, got, err)
		}
	}
}

func unlock(t *testing.T, dir string, k keyring.Keyring) *Volume {
	t.Helper()
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

// liar gives back a wrong data key for the EDKs of one CMK, and is asked for them first.
type liar struct {
	keyring.Keyring
	cmk string
}

// DecryptDataKey implements [keyring.Keyring].
func (l liar) DecryptDataKey(ctx context.Context, edks []keyring.EncryptedDataKey, ec keyring.EncryptionContext) (keyring.DataKey, error) {
	for _, e := range edks {
		if e.CMK == l.cmk {
			return keyring.NewDataKey(32), nil
		}
	}
	return l.Keyring.DecryptDataKey(ctx, edks, ec)
}

// TestLyingCMK opens a volume although one CMK gives back another key than it wrapped.
func TestLyingCMK(t *testing.T) {
	k := failover.New([]failover.CMK{keyringtest.NewFake("a"), keyringtest.NewFake("b")}, failover.Options{})
	dir := filepath.Join(t.TempDir(), "cipher")
	h, err := Create(t.Context(), dir, Params{Algorithm: header.AES256GCM, SegmentSize: 4096}, k)
	if err != nil {
		t.Fatal(err)
	}
	unlock(t, dir, liar{k, h.EDKs[0].CMK})
	v, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if err := v.Unlock(t.Context(), liar{liar{k, h.EDKs[0].CMK}, h.EDKs[1].CMK}); !errors.Is(err, ErrDamaged) {
		t.Errorf("all lie: %v", err)
	}
}

// gate counts the unwraps that it lets wait until it is opened.
type gate struct {
	keyring.Keyring
	entered, open chan struct{}
	mu            sync.Mutex
	n             int
}

// DecryptDataKey implements [keyring.Keyring].
func (g *gate) DecryptDataKey(ctx context.Context, edks []keyring.EncryptedDataKey, ec keyring.EncryptionContext) (keyring.DataKey, error) {
	g.mu.Lock()
	g.n++
	g.mu.Unlock()
	select {
	case g.entered <- struct{}{}:
	default:
	}
	select {
	case <-g.open:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return g.Keyring.DecryptDataKey(ctx, edks, ec)
}

// TestSharedUnwrap lets the caller leave who began an unwrap that others wait for.
func TestSharedUnwrap(t *testing.T) {
	k := keyringtest.NewFake("a")
	dir := filepath.Join(t.TempDir(), "cipher")
	if _, err := Create(t.Context(), dir, Params{Algorithm: header.AES256GCM, SegmentSize: 4096}, k); err != nil {
		t.Fatal(err)
	}
	v := unlock(t, dir, k)
	raw, _, err := v.NewFile()
	if err != nil {
		t.Fatal(err)
	}
	// The same volume, as if it had another data key now.
	g := &gate{Keyring: k, entered: make(chan struct{}, 1), open: make(chan struct{})}
	v.keys.keyring = g
	v.keys.known = newKnown()
	ctx, leave := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := v.OpenFile(ctx, raw)
		first <- err
	}()
	<-g.entered
	others := make(chan error, 10)
	for range cap(others) {
		go func() {
			_, err := v.OpenFile(t.Context(), raw)
			others <- err
		}()
	}
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who leaves gets %v", err)
	}
	close(g.open)
	for range cap(others) {
		if err := <-others; err != nil {
			t.Error(err)
		}
	}
	if g.n != 1 {
		t.Errorf("%d unwraps, want 1", g.n)
	}
}
