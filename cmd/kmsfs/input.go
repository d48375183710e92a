package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/sdkformat"
)

// An input is what a command reads: a file, or a stream.
type input struct {
	ctx  context.Context
	name string
	f    *os.File
	size int64         // of a regular file; -1 for a stream
	r    *bufio.Reader // of all of it
	bar  *bar
}

// openInput opens IN; "-" is standard input.
func openInput(ctx context.Context, name string) (*input, error) {
	in := &input{ctx: ctx, name: inputName(name), f: os.Stdin, size: -1}
	if name != "-" {
		var err error
		if in.f, err = openWaiting(ctx, name); err != nil {
			return nil, err
		}
	}
	st, err := in.f.Stat()
	switch {
	case err != nil:
		in.Close()
		return nil, err
	case st.IsDir():
		in.Close()
		return nil, fmt.Errorf("%s: %w", in.name, unix.EISDIR)
	case st.Mode().IsRegular() && st.Size() > 0: // those of /proc say 0
		if at, err := in.f.Seek(0, io.SeekCurrent); err == nil && at == 0 {
			in.size = st.Size()
		}
	}
	var r io.Reader = in.f
	if in.size < 0 {
		r = interruptible(ctx, in.f)
	}
	in.r = bufio.NewReaderSize(r, sdkformat.MaxPrefix)
	return in, nil
}

// inputName is what messages call an input.
func inputName(path string) string {
	if path == "-" {
		return "standard input"
	}
	return path
}

// openWaiting opens a file, which for a FIFO waits for a writer, but not beyond the end of ctx.
func openWaiting(ctx context.Context, name string) (*os.File, error) {
	type opened struct {
		f   *os.File
		err error
	}
	done := make(chan opened, 1)
	go func() {
		f, err := os.Open(name)
		done <- opened{f, err}
	}()
	select {
	case o := <-done:
		return o.f, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// openRegular opens a regular file to read it.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // or a FIFO would wait for a writer
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// readInput reads all of IN, but no more than one byte beyond most.
func readInput(c *cli.Context, name string, most int) ([]byte, error) {
	in, err := openInput(c.Context, name)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, int64(most)+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", in.name, err)
	}
	return b, nil
}

// interruptible returns a reader of r that ends with ctx, even while r waits for bytes that never come.
func interruptible(ctx context.Context, r io.Reader) io.Reader {
	from, to := io.Pipe()
	go func() {
		_, err := io.CopyBuffer(to, struct{ io.Reader }{r}, make([]byte, 256<<10))
		to.CloseWithError(err)
	}()
	context.AfterFunc(ctx, func() { from.CloseWithError(ctx.Err()) })
	return from
}

// Close closes the file.
func (in *input) Close() error {
	if in.f == os.Stdin {
		return nil
	}
	return in.f.Close()
}

// peek returns the beginning, without reading it.
func (in *input) peek() ([]byte, error) {
	b, err := in.r.Peek(sdkformat.MaxPrefix)
	if err == io.EOF {
		err = nil
	}
	return b, err
}

// Read implements [io.Reader], for the stream and for a file from its beginning.
func (in *input) Read(p []byte) (int, error) {
	if err := in.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := in.r.Read(p)
	in.bar.add(n)
	return n, err
}

// ReadAt implements [io.ReaderAt], for a file.
func (in *input) ReadAt(p []byte, off int64) (int, error) {
	if err := in.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := in.f.ReadAt(p, off)
	in.bar.add(n)
	return n, err
}

// SeekData returns the next offset of a file that holds data, [io.EOF] if there is none.
func (in *input) SeekData(off int64) (int64, error) { return in.seek(off, unix.SEEK_DATA) }

// SeekHole returns the next offset of a file that is in a hole, or its end.
func (in *input) SeekHole(off int64) (int64, error) { return in.seek(off, unix.SEEK_HOLE) }

func (in *input) seek(off int64, whence int) (int64, error) {
	at, err := unix.Seek(int(in.f.Fd()), off, whence)
	if errors.Is(err, unix.ENXIO) {
		return 0, io.EOF
	}
	return at, err
}
