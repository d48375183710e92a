package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestSizesStayFresh has files changed while others look them up, by two names and in listings: an answer from before a change that arrives
// after it would stay with the kernel for a day.
func TestSizesStayFresh(t *testing.T) {
	v := newVolume(t)
	plain := v.mount(t)
	const files, rounds = 6, 300
	for _, d := range []string{"one", "two"} {
		must(t, os.Mkdir(filepath.Join(plain, d), 0o755))
	}
	name := func(dir string, i int) string { return filepath.Join(plain, dir, fmt.Sprint("f", i)) }
	want := make([]int64, files)
	errs := make([]error, files)
	for i := range files {
		must(t, os.WriteFile(name("one", i), nil, 0o644))
		must(t, os.Link(name("one", i), name("two", i)))
	}
	stop := make(chan struct{})
	var lookers, writers sync.WaitGroup
	for _, dir := range []string{"one", "two"} {
		lookers.Go(func() {
			extra := filepath.Join(plain, dir, "extra")
			for {
				select {
				case <-stop:
					return
				default:
				}
				// A change of the directory makes the kernel list it again, with attributes.
				_ = os.WriteFile(extra, nil, 0o644)
				_, _ = os.ReadDir(filepath.Join(plain, dir))
				for i := range files {
					_, _ = os.Stat(name(dir, i))
				}
				_ = os.Remove(extra)
				_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0) // makes the kernel forget inodes, where it may
			}
		})
	}
	for i := range files {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			for round := range rounds {
				path := name([]string{"one", "two"}[rng.IntN(2)], i)
				size := rng.Int64N(30000)
				f, err := os.OpenFile(path, os.O_RDWR, 0)
				if err == nil {
					if rng.IntN(3) == 0 {
						err = f.Truncate(0)
					}
					if err == nil && size > 0 {
						_, err = f.WriteAt([]byte{1}, size-1)
					}
					if err == nil {
						err = f.Truncate(size)
					}
					if cerr := f.Close(); err == nil {
						err = cerr
					}
				}
				if err != nil {
					errs[i] = err
					return
				}
				want[i] = size
				for _, dir := range []string{"one", "two"} {
					st, err := os.Stat(name(dir, i))
					if err != nil || st.Size() != size {
						errs[i] = fmt.Errorf("round %d: %s/f%d: size %v, want %d, %v", round, dir, i, st, size, err)
						return
					}
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	lookers.Wait()
	for i := range files {
		must(t, errs[i])
		b, err := os.ReadFile(name("two", i))
		if err != nil || int64(len(b)) != want[i] {
			t.Errorf("f%d: read %d bytes, want %d, %v", i, len(b), want[i], err)
		}
	}
}
