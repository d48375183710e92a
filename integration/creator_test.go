package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCreatorAndReaders writes to a file by the handle that created it, past the page cache, while others have it open: what is written is what they read
// next, from the page cache and through a mapping, and what they write is not lost.
func TestCreatorAndReaders(t *testing.T) {
	path := filepath.Join(newVolume(t).mount(t), "f")
	creator, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	must(t, err)
	defer creator.Close()
	const size = 200_000
	want := make([]byte, size)
	_, err = creator.Write(want)
	must(t, err)
	other, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer other.Close()
	mapped, err := unix.Mmap(int(other.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(mapped)
	rnd := rand.New(rand.NewPCG(1, 2))
	got := make([]byte, size)
	check := func(what string) {
		t.Helper()
		if !bytes.Equal(mapped, want) {
			t.Fatalf("after %s: the mapping differs", what)
		}
		if _, err := other.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("after %s: what is read differs, %v", what, err)
		}
	}
	check("the first write")
	for i := range 300 {
		off := rnd.IntN(size)
		p := bytes.Repeat([]byte{byte(i)}, 1+rnd.IntN(min(size-off, 9000)))
		what := fmt.Sprintf("change %d, %d bytes at %d", i, len(p), off)
		switch i % 3 {
		case 0, 1:
			_, err = creator.WriteAt(p, int64(off))
		case 2:
			_, err = other.WriteAt(p, int64(off))
		}
		must(t, err)
		copy(want[off:], p)
		if i%5 == 0 { // the mapping's turn
			mapped[off] = ^want[off]
			want[off] = ^want[off]
		}
		check(what)
	}
	must(t, creator.Truncate(100))
	_, err = creator.WriteAt([]byte("end"), 5000)
	must(t, err)
	want = append(append(append([]byte(nil), want[:100]...), make([]byte, 4900)...), "end"...)
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, want) || !bytes.Equal(mapped[:len(want)], want) {
		t.Errorf("after the file was cut: %d bytes, %v", len(b), err)
	}
}

// TestReadersRaceWithCreator has readers fill the page cache while the creator writes: none is left with an older content when it has written.
func TestReadersRaceWithCreator(t *testing.T) {
	v := newVolume(t)
	path := filepath.Join(v.mount(t), "f")
	creator, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	must(t, err)
	defer creator.Close()
	const size, readers, rounds = 16 << 10, 3, 400
	write := func(b byte) {
		_, err := creator.WriteAt(bytes.Repeat([]byte{b}, size), 0)
		must(t, err)
	}
	write(0)
	var stop atomic.Bool
	var group sync.WaitGroup
	for range readers {
		f, err := os.Open(path)
		must(t, err)
		defer f.Close()
		group.Go(func() {
			for p := make([]byte, size); !stop.Load(); {
				if _, err := f.ReadAt(p, 0); err != nil && err != io.EOF {
					t.Error(err)
					return
				}
				_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // so that the next read asks again
			}
		})
	}
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	for i := range rounds {
		write(byte(i))
		p := make([]byte, size)
		if _, err := f.ReadAt(p, 0); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{byte(i)}, size)) {
			t.Errorf("after write %d, read %d … %d, %v", i, p[0], p[size-1], err)
			break
		}
	}
	stop.Store(true)
	group.Wait()
}

// TestCreatorBesideMapping has the creator write to the same pages that somebody changes through a mapping: neither loses anything.
func TestCreatorBesideMapping(t *testing.T) {
	path := filepath.Join(newVolume(t).mount(t), "f")
	creator, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	must(t, err)
	defer creator.Close()
	const cell, cells, rounds = 256, 320, 4000 // of each cell, the creator has the first half
	want := make([]byte, cell*cells)
	_, err = creator.WriteAt(want, 0)
	must(t, err)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	var stop atomic.Bool
	var group sync.WaitGroup
	group.Go(func() {
		for rnd := rand.New(rand.NewPCG(1, 1)); !stop.Load(); {
			at := rnd.IntN(cells)*cell + cell/2
			want[at] = byte(rnd.Uint32())
			mapped[at] = want[at]
		}
	})
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range rounds {
		at := rnd.IntN(cells) * cell
		data := bytes.Repeat([]byte{byte(rnd.Uint32())}, cell/2)
		copy(want[at:], data)
		_, err := creator.WriteAt(data, int64(at))
		if p := make([]byte, len(data)); err == nil {
			if _, err = f.ReadAt(p, int64(at)); err == nil && !bytes.Equal(p, data) {
				err = fmt.Errorf("read %x after %x was written", p[0], data[0])
			}
		}
		if err != nil {
			t.Errorf("write %d: %v", i, err)
			break
		}
	}
	stop.Store(true)
	group.Wait()
	must(t, unix.Munmap(mapped))
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("at the end, the file is not what was written: %v", err)
	}
}

