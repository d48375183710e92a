package fs

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/device"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/volume"
)

// After a crash, a file that was new and not synced yet may be torn: docs/format.md section 10.3. Nothing of it was promised. Before
// anybody sees its size it is read whole; if it does not authenticate, it is emptied, which is what its writer may expect to find.

// examine settles the doubt about file, whose content or what is wrong with its header is given.
func (f *FS) examine(n *node, file *journal.File, supply *volume.Supply, data *blockcrypt.File, err error) (*blockcrypt.File, error) {
	if err == nil {
		err = readAll(data)
	}
	switch {
	case err == nil:
		if err := f.journal.Clear(file.Fd()); err != nil {
			f.log.Warn("cannot note that a file is whole", "ciphertext", f.diskPath(n), "err", err)
		}
		return data, nil
	case !damaged(err) || f.readOnly:
		return data, err
	}
	sealed, plain := f.paths(n)
	f.log.Warn("a crash interrupted the first write to this file; it is empty now", "ciphertext", sealed, "plaintext", plain, "found", err)
	if err := file.Empty(); err != nil {
		return nil, err
	}
	return blockcrypt.Open(file, f.layout, nil, supply.NewFile)
}

// damaged reports whether err is about the bytes of a file.
func damaged(err error) bool {
	for _, target := range []error{blockcrypt.ErrAuth, blockcrypt.ErrSize, header.ErrFormat, header.ErrAuth} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// readAll reads every segment of a file, past holes.
func readAll(data *blockcrypt.File) error {
	buf := make([]byte, device.MaxRequest)
	for off := int64(0); off < data.Size(); {
		at, err := data.SeekData(off)
		if err != nil {
			return err
		}
		n, err := data.ReadAt(buf, at)
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		off = at + int64(n)
	}
	return nil
}

// examineEntry settles the doubt about the entry of a file that is looked up. renames is held.
func (f *FS) examineEntry(n *node, d *dir, disk string) {
	if n.kind != unix.DT_REG || !f.journal.Doubts() {
		return
	}
	if size, err := unix.Lgetxattr(procPath(d.fd, disk), journal.MarkName, nil); err != nil || size == 0 {
		return
	}
	if f.stopped.Load() {
		return
	}
	if _, err := f.obtainLocked(f.ask(context.Background()), n, false); err == nil {
		f.release(n)
	}
}
