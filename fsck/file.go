package fsck

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/volume"
)

// file checks a regular file: header, hole maps, every segment, and the length.
func (c *checker) file(dir *os.File, disk string, at place) {
	f, err := cipherdir.OpenFile(int(dir.Fd()), disk, unix.O_RDONLY)
	if err != nil {
		c.unreadable(at, err)
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		c.unreadable(at, err)
		return
	}
	if st.Size() == 0 {
		return
	}
	if c.o.Suspect != nil && c.o.Suspect(int(f.Fd())) {
		at.suspect = true
	}
	src := sealedFile{f, func(n int) { c.bytes.Add(int64(n)) }}
	h, cipher, err := c.header(src)
	if errors.As(err, new(unix.Errno)) && !errors.Is(err, keyring.ErrUnavailable) {
		c.unreadable(at, err)
		return
	}
	plain, _ := c.layout.PlainSize(st.Size())
	fault := at.fault(Header, headerCause(err))
	fault.Len, fault.SealedLen = plain, min(st.Size(), int64(c.v.Header().Size))
	if cipher == nil {
		c.fault(fault, nil)
		return
	}
	var faults []blockcrypt.Fault
	good := int64(0)
	failed := blockcrypt.Scan(src, st.Size(), c.layout, cipher, blockcrypt.Visitor{
		Data: func(_ int64, p []byte) error { good += int64(len(p)); return c.ctx.Err() },
		Hole: func(int64, int64) error { return c.ctx.Err() },
		Fault: func(f blockcrypt.Fault) error {
			if err == nil {
				c.content(at, f) // no matter how many
			} else if len(faults) < maxHeld {
				faults = append(faults, f)
			}
			return c.ctx.Err()
		},
	})
	if failed != nil || err == nil {
		return // ctx is done, or all is reported
	}
	if good == 0 {
		c.fault(fault, nil) // whatever the header says, nothing of this was sealed under it
		return
	}
	fault.Len = 0
	fault.Cause += "; its content authenticates"
	if at.suspect {
		h = nil
	}
	c.fault(fault, rewriter(h, dir, disk))
	for _, f := range faults {
		c.content(at, f)
	}
}

// maxHeld bounds the faults that are held back while a damaged header is judged.
const maxHeld = 1000

// content reports a fault in a file's slots.
func (c *checker) content(at place, f blockcrypt.Fault) {
	kind, cause := Content, f.Kind.String()
	switch f.Kind {
	case blockcrypt.FaultMap:
		kind = HoleMap
	case blockcrypt.FaultRead:
		kind, cause = Unreadable, fmt.Sprintf("%s: %v", cause, f.Err)
	}
	fault := at.fault(kind, cause)
	fault.Off, fault.Len, fault.SealedOff, fault.SealedLen = f.Off, f.Len, f.SealedOff, f.SealedLen
	c.fault(fault, nil)
}

// header opens a file's header; of a damaged one that may have kept its file ID, it returns the cipher that the ID gives
// under one of the volume's own data keys, and what the header would have to be.
func (c *checker) header(src sealedFile) (mended []byte, cipher *blockcrypt.Cipher, err error) {
	return openHeader(c.v, src, c.layout, func(raw []byte) (*blockcrypt.Cipher, error) { return c.v.OpenFile(c.ctx, raw) })
}

func openHeader(v *volume.Volume, src sealedFile, l blockcrypt.Layout, open func(raw []byte) (*blockcrypt.Cipher, error)) (mended []byte, cipher *blockcrypt.Cipher, err error) {
	raw := make([]byte, v.Header().Size)
	n, err := src.ReadAt(raw, 0)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	cipher, err = open(raw[:n])
	if err == nil || n < len(raw) {
		return nil, cipher, err
	}
	own := v.OwnKeys()
	for i, key := range own {
		h, c, failed := v.SealFile(header.FileIDIn(raw), key)
		if failed != nil {
			return nil, nil, err
		}
		if last := i == len(own)-1; last || opensAny(src, l, c) {
			return h, c, err
		}
	}
	return nil, nil, err
}

// errFound ends a scan that has found something.
var errFound = errors.New("found")

// opensAny reports whether a cipher opens any segment of a file.
func opensAny(src sealedFile, l blockcrypt.Layout, c *blockcrypt.Cipher) bool {
	st, err := src.Stat()
	if err != nil {
		return false
	}
	err = blockcrypt.Scan(src, st.Size(), l, c, blockcrypt.Visitor{
		Data:  func(int64, []byte) error { return errFound },
		Hole:  func(int64, int64) error { return nil },
		Fault: func(blockcrypt.Fault) error { return nil },
	})
	return errors.Is(err, errFound)
}

// headerCause says why a header is refused.
func headerCause(err error) string {
	cause := "changed or cut"
	switch {
	case err == nil:
		return ""
	case errors.Is(err, volume.ErrForeign):
		cause = "the file was brought from another volume"
	case errors.Is(err, keyring.ErrNoMatch):
		cause = "changed, or the file was brought from another volume"
	case errors.Is(err, keyring.ErrDenied), errors.Is(err, keyring.ErrUnavailable):
		cause = "changed, or made under a data key that no CMK unwraps now"
	case errors.Is(err, header.ErrVersion):
		cause = "changed, or made by a newer kmsfs"
	}
	return cause + ": " + err.Error()
}

// rewriter returns what puts a header in the place of a damaged one; nil if there is none to put.
func rewriter(h []byte, dir *os.File, disk string) func() error {
	if h == nil {
		return nil
	}
	return func() error { return rewrite(h, dir, disk) }
}

func rewrite(h []byte, dir *os.File, disk string) error {
	f, err := cipherdir.OpenFile(int(dir.Fd()), disk, unix.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(h, 0)
	return errors.Join(err, f.Sync(), f.Close())
}
