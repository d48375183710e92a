package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInodeNumbersUsedAgain makes and removes files and directories in several directories at once. The file system below gives the inode number of what is removed in one of them to
// what is made in another at once, which must not be taken for what is being removed.
func TestInodeNumbersUsedAgain(t *testing.T) {
	const workers, rounds = 6, 120
	root := newVolume(t).mount(t)
	var group sync.WaitGroup
	for w := range workers {
		dir := filepath.Join(root, fmt.Sprint(w))
		must(t, os.Mkdir(dir, 0o755))
		group.Go(func() {
			for i := range rounds {
				if err := makeAndRemove(dir, fmt.Sprintf("%d, %d", w, i)); err != nil {
					t.Errorf("worker %d, round %d: %v", w, i, err)
					return
				}
			}
		})
	}
	group.Wait()
}

// makeAndRemove leaves dir as it was, empty. What it does is wrong if one of its names goes another way than it says.
func makeAndRemove(dir, content string) error {
	a, b, sub := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "sub")
	inSub := filepath.Join(sub, "a")
	steps := []struct {
		what string
		do   func() error
	}{
		{"write", func() error { return os.WriteFile(a, []byte(content), 0o644) }},
		{"write what is to be replaced", func() error { return os.WriteFile(b, []byte("old"), 0o644) }},
		{"replace", func() error { return os.Rename(a, b) }},
		{"look", func() error { return holds(b, content, 1) }},
		{"link", func() error { return os.Link(b, a) }},
		{"look at both", func() error { return holds(a, content, 2) }},
		{"remove one", func() error { return os.Remove(b) }},
		{"look at the other", func() error { return holds(a, content, 1) }},
		{"make a directory", func() error { return os.Mkdir(sub, 0o755) }},
		{"move into it", func() error { return os.Rename(a, inSub) }},
		{"look there", func() error { return holds(inSub, content, 1) }},
		{"remove while it is known", func() error { return removeKnown(inSub) }},
		{"remove the directory while it is known", func() error { return removeKnown(sub) }},
		{"have a file without a name", func() error { return nameless(dir) }},
		{"remove the empty directory", func() error { return os.Remove(dir) }},
		{"make it again", func() error { return os.Mkdir(dir, 0o755) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return nil
}

// holds checks content and number of links of a file.
func holds(path, content string, links uint64) error {
	b, err := os.ReadFile(path)
	if err != nil || string(b) != content {
		return fmt.Errorf("%q and not %q, %v", b, content, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Nlink != links {
		return fmt.Errorf("%d links and not %d, %v", st.Nlink, links, err)
	}
	return nil
}

// removeKnown removes what somebody has a path to, who sees it go.
func removeKnown(path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := os.Remove(path); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Nlink != 0 {
		return fmt.Errorf("%d links of what was removed, %v", st.Nlink, err)
	}
	return nil
}

// nameless has a file that never gets a name.
func nameless(dir string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// TestReplacedMeanwhile has other files and links take the names of those that a program has looked up and is about to open or to read: it gets what was there, as on ext4.
func TestReplacedMeanwhile(t *testing.T) {
	plain := newVolume(t).mount(t)
	path := func(name string) string { return filepath.Join(plain, name) }
	must(t, os.WriteFile(path("file"), []byte("old"), 0o644))
	long := strings.Repeat("long/", 700)
	must(t, os.Symlink("old", path("link")))
	must(t, os.Symlink(long, path("long")))
	found := func(name string) int {
		fd, err := unix.Open(path(name), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	file, link, longLink := found("file"), found("link"), found("long")
	must(t, os.WriteFile(path("new"), []byte("new"), 0o644))
	must(t, os.Rename(path("new"), path("file")))
	for _, name := range []string{"link", "long"} {
		must(t, os.Symlink("new", path("new")))
		must(t, os.Rename(path("new"), path(name)))
	}
	for range 2 {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", file)); err != nil || string(b) != "old" {
			t.Errorf("the file that was replaced: %q, %v", b, err)
		}
	}
	for fd, want := range map[int]string{link: "old", longLink: long} {
		b := make([]byte, 5000)
		if n, err := unix.Readlinkat(fd, "", b); err != nil || string(b[:n]) != want {
			t.Errorf("a link that was replaced: %.20q, %v", b[:max(n, 0)], err)
		}
		var st unix.Stat_t
		if err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH); err != nil || st.Nlink != 0 || st.Size != int64(len(want)) {
			t.Errorf("a link that was replaced has %d names and a size of %d, %v", st.Nlink, st.Size, err)
		}
	}
	shell(t, plain, `test "$(cat file)" = new; test "$(readlink link)" = new; test "$(readlink long)" = new`)
}
