package cipherdir_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring/keyringtest"
	"github.com/kmsfs/kmsfs/volume"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestLinksAreNotFollowed opens links to what could be opened, and a FIFO that nobody writes to.
func TestLinksAreNotFollowed(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o600))
	must(t, os.Symlink("d", filepath.Join(dir, "to d")))
	must(t, os.Symlink("f", filepath.Join(dir, "to f")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	top, err := cipherdir.OpenDir(unix.AT_FDCWD, dir)
	must(t, err)
	defer top.Close()
	fd := int(top.Fd())

	if _, err := cipherdir.OpenDir(fd, "to d"); err != unix.ENOTDIR && err != unix.ELOOP {
		t.Errorf("a link to a directory: %v", err)
	}
	for _, access := range []int{unix.O_RDONLY, unix.O_RDWR} {
		if _, err := cipherdir.OpenFile(fd, "to f", access); err != unix.ELOOP {
			t.Errorf("a link to a file: %v, want ELOOP", err)
		}
	}
	if _, err := cipherdir.CreateFile(fd, "to f"); err != unix.EEXIST {
		t.Errorf("a file in the place of a link: %v, want EEXIST", err)
	}
	if target, err := cipherdir.Readlink(fd, "to f"); err != nil || target != "f" {
		t.Errorf("the target: %q, %v", target, err)
	}
	fifo, err := cipherdir.OpenFile(fd, "fifo", unix.O_RDONLY)
	must(t, err)
	fifo.Close()
	f, err := cipherdir.OpenFile(fd, "f", unix.O_RDONLY)
	must(t, err)
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || string(b) != "content" {
		t.Errorf("read %q, %v", b, err)
	}
	if _, err := f.SeekData(7); err != io.EOF {
		t.Errorf("data at the end: %v, want EOF", err)
	}
}

// TestEachFile walks a volume's tree, past the volume's own files and past links out of it.
func TestEachFile(t *testing.T) {
	for _, plain := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "volume")
		_, err := volume.Create(t.Context(), dir, volume.Params{Algorithm: header.AES256GCM, SegmentSize: 4096, PlaintextNames: plain}, keyringtest.NewFake("fake:a"))
		must(t, err)
		v, err := volume.Open(dir)
		must(t, err)
		defer v.Close()
		out := t.TempDir()
		must(t, os.WriteFile(filepath.Join(out, "outside"), nil, 0o600))
		for _, d := range []string{"d/.kmsfs", "d/lost+found", "lost+found"} {
			must(t, os.MkdirAll(filepath.Join(dir, d), 0o700))
			must(t, os.WriteFile(filepath.Join(dir, d, "f"), nil, 0o600))
		}
		must(t, os.Symlink(out, filepath.Join(dir, "out")))
		want := []string{"d/.kmsfs/f", "d/lost+found/f"}
		if plain {
			want = append(want, "lost+found/f")
		}
		var got []string
		note := func(parent *os.File, name, path string) error {
			if _, err := os.Lstat(cipherdir.Path(parent, name)); err != nil {
				t.Error(err)
			}
			got = append(got, path)
			return nil
		}
		bad := func(path string, err error) { t.Errorf("%s: %v", path, err) }
		must(t, cipherdir.EachFile(t.Context(), v, note, bad))
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("found %q, want %q", got, want)
		}

		stop := errors.New("stop")
		if err := cipherdir.EachFile(t.Context(), v, func(*os.File, string, string) error { return stop }, bad); err != stop {
			t.Errorf("error %v, want that of the first file", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := cipherdir.EachFile(ctx, v, note, bad); err != context.Canceled {
			t.Errorf("error %v, want that of the context", err)
		}
	}
}
