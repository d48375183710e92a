package journal

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A reuser is linux where inode numbers have no generation, and where a file whose number is to be used again seems to have no name.
type reuser struct {
	unnumbered
	gone bool
}

func (r *reuser) links(fd int) (uint64, error) {
	if r.gone {
		return 0, nil
	}
	return r.unnumbered.links(fd)
}

// TestReplayNumberUsedAgain deletes a file whose change is in the log, and lets a new one have its inode number, where numbers have no generation.
func TestReplayNumberUsedAgain(t *testing.T) {
	for _, name := range []string{"a", "b"} {
		for _, changed := range []bool{false, true} {
			t.Run(fmt.Sprint(name, changed), func(t *testing.T) {
				k := &reuser{}
				p := newPlaceOf(t, k)
				p.halt()
				f := p.durable("a")
				id := f.id
				if err := f.Release(); err != nil {
					t.Fatal(err)
				}
				k.gone = true
				p.j.Unlinked(id)
				k.gone = false
				if p.j.find(id) != nil {
					t.Fatal("the file was not given up")
				}
				// What a new file with its number would be.
				want := bytes.Repeat([]byte{3}, 7000)
				path := filepath.Join(p.dir, name)
				if err := os.Rename(filepath.Join(p.dir, "a"), path); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, want, 0o600); err != nil {
					t.Fatal(err)
				}
				if changed {
					p.write(p.file(name), 4, 1000, 100)
					copy(want[1000:], bytes.Repeat([]byte{4}, 100))
				}
				p.kill()
				p.open()
				p.kill()
				if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, want) {
					t.Errorf("the new file was changed (%d bytes, %v)", len(b), err)
				}
			})
		}
	}
}

// A refuser is a kernel that refuses every change of a file but the first few.
type refuser struct {
	kernel
	left int
}

func (r *refuser) allowed() error {
	if r.left == 0 {
		return unix.EIO
	}
	r.left--
	return nil
}

func (r *refuser) pwrite(fd int, p []byte, off int64) (int, error) {
	if err := r.allowed(); err != nil {
		return 0, err
	}
	return r.kernel.pwrite(fd, p, off)
}

func (r *refuser) ftruncate(fd int, size int64) error {
	if err := r.allowed(); err != nil {
		return err
	}
	return r.kernel.ftruncate(fd, size)
}

// TestReplayNewHeader cuts a file to nothing and writes it anew, so that it gets another file ID, and cuts the replay off after each of its calls, where the file can be known by its ID alone: in a
// copy of the volume, and after a move where inode numbers have no generation.
func TestReplayNewHeader(t *testing.T) {
	for _, copied := range []bool{true, false} {
		t.Run(fmt.Sprintf("copied %v", copied), func(t *testing.T) {
			cutOff := 0
			for calls := 0; ; calls++ {
				p := newPlaceOf(t, []kernel{unnumbered{}, linux{}}[slices.Index([]bool{false, true}, copied)])
				f := p.file("a")
				p.write(f, 1, 0, 5000)
				p.cut(f, 0)
				p.write(f, 2, 0, 3000)
				p.write(f, 2, 6000, 3000)
				p.kill()
				name, dir := "a", p.dir
				if copied {
					p.dir = t.TempDir()
					if err := os.CopyFS(p.dir, os.DirFS(dir)); err != nil {
						t.Fatal(err)
					}
				} else {
					name = "b"
					if err := os.Rename(filepath.Join(p.dir, "a"), filepath.Join(p.dir, name)); err != nil {
						t.Fatal(err)
					}
				}
				plain := p.options.kernel
				refusing := &refuser{plain, calls}
				p.options.kernel = refusing
				root, meta := openDir(t, p.dir), openDir(t, p.dir+"/.kmsfs")
				j, err := Open(root, meta, p.options)
				if err == nil {
					refusing.left = math.MaxInt
					err = j.Close()
					unix.Close(root)
					unix.Close(meta)
					if err != nil {
						t.Fatal(err)
					}
					break
				}
				unix.Close(root)
				unix.Close(meta)
				cutOff++
				p.options.kernel = plain
				p.open()
				p.kill()
				want := slices.Concat(bytes.Repeat([]byte{2}, 3000), make([]byte, 3000), bytes.Repeat([]byte{2}, 3000))
				if b, err := os.ReadFile(filepath.Join(p.dir, name)); err != nil || !bytes.Equal(b, want) {
					t.Errorf("cut off after %d calls: the change is lost (%d bytes, %v)", calls, len(b), err)
				}
			}
			if cutOff < 4 {
				t.Errorf("cut off only %d times", cutOff)
			}
		})
	}
}
