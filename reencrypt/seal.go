package reencrypt

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/header"
)

// bufferSize is how much plaintext is sealed at once, in bytes.
const bufferSize = 1 << 20

// seal makes a new file with the content and the attributes of an old one. On an error nothing is left of it.
func (r *run) seal(ctx context.Context, o *original) (_ *replacement, err error) {
	if err := changeable(o.File.File); err != nil {
		return nil, err
	}
	from, err := r.v.OpenFile(ctx, o.raw)
	if err != nil {
		return nil, err
	}
	raw, to, err := r.v.NewFile()
	if err != nil {
		return nil, err
	}
	made, err := header.Parse(raw)
	if err != nil {
		return nil, err
	}
	n := &replacement{old: o.header.FileID, new: made.FileID}
	out, err := cipherdir.CreateFile(int(r.work.Fd()), n.new.String())
	if err != nil {
		return nil, os.NewSyscallError("create", err)
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			remove(r.work, n.new.String())
		}
	}()
	data, err := blockcrypt.Open(out, r.layout, nil, func() ([]byte, *blockcrypt.Cipher, error) { return raw, to, nil })
	if err != nil {
		return nil, err
	}
	w := &writer{to: data, buf: make([]byte, 0, bufferSize)}
	err = blockcrypt.Scan(o, o.st.Size, r.layout, from, blockcrypt.Visitor{
		Data:  func(off int64, p []byte) error { return errors.Join(ctx.Err(), w.write(off, p)) },
		Hole:  func(int64, int64) error { return ctx.Err() },
		Fault: damaged,
	})
	if err == nil {
		err = w.flush()
	}
	if err == nil {
		err = data.Flush()
	}
	if err != nil {
		return nil, err
	}
	if err := copyAttributes(o.File.File, out.File, o.st); err != nil {
		return nil, err
	}
	n.bytes, err = checkSize(out.File, o.st)
	return n, err
}

// damaged is the error for what does not authenticate.
func damaged(f blockcrypt.Fault) error {
	if f.Kind == blockcrypt.FaultRead {
		return fmt.Errorf("%v: %w", f.Kind, f.Err)
	}
	return fmt.Errorf("bytes %d to %d of the content: %v", f.Off, f.Off+max(f.Len, 1)-1, f.Kind)
}

// checkSize returns the space that a new file takes. As the layout is the volume's, it is as long as the old one.
func checkSize(out *os.File, old *unix.Stat_t) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(out.Fd()), &st); err != nil {
		return 0, err
	}
	if st.Size != old.Size {
		return 0, fmt.Errorf("it came out as %d bytes instead of %d: it was changed meanwhile", st.Size, old.Size)
	}
	return st.Blocks * 512, nil
}

// A writer collects plaintext, so that segments are sealed many at a time. What is not written is a hole.
type writer struct {
	to  *blockcrypt.File
	off int64 // of buf
	buf []byte
}

func (w *writer) write(off int64, p []byte) error {
	if off != w.off+int64(len(w.buf)) || len(p) > cap(w.buf)-len(w.buf) {
		if err := w.flush(); err != nil {
			return err
		}
		w.off = off
	}
	w.buf = append(w.buf, p...)
	return nil
}

func (w *writer) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	_, err := w.to.WriteAt(w.buf, w.off)
	w.buf = w.buf[:0]
	return err
}
