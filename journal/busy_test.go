package journal

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// quick is linux, but syncs nothing: for tests that cut no power.
type quick struct{ linux }

func (quick) fdatasync(int) error { return nil }
func (quick) fsync(int) error     { return nil }
func (quick) syncfs(int) error    { return nil }

// TestBusy lets several goroutines change, sync, close, open and delete files beside checkpoints, in logs so small that they are full all the
// time. Each goroutine finds in its files what it wrote.
func TestBusy(t *testing.T) {
	p := &volume{t: t, dir: t.TempDir(), options: Options{kernel: quick{}, limits: limits{log: 128 << 10, save: 16 << 10, grow: 32 << 10}}}
	if err := os.Mkdir(filepath.Join(p.dir, ".kmsfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.open()
	var users, others sync.WaitGroup
	stop := make(chan struct{})
	errs := make(chan error, 16)
	again := func(fn func() error) {
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := fn(); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	again(p.j.Checkpoint)
	again(p.j.NextEpoch)
	again(func() error {
		var st unix.Stat_t
		_, _, err := p.j.Stat(func() Inode { return Inode{uint64(st.Dev), st.Ino} }, func() error {
			if err := unix.Stat(filepath.Join(p.dir, "0"), &st); err != unix.ENOENT {
				return err
			}
			return nil
		})
		p.j.Renamed()
		return err
	})
	for g := range 4 {
		users.Go(func() {
			if err := p.use(fmt.Sprint(g), rand.New(rand.NewPCG(uint64(g), 3))); err != nil {
				errs <- fmt.Errorf("%d: %w", g, err)
			}
		})
	}
	users.Wait()
	close(stop)
	others.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if err := p.j.Checkpoint(); err != nil {
		t.Error(err)
	}
	if err := p.j.Close(); err != nil {
		t.Error(err)
	}
}

// use works with one file.
func (p *volume) use(name string, rnd *rand.Rand) error {
	path := filepath.Join(p.dir, name)
	open := func() (*File, error) {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, err
		}
		return p.j.Open(fd, Inode{uint64(st.Dev), st.Ino}, true, func() string { return name })
	}
	f, err := open()
	if err != nil {
		return err
	}
	var want []byte
	for step := range 400 {
		switch rnd.IntN(12) {
		default:
			off, data := rnd.IntN(len(want)+1), make([]byte, 1+rnd.IntN(12<<10))
			for i := range data {
				data[i] = byte(step)
			}
			f.Begin()
			_, err = f.WriteAt(data, int64(off))
			f.End()
			if n := off + len(data) - len(want); n > 0 {
				want = append(want, make([]byte, n)...)
			}
			copy(want[off:], data)
		case 0:
			n := rnd.IntN(len(want) + 1)
			if n > 200<<10 {
				n = 0
			}
			f.Begin()
			err = f.Truncate(int64(n))
			f.End()
			want = want[:n:n]
		case 1:
			err = f.Sync(step%2 == 0)
		case 2:
			if err = f.Release(); err == nil {
				f, err = open()
			}
		case 3:
			if rnd.IntN(4) > 0 {
				continue
			}
			id := f.id
			if err = f.Release(); err == nil {
				err = os.Remove(path)
				p.j.Unlinked(id)
			}
			if err == nil {
				f, err = open()
			}
			want = nil
		case 4:
			err = p.j.Times(f.id, func() error { return os.Chmod(path, 0o600) })
		}
		if err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
		if got := content(p.t, f); !bytes.Equal(got, want) {
			return fmt.Errorf("step %d: %d bytes differ from %d", step, len(got), len(want))
		}
	}
	return f.Release()
}
