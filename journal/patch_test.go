package journal

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// enter opens a file as somebody does who does not know who else has it open.
func (p *volume) enter(name string) *File {
	p.t.Helper()
	fd, err := unix.Open(filepath.Join(p.dir, name), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	f, err := p.j.Enter(fd, name)
	if err != nil {
		p.t.Fatal(err)
	}
	return f
}

// TestPatch changes the start of a file that is closed, that is open, and that is new; what is durable stays whole in place until the log has the change, and the modification time stays.
func TestPatch(t *testing.T) {
	p := newPlace(t)
	path := filepath.Join(p.dir, "a")
	old, changed := bytes.Repeat([]byte{1}, 3000), append(bytes.Repeat([]byte{9}, 512), bytes.Repeat([]byte{1}, 2488)...)
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	before := time.Unix(1577934245, 123456789)
	if err := os.Chtimes(path, before, before); err != nil {
		t.Fatal(err)
	}
	patch := func(f *File, b byte) {
		t.Helper()
		if err := f.Patch(512, func(old []byte) ([]byte, error) {
			if len(old) != 512 {
				t.Errorf("%d bytes", len(old))
			}
			return bytes.Repeat([]byte{b}, 512), nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	times := func(path string) {
		t.Helper()
		if st, err := os.Stat(path); err != nil || !st.ModTime().Equal(before) {
			t.Errorf("modified at %v, %v", st.ModTime(), err)
		}
	}
	f := p.enter("a")
	patch(f, 9)
	if err := f.Release(); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(path); !bytes.Equal(b, old) {
		t.Error("it was changed in place at once")
	}
	times(path)
	p.kill() // the log has it
	p.open()
	if b, _ := os.ReadFile(path); !bytes.Equal(b, changed) {
		t.Error("the change is lost")
	}
	times(path)

	opener := p.file("a")
	if f = p.enter("a"); f != opener {
		t.Error("two files for one inode")
	}
	patch(f, 8)
	if head, err := opener.Head(512); err != nil || head[0] != 8 {
		t.Errorf("%v, %v", head[:1], err)
	}
	for _, f := range []*File{f, opener} {
		if err := f.Release(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.j.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(path); b[0] != 8 || !bytes.Equal(b[512:], changed[512:]) {
		t.Error("the change is not in place")
	}
	times(path)
	if s := p.j.Status(); s.Open != 0 || s.Waiting != 0 || s.Bytes != 0 || s.Failed != "" {
		t.Errorf("%+v", s)
	}

	fresh := p.file("b")
	fresh.Begin()
	if _, err := fresh.WriteAt(old, 0); err != nil {
		t.Fatal(err)
	}
	fresh.End()
	seen := 0
	p.j.Each(func(f *File) {
		seen++
		patch(f, 7)
	})
	if b := content(t, fresh); seen != 1 || b[0] != 7 || !bytes.Equal(b[512:], old[512:]) {
		t.Errorf("%d open files, %d", seen, b[0])
	}
	if s := p.j.Status(); s.Open != 1 {
		t.Errorf("%+v", s)
	}
	if err := fresh.Release(); err != nil {
		t.Fatal(err)
	}
	p.kill()
}

// TestWatch tells of what moves, until it is told to stop.
func TestWatch(t *testing.T) {
	p := newPlace(t)
	defer p.kill()
	var moved []string
	move := func(name string) {
		defer p.j.Moving()()
		p.j.Moved(p.root, name)
	}
	move("before")
	stop := p.j.Watch(func(_ int, name string) { moved = append(moved, name) })
	move("during")
	stop()
	move("after")
	if len(moved) != 1 || moved[0] != "during" {
		t.Errorf("%v", moved)
	}
}
