package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/header"
)

// example is a manifest with an entry of each type.
func example(plain bool) []byte {
	b := Head{Volume: header.ID{1}, Header: Digest{2}, Time: someTime, Plain: plain}.append(nil)
	for _, e := range []Entry{
		{Type: Directory, Mode: 0o755, Plain: "/"},
		{Type: File, Path: "a b", Plain: "/\xff\n", Mode: 0o4644, UID: 4294967295, GID: 7, Size: 1 << 40, ID: header.ID{3}, Digest: Digest{4}, Xattrs: Digest{5}},
		{Type: Directory, Path: "d", Plain: "/d"},
		{Type: BlockDevice, Path: "d/b", Plain: "/d/b", Major: 8, Minor: 1},
		{Type: CharDevice, Path: `d/c\`, Plain: `/d/c\`},
		{Type: File, Path: "empty", Plain: "/empty"},
		{Type: Link, Path: "kmsfs.dir", Digest: Digest{6}},
		{Type: FIFO, Path: "p"}, {Type: Socket, Path: "s"},
	} {
		b = e.append(b, plain)
	}
	return append(b, "end 9\n"...)
}

// rewrite reads a manifest and writes it anew.
func rewrite(text []byte) ([]byte, error) {
	r, err := NewReader(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	out := r.Head().append(nil)
	n := 0
	for {
		e, err := r.Next()
		if err == io.EOF {
			return fmt.Appendf(out, "end %d\n", n), nil
		}
		if err != nil {
			return nil, err
		}
		n++
		out = e.append(out, r.Head().Plain)
	}
}

func TestText(t *testing.T) {
	for _, plain := range []bool{true, false} {
		text := example(plain)
		if got, err := rewrite(text); err != nil || !bytes.Equal(got, text) {
			t.Fatalf("%v\n%s", err, got)
		}
		for i := range text {
			for _, change := range []byte{'\n', ' ', '\\', text[i] ^ 0x20, text[i] + 1} {
				b := bytes.Clone(text)
				b[i] = change
				if got, err := rewrite(b); err == nil && !bytes.Equal(got, b) {
					t.Errorf("byte %d to %q: read as another text", i, change)
				} else if err != nil && !errors.Is(err, ErrFormat) {
					t.Errorf("byte %d to %q: %v", i, change, err)
				}
			}
			if _, err := rewrite(text[:i]); !errors.Is(err, ErrFormat) {
				t.Errorf("cut at %d: %v", i, err)
			}
		}
	}
}

// TestHostile has lines that nobody wrote with good intentions.
func TestHostile(t *testing.T) {
	head := string(Head{Time: someTime}.append(nil))
	root := "d 0755 0 0 - .\n"
	for name, text := range map[string]string{
		"nothing": "", "a head only": head, "no root": head + "p 0644 0 0 - p\nend 1\n", "no entry at all": head + "x\n",
		"two roots":                head + root + root + "end 2\n",
		"twice":                    head + root + "p 0644 0 0 - p\np 0644 0 0 - p\nend 3\n",
		"disorder":                 head + root + "p 0644 0 0 - q\np 0644 0 0 - p\nend 3\n",
		"wrong number":             head + root + "end 2\n",
		"after the end":            head + root + "end 1\nend 1\n",
		"up":                       head + root + "p 0644 0 0 - ../p\nend 2\n",
		"absolute":                 head + root + "p 0644 0 0 - /etc\nend 2\n",
		"two slashes":              head + root + "p 0644 0 0 - a//b\nend 2\n",
		"NUL":                      head + root + "p 0644 0 0 - a\\00\nend 2\n",
		"quoted for nothing":       head + root + "p 0644 0 0 - \\61\nend 2\n",
		"upper case":               head + root + "p 0644 0 0 - \\0A\nend 2\n",
		"half quoted":              head + root + "p 0644 0 0 - a\\0\nend 2\n",
		"mode too large":           head + root + "p 10644 0 0 - p\nend 2\n",
		"leading zero":             head + root + "p 0644 00 0 - p\nend 2\n",
		"negative":                 head + root + "p 0644 -1 0 - p\nend 2\n",
		"plus":                     head + root + "p 0644 +1 0 - p\nend 2\n",
		"size too large":           head + root + "f 0644 0 0 - 9223372036854775808 - - p\nend 2\n",
		"a field too many":         head + root + "p 0644 0 0 - p p\nend 2\n",
		"a field too few":          head + root + "p 0644 0 0 -\nend 2\n",
		"short digest":             head + root + "l 0644 0 0 - 00 p\nend 2\n",
		"digest of zeros":          head + root + "l 0644 0 0 - " + strings.Repeat("0", 64) + " p\nend 2\n",
		"unknown type":             head + root + "x 0644 0 0 - p\nend 2\n",
		"an endless line":          head + root + strings.Repeat("x", maxLine+1<<17),
		"a long path":              head + root + "p 0644 0 0 - " + strings.Repeat("a/", maxPath/2) + "aa\nend 2\n",
		"a long name":              head + root + "p 0644 0 0 - " + strings.Repeat("a", 256) + "\nend 2\n",
		"carriage return":          strings.ReplaceAll(head+root+"end 1\n", "\n", "\r\n"),
		"another version":          strings.Replace(head, "-1\n", "-2\n", 1) + root + "end 1\n",
		"a time in another form":   strings.Replace(head, "Z\n", "+00:00\n", 1) + root + "end 1\n",
		"neither plain nor sealed": strings.Replace(head, "sealed", "other", 1) + root + "end 1\n",
	} {
		if _, err := rewrite([]byte(text)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := rewrite([]byte(head + root + "end 1\n")); err != nil {
		t.Errorf("the least: %v", err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add(example(true))
	f.Add(example(false))
	f.Fuzz(func(t *testing.T, text []byte) {
		if got, err := rewrite(text); err == nil && !bytes.Equal(got, text) {
			t.Errorf("%q became %q", text, got)
		} else if err != nil && !errors.Is(err, ErrFormat) {
			t.Error(err)
		}
	})
}
