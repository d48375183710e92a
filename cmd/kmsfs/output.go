package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring/local"
)

// An output is what a command writes. A file gets its name when it is complete and not before.
type output struct {
	name  string
	force bool // replaces what has the name
	f     *os.File
	temp  string // the name that f has meanwhile; empty if it has none
	size  int64  // bytes written or skipped
	w     *bufio.Writer
}

// checkOutput refuses an OUT that must not be written, before anything is done.
func checkOutput(c *cli.Context, name string) error {
	if name == "-" {
		return nil
	}
	st, err := os.Lstat(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if _, err := os.Stat(filepath.Dir(name)); err != nil {
			return err
		}
		return nil
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file; to write to what is there use - and a redirection", name)
	case !c.Bool("force"):
		return fmt.Errorf("%s exists; --force replaces it", name)
	}
	if _, err := local.Open(name); err == nil || errors.Is(err, local.ErrMode) {
		return fmt.Errorf("%s is a local CMK file, without which all that it has wrapped is lost; it is never overwritten", name)
	}
	return nil
}

// createOutput opens OUT; "-" is standard output.
func createOutput(c *cli.Context, name string) (*output, error) {
	if name == "-" {
		return &output{name: name, f: os.Stdout, w: bufio.NewWriterSize(os.Stdout, outputBuffer)}, nil
	}
	return createFile(name, c.Bool("force"))
}

// createFile begins a file of mode 0600, which replaces what has the name if force is set.
func createFile(name string, force bool) (*output, error) {
	return newOutput(tempFile, name, force)
}

func newOutput(create func(dir, known string) (f *os.File, temp string, err error), name string, force bool) (*output, error) {
	f, temp, err := create(filepath.Dir(name), name)
	if err != nil {
		return nil, err
	}
	return &output{name: name, force: force, f: f, temp: temp, w: bufio.NewWriterSize(f, outputBuffer)}, nil
}

// outputBuffer is how much is written at once, in bytes.
const outputBuffer = 256 << 10

// writeOutput writes all of OUT.
func writeOutput(c *cli.Context, name string, b []byte) error {
	o, err := createOutput(c, name)
	if err != nil {
		return err
	}
	return o.all(b)
}

// replaceFile puts a small file at path, durably, in the place of one that may be there, with nothing but what every file system can.
func replaceFile(path string, b []byte) error {
	o, err := newOutput(namedFile, path, true)
	if err != nil {
		return err
	}
	return o.all(b)
}

// all writes all of an output, and ends it.
func (o *output) all(b []byte) error {
	defer o.discard()
	if _, err := o.Write(b); err != nil {
		return err
	}
	return o.commit()
}

// isStream reports whether the output is standard output.
func (o *output) isStream() bool { return o.f == os.Stdout }

// progress returns a bar for a number of bytes, nil if the output itself goes to the terminal, where a bar would get among it.
func (o *output) progress(c *cli.Context, bytes int64) *bar {
	if o.isStream() && isTerminal(o.f) {
		return nil
	}
	return barOf(c.App.ErrWriter, bytes)
}

// Write implements [io.Writer].
func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	o.size += int64(n)
	return n, err
}

// skip leaves a hole of n bytes, zeros in a stream.
func (o *output) skip(n int64) error {
	if o.isStream() {
		_, err := io.CopyN(o, zeros{}, n)
		return err
	}
	if err := o.w.Flush(); err != nil {
		return err
	}
	o.size += n
	_, err := o.f.Seek(o.size, io.SeekStart)
	return err
}

// zeros is a reader of zeros.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// commit ends the output: it is complete, on disk, and has its name.
func (o *output) commit() error {
	if err := o.w.Flush(); err != nil || o.isStream() {
		return err
	}
	if err := o.f.Sync(); err != nil {
		return err
	}
	if err := o.rename(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(o.name))
	if err != nil {
		return nil // one that may be written but not read; the file is complete
	}
	defer dir.Close()
	return dir.Sync()
}

// rename gives the file its name.
func (o *output) rename() error {
	if o.temp == "" && !o.force {
		return o.link(o.name)
	}
	if o.temp == "" { // a link replaces nothing
		temp := tempName(filepath.Dir(o.name))
		if err := o.link(temp); err != nil {
			return err
		}
		o.temp = temp
	}
	var err error
	if o.force {
		err = unix.Rename(o.temp, o.name)
	} else {
		err = unix.Renameat2(unix.AT_FDCWD, o.temp, unix.AT_FDCWD, o.name, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // NFS for one
			if err = unix.Link(o.temp, o.name); err == nil {
				err = unix.Unlink(o.temp)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", o.name, err)
	}
	o.temp = ""
	return nil
}

// link gives a file without a name one that nothing has.
func (o *output) link(name string) error {
	err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", o.f.Fd()), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return fmt.Errorf("%s: %w", o.name, err)
	}
	return nil
}

// discard closes the output; what has no name yet is gone.
func (o *output) discard() {
	if o.isStream() {
		return
	}
	o.f.Close()
	if o.temp != "" {
		os.Remove(o.temp)
	}
}

// tempFile creates a file of mode 0600 in dir that has no name or, where that cannot be, a temporary one, which it returns. The file calls itself known in
// errors.
func tempFile(dir, known string) (f *os.File, temp string, err error) {
	if _, err := os.Stat("/proc/self/fd"); err != nil { // needed for a name later
		return namedFile(dir, known)
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	switch {
	case err == nil:
		return os.NewFile(uintptr(fd), known), "", nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EISDIR), errors.Is(err, unix.EINVAL):
		return namedFile(dir, known)
	}
	return nil, "", &os.PathError{Op: "create", Path: known, Err: err}
}

// namedFile is tempFile for a file with a temporary name.
func namedFile(dir, known string) (f *os.File, temp string, err error) {
	temp = tempName(dir)
	fd, err := unix.Open(temp, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, "", &os.PathError{Op: "create", Path: known, Err: err}
	}
	return os.NewFile(uintptr(fd), known), temp, nil
}

// tempName returns a name in dir that nothing has.
func tempName(dir string) string { return filepath.Join(dir, ".kmsfs-"+header.NewID().String()) }

// spoolFile creates a file without a name in dir.
func spoolFile(dir string) (*os.File, error) {
	f, temp, err := tempFile(dir, filepath.Join(dir, "temporary file"))
	if err == nil && temp != "" {
		if err = os.Remove(temp); err != nil {
			f.Close()
		}
	}
	return f, err
}

// spoolDir is where what has to be kept for a while goes: beside OUT, which has the room, or to $TMPDIR.
func (o *output) spoolDir() string {
	if o.isStream() {
		return os.TempDir()
	}
	return filepath.Dir(o.name)
}
