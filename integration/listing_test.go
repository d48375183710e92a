package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestListingBegunAfterChange lists a directory while another listing of it, which began before the last change, goes on: what there was when a listing began is in it, and what was gone is not.
func TestListingBegunAfterChange(t *testing.T) {
	const rounds, files = 150, 800
	dir := filepath.Join(newVolume(t).mount(t), "dir")
	must(t, os.Mkdir(dir, 0o755))
	for i := range files {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), nil, 0o644))
	}
	rnd := rand.New(rand.NewPCG(1, 0))
	sizes := []int{300, 4096, 32 << 10}
	// Half of the listings go on by turns.
	list := func(l, other *dirReader) (all []string) {
		size, turns := sizes[1+rnd.IntN(2)], rnd.IntN(2) == 0
		for {
			some := l.next(t, size)
			if len(some) == 0 {
				return all
			}
			all = append(all, some...)
			if turns {
				other.next(t, size)
			}
		}
	}
	goOn := func(l *dirReader) {
		for range rnd.IntN(6) {
			l.next(t, sizes[rnd.IntN(len(sizes))])
		}
	}
	for round := range rounds {
		older, l := openDirectory(t, dir), openDirectory(t, dir)
		want := func(what string, found bool, count int) {
			t.Helper()
			all := list(l, older)
			if got := slices.Contains(all, "new"); got != found || len(all) != count {
				t.Errorf("round %d, %s: %d entries and not %d, with the new one: %v", round, what, len(all), count, got)
			}
			l.rewind(t)
		}
		goOn(older)
		must(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o644))
		goOn(older)
		want("made", true, files+1)
		goOn(older)
		want("begun anew", true, files+1)
		must(t, os.Remove(filepath.Join(dir, "new")))
		goOn(older)
		want("removed", false, files)
		older.close(t)
		l.close(t)
	}
}

// TestListingBegunAfterChangeAmongMany is TestListingBegunAfterChange for a listing that rests while so many other directories are listed that the daemon has given it up.
func TestListingBegunAfterChangeAmongMany(t *testing.T) {
	const others, files = 80, 800
	m := newVolume(t).mount(t)
	dir := filepath.Join(m, "dir")
	must(t, os.Mkdir(dir, 0o755))
	for i := range files {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), nil, 0o644))
	}
	for i := range others {
		must(t, os.Mkdir(filepath.Join(m, fmt.Sprint("other", i)), 0o755))
	}
	rnd := rand.New(rand.NewPCG(3, 0))
	for round := range 60 {
		older := openDirectory(t, dir)
		for range 1 + rnd.IntN(4) {
			older.next(t, 4096)
		}
		for i := range others {
			other := openDirectory(t, filepath.Join(m, fmt.Sprint("other", i)))
			other.next(t, 4096)
			other.close(t)
		}
		name := filepath.Join(dir, fmt.Sprint("new", round))
		must(t, os.WriteFile(name, nil, 0o644))
		l := openDirectory(t, dir)
		var all []string
		for range rnd.IntN(2) {
			all = append(all, l.next(t, 4096)...)
		}
		for len(older.next(t, 32<<10)) > 0 { // now the kernel has a listing that began before the change
		}
		for some := l.next(t, 4096); len(some) > 0; some = l.next(t, 4096) {
			all = append(all, some...)
		}
		if !slices.Contains(all, filepath.Base(name)) || len(all) != files+1 {
			t.Errorf("round %d: %d entries and not %d, with the new one: %v", round, len(all), files+1, slices.Contains(all, filepath.Base(name)))
		}
		must(t, os.Remove(name))
		older.close(t)
		l.close(t)
	}
}

