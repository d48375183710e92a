package integration

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTimesAreKept sets times that nothing may change afterwards: not the close that stores what a write into a hole has changed, nor a checkpoint, nor
// the replay of what was written before they were set.
func TestTimesAreKept(t *testing.T) {
	v := newVolume(t)
	plain, before := v.mount(t), time.Unix(1e9, 5)
	write := func(f *os.File, off int64) {
		t.Helper()
		_, err := f.WriteAt(make([]byte, 5000), off)
		must(t, err)
	}
	for name, change := range map[string]func(path string, f *os.File){
		"new":    func(_ string, f *os.File) { write(f, 300_000) },
		"hole":   func(_ string, f *os.File) { must(t, f.Truncate(1<<20)); must(t, f.Sync()); write(f, 300_000) },
		"synced": func(_ string, f *os.File) { write(f, 0); must(t, f.Sync()); write(f, 100); must(t, f.Sync()) },
		"closed": func(path string, f *os.File) {
			write(f, 0)
			must(t, f.Sync())
			must(t, os.WriteFile(path, []byte("another"), 0))
		},
	} {
		path := filepath.Join(plain, name)
		f, err := os.Create(path)
		must(t, err)
		change(path, f)
		must(t, os.Chtimes(path, before, before))
		must(t, f.Close())
	}
	check := func(when string) {
		t.Helper()
		sealed := v.sealedFiles(t)
		if len(sealed) != 4 {
			t.Fatalf("%d files", len(sealed))
		}
		for _, path := range sealed {
			// While a change is put in place, the time is another one.
			eventually(t, when+": "+path+" was modified when it was", func() bool {
				var st unix.Stat_t
				must(t, unix.Stat(path, &st))
				return time.Unix(st.Mtim.Unix()).Equal(before)
			})
		}
	}
	check("at close")
	v.killDaemon(t)
	v.mount(t)
	check("after a kill")
	v.umount(t)
	check("in the end")
}
