package journal

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A volume is a ciphertext directory of a test.
type volume struct {
	t    *testing.T
	dir  string
	root int
	meta int
	j    *Journal

	options Options
}

func newPlace(t *testing.T) *volume { return newPlaceOf(t, nil) }

func newPlaceOf(t *testing.T, k kernel) *volume {
	p := &volume{t: t, dir: t.TempDir(), options: Options{kernel: k}}
	if err := os.Mkdir(filepath.Join(p.dir, ".kmsfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.open()
	return p
}

func (p *volume) open() {
	p.t.Helper()
	var err error
	if p.root, err = unix.Open(p.dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		p.t.Fatal(err)
	}
	if p.meta, err = unix.Open(p.dir+"/.kmsfs", unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		p.t.Fatal(err)
	}
	if p.j, err = Open(p.root, p.meta, p.options); err != nil {
		p.t.Fatal(err)
	}
}

// halt stops what the journal does by itself.
func (p *volume) halt() {
	if p.j.stop != nil {
		close(p.j.stop)
		p.j.done.Wait()
		p.j.stop = nil
	}
}

// kill ends the journal as a killed process would: nothing is put in place.
func (p *volume) kill() {
	p.halt()
	for _, f := range p.j.files {
		unix.Close(f.fd)
	}
	p.j.closeLogs()
	unix.Close(p.root)
	unix.Close(p.meta)
}

func (p *volume) file(name string) *File {
	p.t.Helper()
	fd, err := unix.Open(filepath.Join(p.dir, name), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		p.t.Fatal(err)
	}
	f, err := p.j.Open(fd, Inode{uint64(st.Dev), st.Ino}, true, func() string { return name })
	if err != nil {
		p.t.Fatal(err)
	}
	return f
}

// write writes n bytes b and syncs the file.
func (p *volume) write(f *File, b byte, off, n int64) {
	p.t.Helper()
	f.Begin()
	_, err := f.WriteAt(bytes.Repeat([]byte{b}, int(n)), off)
	f.End()
	if err := errors.Join(err, f.Sync(false)); err != nil {
		p.t.Fatal(err)
	}
}

// cut changes the size.
func (p *volume) cut(f *File, size int64) {
	p.t.Helper()
	f.Begin()
	err := f.Truncate(size)
	f.End()
	if err != nil {
		p.t.Fatal(err)
	}
}

func content(t *testing.T, f *File) []byte {
	t.Helper()
	size, _ := f.Size()
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); int64(n) != size || err != nil && err != io.EOF {
		t.Fatalf("read %d of %d: %v", n, size, err)
	}
	return b
}

// numbered is linux where inode numbers have a generation, which not every file system has: files are found under other names.
type numbered struct{ linux }

func (numbered) version(int) (uint32, error) { return 1, nil }

// TestRandom makes random changes to files beside a model, with saves, syncs, checkpoints, epochs, renames and killed processes in between; after a kill a
// file is as it was at its last save or sync, or later. The first bytes of a file are its header, which stays.
func TestRandom(t *testing.T) {
	for seed := range uint64(12) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		p := newPlaceOf(t, []kernel{numbered{}, unnumbered{}}[seed%2])
		names := []string{"a", "b", "c"}
		model := map[string][]byte{}
		files := map[string]*File{}
		for _, n := range names {
			files[n] = p.file(n)
			model[n] = bytes.Repeat([]byte(n), 64)
			files[n].Begin()
			if _, err := files[n].WriteAt(model[n], 0); err != nil {
				t.Fatal(err)
			}
			files[n].End()
		}
		for step := range 300 {
			name := names[rnd.IntN(len(names))]
			f, m := files[name], model[name]
			limit := int64(len(m)) + 3000
			if rnd.IntN(40) == 0 {
				limit = growInMemory + 100_000
			}
			off := 64 + rnd.Int64N(limit)
			n := 1 + rnd.Int64N(2000)
			op := rnd.IntN(12)
			switch op {
			case 0, 1, 2, 3, 4:
				data := make([]byte, n)
				for i := range data {
					data[i] = byte(rnd.Uint32())
				}
				f.Begin()
				if _, err := f.WriteAt(data, off); err != nil {
					t.Fatal(err)
				}
				f.End()
				if int64(len(m)) < off+n {
					m = append(m, make([]byte, off+n-int64(len(m)))...)
				}
				copy(m[off:], data)
			case 5:
				f.Begin()
				if err := f.Truncate(off); err != nil {
					t.Fatal(err)
				}
				f.End()
				if off <= int64(len(m)) {
					m = m[:off:off]
				} else {
					m = append(m, make([]byte, off-int64(len(m)))...)
				}
			case 6:
				if off >= int64(len(m)) {
					continue
				}
				n = min(n, int64(len(m))-off)
				f.Begin()
				if err := f.PunchHole(off, n); err != nil {
					t.Fatal(err)
				}
				f.End()
				clear(m[off : off+n])
			case 7:
				if err := f.Sync(rnd.IntN(2) == 0); err != nil {
					t.Fatal(err)
				}
			case 8:
				if err := p.j.Checkpoint(); err != nil {
					t.Fatal(err)
				}
			case 9:
				if err := p.j.NextEpoch(); err != nil {
					t.Fatal(err)
				}
			case 10: // closed and opened again
				if err := f.Release(); err != nil {
					t.Fatal(err)
				}
				if rnd.IntN(3) == 0 {
					other := name + "x"
					if err := os.Rename(filepath.Join(p.dir, name), filepath.Join(p.dir, other)); err != nil {
						t.Fatal(err)
					}
					if err := os.Rename(filepath.Join(p.dir, other), filepath.Join(p.dir, name)); err != nil {
						t.Fatal(err)
					}
					p.j.Renamed()
				}
				files[name] = p.file(name)
			case 11:
				if rnd.IntN(4) > 0 {
					continue
				}
				for _, n := range names {
					if err := files[n].Save(); err != nil {
						t.Fatal(err)
					}
				}
				p.kill()
				if rnd.IntN(2) == 0 { // somebody moved the files meanwhile
					if err := os.Mkdir(filepath.Join(p.dir, "d"), 0o700); err != nil {
						t.Fatal(err)
					}
					for _, n := range names {
						if err := os.Rename(filepath.Join(p.dir, n), filepath.Join(p.dir, "d", n)); err != nil {
							t.Fatal(err)
						}
					}
					p.open()
					for _, n := range names {
						if err := os.Rename(filepath.Join(p.dir, "d", n), filepath.Join(p.dir, n)); err != nil {
							t.Fatal(err)
						}
					}
					if err := os.Remove(filepath.Join(p.dir, "d")); err != nil {
						t.Fatal(err)
					}
				} else {
					p.open()
				}
				for _, n := range names {
					files[n] = p.file(n)
				}
				model[name] = m
			}
			model[name] = m
			if op < 8 && step%16 > 0 {
				continue
			}
			for n, f := range files {
				if got := content(t, f); !bytes.Equal(got, model[n]) {
					t.Fatalf("seed %d: %s has %d bytes that differ from the model's %d", seed, n, len(got), len(model[n]))
				}
			}
		}
		for _, f := range files {
			if err := f.Release(); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.j.Close(); err != nil {
			t.Fatal(err)
		}
		for n, m := range model {
			if got, err := os.ReadFile(filepath.Join(p.dir, n)); err != nil || !bytes.Equal(got, m) {
				t.Fatalf("seed %d: %s in place has %d bytes that differ from %d, %v", seed, n, len(got), len(m), err)
			}
		}
	}
}

// logs returns the log that is written to, the other one, and whether that is being emptied.
func (p *volume) logs() (active, other *log, draining bool) {
	p.j.mu.Lock()
	defer p.j.mu.Unlock()
	return p.j.logs[p.j.active], p.j.logs[1-p.j.active], p.j.draining
}
