package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// readInput reads all of a file, or of standard input for "-", but no more than one byte beyond most.
func readInput(c *cli.Context, path string, most int) ([]byte, error) {
	in := c.App.Reader
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, int64(most)+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", inputName(path), err)
	}
	return b, nil
}

// inputName is what messages call an input.
func inputName(path string) string {
	if path == "-" {
		return "standard input"
	}
	return path
}

// writeOutput writes a file of mode 0600 as a whole or not at all, or to standard output for "-".
func writeOutput(c *cli.Context, path string, b []byte) error {
	if path == "-" {
		_, err := c.App.Writer.Write(b)
		return err
	}
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return usagef("%s is not a regular file; for standard output write -", path)
	}
	return replaceFile(path, b)
}

// replaceFile puts a file of mode 0600 at path, durably, in the place of one that may be there.
func replaceFile(path string, b []byte) error {
	r, err := replace(path, 0o600)
	if err == nil {
		defer r.drop()
		if _, err = r.Write(b); err == nil {
			err = r.keep()
		}
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	return nil
}

// A replacement is a file that is to be at a path once it is whole.
type replacement struct {
	*os.File
	path string
}

// replace begins a file with a temporary name beside path.
func replace(path string, mode os.FileMode) (*replacement, error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".kmsfs-*")
	if err != nil {
		return nil, err
	}
	r := &replacement{f, path}
	if err := f.Chmod(mode); err != nil {
		r.drop()
		return nil, err
	}
	return r, nil
}

// keep makes the file durable at its path.
func (r *replacement) keep() error {
	if err := errors.Join(r.Sync(), r.Close()); err != nil {
		return err
	}
	if err := os.Rename(r.Name(), r.path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(r.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// drop removes the file, unless it was kept.
func (r *replacement) drop() {
	r.Close()
	os.Remove(r.Name())
}

// cause leaves out of an error the name of a temporary file.
func cause(err error) error {
	if errno := unix.Errno(0); errors.As(err, &errno) {
		return errno
	}
	return err
}
