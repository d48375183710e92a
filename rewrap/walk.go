package rewrap

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/volume"
)

// progressEvery is how often progress is told, at most.
const progressEvery = 100 * time.Millisecond

// entryMoved looks at an entry that has just got its name: a file at once, a directory later.
func (r *run) entryMoved(dir int, name string) {
	var st unix.Stat_t
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		r.entry(dir, name, name, false)
	case unix.S_IFDIR:
		d, err := openDir(dir, name)
		if err != nil {
			r.straggler(name, err)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		id := journal.Inode{Dev: uint64(st.Dev), Ino: st.Ino}
		if r.moved[id] != nil {
			d.Close()
			return
		}
		r.moved[id] = d
	}
}

// nextMoved returns a directory that was moved since the walk began, nil if there is none any more.
func (r *run) nextMoved() *os.File {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, d := range r.moved {
		delete(r.moved, id)
		return d
	}
	return nil
}

// dropMoved closes the directories that are left when the walk was given up.
func (r *run) dropMoved() {
	for d := r.nextMoved(); d != nil; d = r.nextMoved() {
		d.Close()
	}
}

// step tells that one more file was looked at.
func (r *run) step() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress.Done++
	if r.o.Progress != nil && (time.Since(r.told) >= progressEvery || r.progress.Done == r.progress.Total) {
		r.told = time.Now()
		r.o.Progress(r.progress)
	}
}

// directory changes the headers of all files in and below d, and closes it.
func (r *run) directory(d *os.File, path string) error {
	defer d.Close()
	var files sync.WaitGroup
	defer files.Wait()
	err := eachEntry(d, func(e os.DirEntry) error {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		below := filepath.Join(path, e.Name())
		if ours(r.v.Header().PlaintextNames, path, e.Name()) {
			return nil
		}
		switch {
		case e.IsDir():
			sub, err := openDir(int(d.Fd()), e.Name())
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
				return nil // gone, or something else by now
			} else if err != nil {
				r.straggler(below, err)
				return nil
			}
			return r.directory(sub, below)
		case e.Type().IsRegular():
			r.workers <- struct{}{}
			files.Go(func() {
				defer func() { <-r.workers }()
				r.entry(int(d.Fd()), e.Name(), below, true)
				r.step()
			})
		}
		return nil
	})
	if err != nil && r.ctx.Err() == nil {
		r.straggler(at(path), err)
		return nil
	}
	return err
}

// at names the root of the ciphertext directory.
func at(path string) string {
	if path == "" {
		return "."
	}
	return path
}

// ours reports whether an entry is none of the volume's tree.
func ours(plainNames bool, dir, name string) bool {
	return dir == "" && (name == volume.MetaDir || name == "lost+found" && !plainNames)
}

// entry changes the header of one file. It counts if the walk has found it.
func (r *run) entry(dir int, name, path string, counts bool) {
	access := unix.O_RDWR
	if r.j.ReadOnly() {
		access = unix.O_RDONLY
	}
	fd, err := openFile(dir, name, access)
	if err == unix.ENOENT || err == unix.ELOOP {
		return
	} else if err != nil {
		r.straggler(path, os.NewSyscallError("open", err))
		return
	}
	f, err := r.j.Enter(fd, path)
	if err != nil {
		r.straggler(path, err)
		return
	}
	if r.file(f, path) && counts {
		r.files.Add(1)
	}
	if err := f.Release(); err != nil {
		r.straggler(path, err)
	}
}

func openFile(dir int, name string, access int) (int, error) {
	flags := access | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_NOATIME, 0)
		if err == unix.EPERM {
			fd, err = unix.Openat(dir, name, flags, 0)
		}
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func openDir(parent int, name string) (*os.File, error) {
	for {
		fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		} else if err != unix.EINTR {
			return nil, os.NewSyscallError("open", err)
		}
	}
}

// eachEntry calls fn for every entry of a directory until it returns an error.
func eachEntry(d *os.File, fn func(os.DirEntry) error) error {
	for {
		entries, err := d.ReadDir(1024)
		for _, e := range entries {
			if err := fn(e); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// count returns how many regular files there are, as far as that can be told.
func count(ctx context.Context, root int) int64 {
	d, err := openDir(root, ".")
	if err != nil {
		return 0
	}
	return countBelow(ctx, d, true)
}

func countBelow(ctx context.Context, d *os.File, top bool) (n int64) {
	defer d.Close()
	_ = eachEntry(d, func(e os.DirEntry) error {
		switch {
		case top && e.Name() == volume.MetaDir:
		case e.IsDir():
			if sub, err := openDir(int(d.Fd()), e.Name()); err == nil {
				n += countBelow(ctx, sub, false)
			}
		case e.Type().IsRegular():
			n++
		}
		return ctx.Err()
	})
	return n
}
