// Package filecrypt encrypts and decrypts single files without a volume, in the format of a volume's files.
//
// A file that it makes can be put into a volume of plaintext names that has the same encryption context, algorithm, segment size and header length, and it
// decrypts the files of any volume.
package filecrypt

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
)

// Params are what a new file is made with. Algorithm and SegmentSize are required.
type Params struct {
	Algorithm   header.Algorithm
	SegmentSize int // bytes, a power of two from 4,096 to 65,536
	HeaderSize  int // bytes; 0 for what a volume of the same CMKs would have
	Context     keyring.EncryptionContext
}

// A File is the key to the content of one ciphertext file.
type File struct {
	raw    []byte // the header
	layout blockcrypt.Layout
	cipher *blockcrypt.Cipher
}

// New returns a file that is about to be encrypted, with a data key of its own that every CMK of k has wrapped. The error wraps
// [header.ErrBounds] if the header does not fit, else those of k.
func New(ctx context.Context, p Params, k keyring.Keyring) (*File, error) {
	dk, edks, err := keyring.GenerateDataKey(ctx, k, p.Algorithm.KeySize(), p.Context)
	if err != nil {
		return nil, fmt.Errorf("make and wrap the data key: %w", err)
	}
	defer dk.Wipe()
	h := &header.Header{
		Kind: header.File, Algorithm: p.Algorithm, SegmentSize: p.SegmentSize, Size: p.HeaderSize,
		FileID: header.NewID(), Context: p.Context, EDKs: edks,
	}
	if h.Size == 0 {
		if h.Size, err = header.SizeFor(h); err != nil {
			return nil, err
		}
	}
	h.KeyID = header.KeyID(dk)
	raw, secret, err := h.SealKnown(dk)
	if err != nil {
		return nil, err
	}
	return newFile(h, raw, secret)
}

// Unlock returns the file that begins with h, once a CMK of k has unwrapped its data key. The error wraps [header.ErrAuth] or [header.ErrFormat], or is one of k.
func Unlock(ctx context.Context, h *header.Header, k keyring.Keyring) (*File, error) {
	if h.Kind != header.File {
		return nil, fmt.Errorf("%w: it is that of a volume", header.ErrFormat)
	}
	dk, err := keyring.DecryptVerified(ctx, k, h.EDKs, h.Context, h.Verify)
	if err != nil {
		return nil, err
	}
	defer dk.Wipe()
	secret, err := h.Open(dk)
	if err != nil {
		return nil, err
	}
	return newFile(h, nil, secret)
}

func newFile(h *header.Header, raw, secret []byte) (*File, error) {
	l, err := blockcrypt.NewLayout(h.SegmentSize, h.Size)
	if err != nil {
		return nil, err
	}
	c, err := blockcrypt.NewCipher(blockcrypt.Algorithm(h.Algorithm), secret)
	return &File{raw, l, c}, err
}

func (f *File) fresh() ([]byte, *blockcrypt.Cipher, error) { return f.raw, f.cipher, nil }

// Encrypt writes the ciphertext of src to dst. That of nothing is nothing.
func (f *File) Encrypt(dst io.Writer, src io.Reader) error {
	return blockcrypt.SealStream(dst, src, f.layout, f.fresh)
}

// A Source is a file that knows its holes.
type Source interface {
	io.ReaderAt
	SeekData(off int64) (int64, error) // the next offset with data, io.EOF if there is none
	SeekHole(off int64) (int64, error) // the next offset in a hole, or the end
}

// EncryptSparse writes the ciphertext of the size bytes of src to dst, which is empty. What is a hole in src is one in dst, but for parts of segments.
func (f *File) EncryptSparse(dst blockcrypt.Backing, src Source, size int64) error {
	out, err := blockcrypt.Open(dst, f.layout, nil, f.fresh)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; {
		if off, err = src.SeekData(off); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		end, err := src.SeekHole(off)
		if err != nil {
			return err
		}
		for end = min(end, size); off < end; {
			// Pieces end where segments do.
			piece := buf[:min(end-off, int64(len(buf))-off%int64(len(buf)))]
			if err := readFull(src, piece, off); err != nil {
				return err
			}
			if _, err := out.WriteAt(piece, off); err != nil {
				return err
			}
			off += int64(len(piece))
		}
	}
	if out.Size() < size { // a hole, or the end was cut off
		if err := readFull(src, buf[:1], size-1); err != nil {
			return err
		}
		if err := out.Truncate(size); err != nil {
			return err
		}
	}
	return out.Flush()
}

func readFull(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = errors.New("it has become shorter while it was read")
	}
	return err
}

// Decrypt hands what src has after the header to v, front to back, as far as it is authenticated. The error wraps [blockcrypt.ErrAuth] or
// [blockcrypt.ErrSize] if the file was changed, cut or extended.
func (f *File) Decrypt(src io.Reader, v blockcrypt.Visitor) error {
	return blockcrypt.OpenStream(src, f.layout, f.cipher, v)
}

// DecryptSparse is Decrypt for a whole file of size bytes, header included, whose holes need not be read: src may implement SeekData as a [Source] does.
func (f *File) DecryptSparse(src io.ReaderAt, size int64, v blockcrypt.Visitor) error {
	v.Fault = func(fault blockcrypt.Fault) error {
		if fault.Kind == blockcrypt.FaultRead {
			return fault.Err
		}
		return fmt.Errorf("%w: bytes %d to %d of the ciphertext: %v", blockcrypt.ErrAuth, fault.SealedOff, fault.SealedOff+fault.SealedLen-1, fault.Kind)
	}
	return blockcrypt.Scan(src, size, f.layout, f.cipher, v)
}