// TestCreatorSyncs changes new files by handles that ask for a sync of each change, or by writes that do: what the kernel leaves to the daemon.
func TestCreatorSyncs(t *testing.T) {
	const writes = 20
	v := newVolume(t)
	plain := v.mount(t)
	pid := strings.TrimSpace(shell(t, v.dir, `pgrep -f "^[^ ]*kmsfs mount.*`+v.cipher+`"`))
	for how, script := range map[string]string{
		"O_SYNC":  fmt.Sprintf(`dd if=/dev/zero of=sync bs=5000 count=%d oflag=sync status=none`, writes),
		"O_DSYNC": fmt.Sprintf(`dd if=/dev/zero of=dsync bs=5000 count=%d oflag=dsync status=none`, writes),
		"RWF_DSYNC": fmt.Sprintf(`/usr/bin/python3 -c "
import os
f = os.open('flag', os.O_WRONLY | os.O_CREAT | os.O_EXCL)
for i in range(%d): os.pwritev(f, [bytes(5000)], 5000 * i, os.RWF_DSYNC)"`, writes),
		"fallocate": fmt.Sprintf(`/usr/bin/python3 -c "
import os
f = os.open('allocated', os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_SYNC)
for i in range(%d): os.posix_fallocate(f, 5000 * i, 5000)"`, writes),
		"copy_file_range": fmt.Sprintf(`/usr/bin/python3 -c "
import os
g = os.open('source', os.O_RDWR | os.O_CREAT | os.O_EXCL)
os.write(g, bytes(5000))
f = os.open('copy', os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DSYNC)
for i in range(%d): os.copy_file_range(g, f, 5000, 0, 5000 * i)"`, writes),
	} {
		trace := filepath.Join(v.dir, how)
		must(t, os.WriteFile(trace+".sh", []byte(`strace -ff -qq -e signal=none -e trace=fsync,fdatasync -o `+trace+` -p `+pid+` & s=$!
			`+attached(pid)+`
			`+script+`
			kill $s; wait $s || true`), 0o755))
		shell(t, plain, "bash "+trace+".sh")
		if syncs := bytes.Count(traced(t, trace), []byte("sync(")); syncs < writes {
			t.Errorf("%s: %d writes were synced %d times", how, writes, syncs)
		}
	}
}

// TestCreatorLosesSetID has an ordinary user write to a set-user-ID program by the handle that created it, and run it: the kernel knows at once that it is none any more.
func TestCreatorLosesSetID(t *testing.T) {
	plain := newVolume(t).mount(t, "allow_other", "suid")
	must(t, os.Chmod(plain, 0o755))
	program, err := os.ReadFile("/usr/bin/id")
	must(t, err)
	path := filepath.Join(plain, "id")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	must(t, err)
	defer f.Close()
	_, err = f.Write(program[:1000])
	must(t, err)
	must(t, f.Chmod(0o755|os.ModeSetuid))
	const user = 1000
	as := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	write := exec.Command("sh", "-c", "cat >&3")
	write.SysProcAttr, write.Stdin, write.ExtraFiles = as, bytes.NewReader(program[1000:]), []*os.File{f}
	if out, err := write.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	must(t, f.Close())
	var out []byte
	eventually(t, "nobody holds the file for writing", func() bool {
		run := exec.Command(path, "-u")
		run.SysProcAttr = as
		out, err = run.CombinedOutput()
		return !errors.Is(err, unix.ETXTBSY)
	})
	if got := strings.TrimSpace(string(out)); err != nil || got != fmt.Sprint(user) {
		t.Errorf("it ran as user %q, %v", got, err)
	}
}
