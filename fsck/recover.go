package fsck

import (
	"context"
	"fmt"
	"os"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/volume"
)

// A Lost is a range of a recovered file that does not authenticate: zeros stand for it. Off and Len are bytes of plaintext.
type Lost struct {
	Off       int64  `json:"offset"`
	Len       int64  `json:"length"`
	SealedOff int64  `json:"sealed_offset"`
	SealedLen int64  `json:"sealed_length"`
	Cause     string `json:"cause"`
}

// A Recovery is what was copied out of a damaged file.
type Recovery struct {
	Size      int64  `json:"size"`      // bytes of plaintext, as the ciphertext's length tells
	Recovered int64  `json:"recovered"` // bytes that authenticate, holes included
	Header    string `json:"header,omitempty"`
	Lost      []Lost `json:"lost"` // in order; those of length 0 lose nothing that the length tells of
}

// Recover copies into dst, an empty file, all of the ciphertext file src of an unlocked volume that still authenticates, each byte at its place. Where
// the header is damaged, the file ID in it and the volume's data key may do. Nothing that does not authenticate is copied.
func Recover(ctx context.Context, v *volume.Volume, src, dst *os.File) (Recovery, error) {
	var r Recovery
	st, err := src.Stat()
	if err != nil {
		return r, err
	}
	l, err := v.Layout()
	if err != nil {
		return r, err
	}
	if st.Size() == 0 {
		return r, nil
	}
	r.Size, _ = l.PlainSize(st.Size())
	in := sealedFile{cipherdir.File{File: src}, func(int) {}}
	_, cipher, err := openHeader(v, in, l, func(raw []byte) (*blockcrypt.Cipher, error) { return v.OpenFile(ctx, raw) })
	if cipher == nil {
		return r, err
	}
	refused := err
	r.Header = headerCause(err)
	err = blockcrypt.Scan(in, st.Size(), l, cipher, blockcrypt.Visitor{
		Data: func(off int64, p []byte) error {
			r.Recovered += int64(len(p))
			if _, err := dst.WriteAt(p, off); err != nil {
				return err
			}
			return ctx.Err()
		},
		Hole: func(_, n int64) error { r.Recovered += n; return ctx.Err() },
		Fault: func(f blockcrypt.Fault) error {
			cause := f.Kind.String()
			if f.Err != nil {
				cause = fmt.Sprintf("%s: %v", cause, f.Err)
			}
			r.Lost = append(r.Lost, Lost{f.Off, f.Len, f.SealedOff, f.SealedLen, cause})
			return ctx.Err()
		},
	})
	switch {
	case err != nil:
		return r, err
	case refused != nil && r.Recovered == 0:
		return r, refused
	}
	if err := dst.Truncate(r.Size); err != nil {
		return r, err
	}
	return r, dst.Sync()
}
