package sdkformat

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/kmsfs/kmsfs/keyring"
)

const (
	// segmentSize is how much plaintext the SDK puts into a segment, in bytes.
	segmentSize = 1024
	// maxWhole is the longest body that the SDKs can read in the formats that they hold in memory: in a Java array.
	maxWhole = 1<<31 - 1 - MaxPrefix
)

// A Spool is a private temporary file.
type Spool interface {
	io.ReadWriteSeeker
}

// NeedsLength reports whether the length of the body precedes it.
func (m *Message) NeedsLength() bool { return m.Format == Alibaba || m.Format == Huawei }

// Seal writes a message that [New] made: all that src yields, sealed. It has size bytes; -1 says that nobody knows, and then a message that
// needs its length in front is kept in spool, sealed, until the end of src. The error wraps [ErrBounds] if a message of the format cannot be so long.
func (m *Message) Seal(dst io.Writer, src io.Reader, size int64, dk keyring.DataKey, spool Spool) error {
	if err := m.checkLength(size); err != nil {
		return err
	}
	if !m.NeedsLength() || size >= 0 {
		if m.NeedsLength() {
			m.length = size
		}
		if err := m.writePrefix(dst); err != nil {
			return err
		}
		if m.Segmented() {
			return m.sealSegments(dst, src, dk)
		}
		n, tag, err := m.sealBody(dst, src, dk)
		if err == nil && m.NeedsLength() && n != size {
			err = errors.New("sdkformat: what was to be sealed has changed its length meanwhile")
		}
		if err != nil {
			return err
		}
		return m.writeTrailer(dst, tag)
	}
	n, tag, err := m.sealBody(spool, src, dk)
	if err != nil {
		return err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return err
	}
	m.length = n
	if err := m.writePrefix(dst); err != nil {
		return err
	}
	if _, err := io.CopyN(dst, spool, n); err != nil {
		return err
	}
	return m.writeTrailer(dst, tag)
}

// checkLength refuses a body of n bytes that is too long for the message.
func (m *Message) checkLength(n int64) error {
	switch {
	case m.Segmented():
		return nil // sealSegments counts
	case m.NeedsLength() && n > maxWhole:
		return fmt.Errorf("%w: more than %d bytes, which the SDK holds in memory; %v-stream can", ErrBounds, int64(maxWhole), m.Format)
	case n > maxGCM:
		return fmt.Errorf("%w: more than %d bytes", ErrBounds, int64(maxGCM))
	}
	return nil
}

func (m *Message) writePrefix(dst io.Writer) error {
	prefix, err := m.Append(nil)
	if err == nil {
		_, err = dst.Write(prefix)
	}
	return err
}

func (m *Message) writeTrailer(dst io.Writer, tag []byte) error {
	if m.Format == Alibaba {
		tag = appendTLV(nil, derOctetString, tag)
	}
	_, err := dst.Write(tag)
	return err
}

// sealBody seals src in one run.
func (m *Message) sealBody(dst io.Writer, src io.Reader, dk keyring.DataKey) (n int64, tag []byte, err error) {
	g := newGCM(m.suite().block(dk), m.bodyIV, m.ctx)
	buf := make([]byte, pieceSize)
	for {
		read, err := io.ReadFull(src, buf)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return n, nil, err
		}
		piece := buf[:read]
		n += int64(read)
		if err := m.checkLength(n); err != nil {
			return n, nil, err
		}
		g.stream.XORKeyStream(piece, piece)
		g.hash(piece)
		if _, err := dst.Write(piece); err != nil {
			return n, nil, err
		}
		if err != nil {
			return n, g.tag(), nil
		}
	}
}

// sealSegments seals src segment by segment. Every segment has a random IV: 2^32 of them are as many as one key should see.
func (m *Message) sealSegments(dst io.Writer, src io.Reader, dk keyring.DataKey) error {
	aead, err := cipher.NewGCM(m.suite().block(dk))
	if err != nil {
		panic("sdkformat: internal error: " + err.Error())
	}
	plain, out := make([]byte, segmentSize), []byte(nil)
	for i := int64(0); ; i++ {
		n, err := io.ReadFull(src, plain)
		if err == io.EOF {
			return nil
		} else if err != nil && err != io.ErrUnexpectedEOF {
			return err
		}
		if i == 1<<32 {
			return fmt.Errorf("%w: more than %d segments", ErrBounds, i)
		}
		out = append(out[:0], make([]byte, gcmIVSize)...)
		rand.Read(out)
		out = binary.BigEndian.AppendUint64(out, uint64(n+gcmTagSize))
		out = aead.Seal(out, out[:gcmIVSize], plain[:n], m.ctx)
		if _, err := dst.Write(out); err != nil {
			return err
		}
	}
}