// TestListingGoesOnWithNothingOld has two listings come to the same place, one of which began before a change: the other does not go on with what was read then.
func TestListingGoesOnWithNothingOld(t *testing.T) {
	const files, rounds, news = 800, 12, 3
	dir := filepath.Join(newVolume(t).mount(t), "dir")
	must(t, os.Mkdir(dir, 0o755))
	for i := range files {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), nil, 0o644))
	}
	for round := range rounds {
		older := openDirectory(t, dir)
		older.next(t, 4096)
		for i := range news {
			must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("new", round, "-", i)), nil, 0o644))
		}
		l := openDirectory(t, dir)
		all := l.next(t, 4096)
		older.next(t, 4096) // from the same place on, unless a new one comes before it
		for some := l.next(t, 4096); len(some) > 0; some = l.next(t, 4096) {
			all = append(all, some...)
		}
		if want := files + (round+1)*news; len(all) != want {
			t.Errorf("round %d: %d entries, want %d", round, len(all), want)
		}
		older.close(t)
		l.close(t)
	}
}

// TestLongListingWhileItChanges lists a directory that is read ahead while entries of it come and go, by several at once, some of whom begin anew or leave: what is there all the time is listed once.
func TestLongListingWhileItChanges(t *testing.T) {
	const files, rounds = 4000, 8
	dir := filepath.Join(newVolume(t).mount(t), "dir")
	must(t, os.Mkdir(dir, 0o755))
	for i := range files {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("stays", i)), nil, 0o644))
	}
	listed := make(chan struct{})
	var changing, listing sync.WaitGroup
	changing.Go(func() {
		for i := 0; ; i++ {
			name := filepath.Join(dir, fmt.Sprint("goes", i%50))
			if err := os.WriteFile(name, nil, 0o644); err != nil {
				t.Error(err)
				return
			}
			if i%2 == 0 {
				if err := os.Rename(name, name+"on"); err != nil {
					t.Error(err)
				}
				name += "on"
			}
			if err := os.Remove(name); err != nil {
				t.Error(err)
			}
			select {
			case <-listed:
				return
			default:
			}
		}
	})
	for one := range 3 {
		listing.Go(func() {
			rnd := rand.New(rand.NewPCG(2, uint64(one)))
			l := &dirReader{-1}
			for range rounds {
				fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Error(err)
					return
				}
				l.fd = fd
				for range rnd.IntN(12) {
					if _, err := l.some(4096); err != nil {
						t.Error(err)
					}
				}
				if rnd.IntN(3) > 0 {
					if _, err := unix.Seek(fd, 0, 0); err != nil {
						t.Error(err)
					}
					checkStays(t, l, []int{4096, 8192, 32 << 10}[rnd.IntN(3)], files)
				}
				if err := unix.Close(fd); err != nil {
					t.Error(err)
				}
			}
		})
	}
	listing.Wait()
	close(listed)
	changing.Wait()
}

// checkStays lists a directory from where l is, by answers of a size.
func checkStays(t *testing.T, l *dirReader, size, files int) {
	times := make(map[string]int)
	for {
		some, err := l.some(size)
		if err != nil {
			t.Error(err)
			return
		}
		if len(some) == 0 {
			break
		}
		for _, name := range some {
			times[name]++
		}
	}
	for i := range files {
		if n := times[fmt.Sprint("stays", i)]; n != 1 {
			t.Errorf("stays%d is listed %d times", i, n)
		}
	}
}

// A dirReader lists a directory by as many bytes of entries at a time as it is told.
type dirReader struct{ fd int }

func openDirectory(t *testing.T, dir string) *dirReader {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	return &dirReader{fd}
}

// next returns the next names but . and .., none at the end.
func (d *dirReader) next(t *testing.T, size int) (names []string) {
	t.Helper()
	names, err := d.some(size)
	must(t, err)
	return names
}

// some is next for other goroutines than the test's. What the kernel lists at once may be but . or ..
func (d *dirReader) some(size int) (names []string, err error) {
	buf := make([]byte, size)
	for {
		n, err := unix.Getdents(d.fd, buf)
		if err != nil || n == 0 {
			return nil, err
		}
		if _, _, names = unix.ParseDirent(buf[:n], -1, nil); len(names) > 0 {
			return names, nil
		}
	}
}

func (d *dirReader) rewind(t *testing.T) {
	t.Helper()
	_, err := unix.Seek(d.fd, 0, 0)
	must(t, err)
}

func (d *dirReader) close(t *testing.T) {
	t.Helper()
	must(t, unix.Close(d.fd))
}
