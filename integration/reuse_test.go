package integration

import (
	"fmt"
	"os"
	"path/filepath"
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
