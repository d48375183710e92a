package rewrap

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/cipherdir"
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
		d, err := cipherdir.OpenDir(dir, name)
		if err != nil {
			r.straggler(name, os.NewSyscallError("open", err))
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

// directory changes the headers of all files in and below d, and closes it. path is ".", and nothing else, for the root of the ciphertext directory.
func (r *run) directory(d *os.File, path string) error {
	defer d.Close()
	var files sync.WaitGroup
	defer files.Wait()
	err := cipherdir.Each(d, func(e os.DirEntry) error {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		below := filepath.Join(path, e.Name())
		if path == "." && !r.v.InTree(e.Name()) {
			return nil
		}
		switch {
		case e.IsDir():
			sub, err := cipherdir.OpenDir(int(d.Fd()), e.Name())
			if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
				return nil // gone, or something else by now
			} else if err != nil {
				r.straggler(below, os.NewSyscallError("open", err))
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
		r.straggler(path, err)
		return nil
	}
	return err
}

// entry changes the header of one file. It counts if the walk has found it.
func (r *run) entry(dir int, name, path string, counts bool) {
	access := unix.O_RDWR
	if r.j.ReadOnly() {
		access = unix.O_RDONLY
	}
	fd, err := cipherdir.OpenFd(dir, name, access)
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

// count returns how many names of regular files there are, as far as that can be told.
func count(ctx context.Context, v *volume.Volume) (n int64) {
	_ = cipherdir.EachFile(ctx, v, func(*os.File, string, string) error { n++; return nil }, func(string, error) {})
	return n
}
