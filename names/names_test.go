package names

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func keys(t testing.TB) *Keys {
	t.Helper()
	k, err := New(bytes.Repeat([]byte{1}, 32), [16]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestNames(t *testing.T) {
	k, dir, other := keys(t), [16]byte{1}, [16]byte{2}
	for _, n := range []int{1, 15, 16, 17, 174, 175, 176, 254, 255} {
		name := strings.Repeat("n", n)
		e, err := k.Name(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		again, _ := k.Name(dir, name)
		elsewhere, _ := k.Name(other, name)
		if e != again || e.Disk == elsewhere.Disk {
			t.Errorf("%d bytes: not deterministic, or the same in two directories", n)
		}
		if len(e.Disk) > maxName || e.Long != (n > 175) || IsSide(e.Disk) || IsLong(e.Disk) != e.Long {
			t.Errorf("%d bytes: stored as %q", n, e.Disk)
		}
		open := func(dir [16]byte, disk, sealed string) (string, error) {
			if e.Long {
				return k.OpenLong(dir, disk, sealed)
			}
			return k.Open(dir, disk)
		}
		if got, err := open(dir, e.Disk, e.Sealed); err != nil || got != name {
			t.Errorf("%d bytes: %q, %v", n, got, err)
		}
		if _, err := open(other, e.Disk, e.Sealed); !errors.Is(err, ErrAuth) {
			t.Errorf("%d bytes in another directory: %v", n, err)
		}
		for i := range e.Disk {
			bad := []byte(e.Disk)
			bad[i] ^= 1
			if _, err := open(dir, string(bad), e.Sealed); err == nil {
				t.Errorf("%d bytes: character %d changed: opens", n, i)
			}
		}
		for _, bad := range []string{e.Disk + "=", e.Disk + "\n", e.Disk + "A", e.Disk[1:]} {
			if _, err := open(dir, bad, e.Sealed); err == nil {
				t.Errorf("%d bytes: %q opens", n, bad)
			}
		}
	}
	if _, err := k.Name(dir, strings.Repeat("n", 256)); !errors.Is(err, ErrTooLong) {
		t.Errorf("256 bytes: %v", err)
	}
}

func TestDirID(t *testing.T) {
	k, id := keys(t), NewDirID()
	target := k.SealDirID(id)
	if got, err := k.OpenDirID(target); err != nil || got != id || len(target) != 43 {
		t.Errorf("%q: %v", target, err)
	}
	for i := range target {
		bad := []byte(target)
		bad[i] ^= 1
		if _, err := k.OpenDirID(string(bad)); !errors.Is(err, ErrAuth) {
			t.Errorf("character %d changed: %v", i, err)
		}
	}
}

func TestTargets(t *testing.T) {
	k := keys(t)
	for _, n := range []int{1, 2, 3, 100, 3038, 3039, 3040, 4095} {
		target := strings.Repeat("t", n)
		s := k.SealTarget(target)
		if s.Long() != (n > 3039) {
			t.Errorf("%d bytes: long is %v", n, s.Long())
		}
		if s.Long() {
			if got, err := k.OpenLongTarget(s.Blob); err != nil || got != target || len(s.Blob) != n+TargetOverhead {
				t.Errorf("%d bytes: %v", n, err)
			}
			continue
		}
		if size, long := TargetSize(len(s.Disk)); size != int64(n) || long {
			t.Errorf("%d bytes: size %d, %v", n, size, long)
		}
		if got, err := k.OpenTarget(s.Disk); err != nil || got != target {
			t.Errorf("%d bytes: %v", n, err)
		}
		for i := range min(len(s.Disk), 200) {
			bad := []byte(s.Disk)
			bad[i] ^= 1
			if _, err := k.OpenTarget(string(bad)); !errors.Is(err, ErrAuth) {
				t.Errorf("%d bytes, character %d changed: %v", n, i, err)
			}
		}
	}
	id := NewDirID()
	if got, ok := ParseLongTarget(LongTarget(id)); !ok || got != id {
		t.Error("long target")
	}
	if _, long := TargetSize(len(LongTarget(id))); !long {
		t.Error("the long form is not recognized by its length")
	}
}

func TestXattrs(t *testing.T) {
	k := keys(t)
	for _, full := range []string{"user.a", "trusted.overlay.opaque", "security.capability", "user." + strings.Repeat("x", 162), "user." + strings.Repeat("x", 163), "user." + strings.Repeat("x", 250)} {
		x, ok := k.XattrName(full)
		if !ok || len(x.Disk) > maxName {
			t.Fatalf("%s: %v, %q", full, ok, x.Disk)
		}
		for _, value := range []string{"", "v", strings.Repeat("v", 3000)} {
			sealed := k.SealXattr(x, []byte(value))
			if got, err := k.OpenXattr(x, sealed); err != nil || string(got) != value {
				t.Errorf("%s: %v", full, err)
			}
			if got, err := k.OpenXattrName(x.Disk, sealed); err != nil || got != full {
				t.Errorf("%s: name %q, %v", full, got, err)
			}
			for i := range sealed {
				sealed[i] ^= 1
				if _, err := k.OpenXattr(x, sealed); !errors.Is(err, ErrAuth) {
					t.Fatalf("%s: byte %d changed: %v", full, i, err)
				}
				sealed[i] ^= 1
			}
		}
	}
	for _, full := range []string{"system.posix_acl_access", "user.", "user", "other.x", "user." + strings.Repeat("x", 251)} {
		if _, ok := k.XattrName(full); ok {
			t.Errorf("%s is stored", full)
		}
	}
}

// FuzzOpen opens what an attacker may have stored.
func FuzzOpen(f *testing.F) {
	k := keys(f)
	for _, plain := range []string{"name", strings.Repeat("long", 60)} {
		e, err := k.Name([16]byte{}, plain)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(e.Disk, []byte(e.Sealed))
	}
	for _, full := range []string{"user.x", "user." + strings.Repeat("x", 240)} {
		x, _ := k.XattrName(full)
		f.Add(x.Disk, k.SealXattr(x, []byte("value")))
	}
	f.Add(k.SealDirID([16]byte{1}), k.SealTarget(strings.Repeat("t", 4000)).Blob)
	f.Add(k.SealTarget("target").Disk, []byte(nil))
	f.Add(LongTarget([16]byte{2}), []byte(nil))
	f.Fuzz(func(t *testing.T, disk string, value []byte) {
		if name, err := k.Open([16]byte{}, disk); err == nil {
			if e, err := k.Name([16]byte{}, name); err != nil || len(e.Disk) <= maxName && e.Disk != disk {
				t.Fatalf("%q opens as %q, which is stored as %q", disk, name, e.Disk)
			}
		}
		if name, err := k.OpenLong([16]byte{}, disk, string(value)); err == nil {
			if e, err := k.Name([16]byte{}, name); err != nil || e.Long && (e.Disk != disk || e.Sealed != string(value)) {
				t.Fatalf("%q opens as %q, which is stored as %q", disk, name, e.Disk)
			}
		}
		if id, err := k.OpenDirID(disk); err == nil && k.SealDirID(id) != disk {
			t.Fatalf("%q is a second spelling of a directory ID", disk)
		}
		if id, ok := ParseLongTarget(disk); ok && LongTarget(id) != disk {
			t.Fatalf("%q is a second spelling of a long target", disk)
		}
		_, _ = k.OpenTarget(disk)
		_, _ = k.OpenLongTarget(value)
		if full, err := k.OpenXattrName(disk, value); err == nil {
			x, ok := k.XattrName(full)
			if !ok || x.Disk != disk {
				t.Fatalf("%q opens as %q, which is stored as %q", disk, full, x.Disk)
			}
			_, _ = k.OpenXattr(x, value)
		}
		if entry, ok := SideOf(disk); ok && !IsSide(disk) || ok && !IsLong(entry) {
			t.Fatalf("%q is the side link of %q", disk, entry)
		}
	})
}

// FuzzSeal opens what it has sealed.
func FuzzSeal(f *testing.F) {
	k := keys(f)
	f.Add("name", "value")
	f.Add(strings.Repeat("n", 255), "")
	f.Add("user.x", strings.Repeat("v", 5000))
	f.Fuzz(func(t *testing.T, name, value string) {
		if e, err := k.Name([16]byte{3}, name); err == nil && name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00") {
			got, err := k.Open([16]byte{3}, e.Disk)
			if e.Long {
				got, err = k.OpenLong([16]byte{3}, e.Disk, e.Sealed)
			}
			if err != nil || got != name || len(e.Disk) > maxName {
				t.Fatalf("%q, stored as %q, opens as %q, %v", name, e.Disk, got, err)
			}
		}
		target := k.SealTarget(value)
		got, err := k.OpenTarget(target.Disk)
		if target.Long() {
			got, err = k.OpenLongTarget(target.Blob)
		} else if n, long := TargetSize(len(target.Disk)); value != "" && (long || n != int64(len(value))) { // no link has an empty target
			t.Fatalf("a target of %d bytes has %d by its stored length", len(value), n)
		}
		if err != nil || got != value {
			t.Fatalf("target %q opens as %q, %v", value, got, err)
		}
		if x, ok := k.XattrName(name); ok {
			sealed := k.SealXattr(x, []byte(value))
			full, err := k.OpenXattrName(x.Disk, sealed)
			if err != nil || full != name || len(x.Disk) > maxName {
				t.Fatalf("attribute %q opens as %q, %v", name, full, err)
			}
			if got, err := k.OpenXattr(x, sealed); err != nil || string(got) != value {
				t.Fatalf("value %q opens as %q, %v", value, got, err)
			}
		}
	})
}

func BenchmarkName(b *testing.B) {
	k := keys(b)
	for b.Loop() {
		if _, err := k.Name([16]byte{}, "a-usual-name.go"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	k := keys(b)
	e, err := k.Name([16]byte{}, "a-usual-name.go")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := k.Open([16]byte{}, e.Disk); err != nil {
			b.Fatal(err)
		}
	}
}

// TestIsXattr has attributes that are not entries of ours, such as the mark that a writer puts on files whose first bytes are not durable yet.
func TestIsXattr(t *testing.T) {
	for name, want := range map[string]bool{
		"user.kmsfs.abc": true, "user.kmsfs.#abc": true, "trusted.kmsfs.abc": true,
		"user.kmsfs-new": false, "user.kmsfs": false, "user.other": false, "trusted.overlay.opaque": false, "security.selinux": false, "system.posix_acl_access": false,
	} {
		if _, ok := IsXattr(name); ok != want {
			t.Errorf("IsXattr(%q) = %v", name, ok)
		}
	}
}
