package sdkformat

import (
	"crypto/cipher"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/kmsfs/kmsfs/keyring"
)

const (
	// pieceSize is how much of a body is handled at once, in bytes.
	pieceSize = 1 << 20
	// maxSegment is the longest sealed segment that is read, in bytes. The SDK writes 1,040.
	maxSegment = 16 << 20
)

// Open writes the plaintext of a message to dst, of which nothing that is not authenticated: a body that has one tag at its end is read twice, and a digest
// of each piece makes sure that it is the same both times. src has the whole message, of size bytes. The message must have been verified. The error
// wraps [ErrAuth] or [ErrUnauthenticated]. Segmented messages are for [Message.OpenSegments].
func (m *Message) Open(dst io.Writer, src io.ReaderAt, size int64, dk keyring.DataKey) error {
	if !m.Authenticated() {
		return fmt.Errorf("%w (%v)", ErrUnauthenticated, m)
	}
	b, err := m.body(src, size)
	if err != nil {
		return err
	}
	if b.length > maxGCM {
		return fmt.Errorf("%w: %d bytes, which is more than GCM can take", ErrAuth, b.length)
	}
	g := newGCM(m.suite().block(dk), m.bodyIV, m.ctx)
	var digests [][32]byte // 2 MiB at most
	err = b.each(func(piece []byte) error {
		g.hash(piece)
		digests = append(digests, digest(piece))
		return nil
	})
	if err != nil {
		return err
	}
	if !hmac.Equal(g.tag(), b.tag) {
		return fmt.Errorf("%w: the content was changed or cut", ErrAuth)
	}
	i := 0
	return b.each(func(piece []byte) error {
		if digest(piece) != digests[i] {
			return fmt.Errorf("%w: it was changed while it was read", ErrAuth)
		}
		i++
		g.stream.XORKeyStream(piece, piece)
		_, err := dst.Write(piece)
		return err
	})
}

// OpenUnauthenticated is Open for messages that [Message.Authenticated] reports false for: whoever could write the message may have chosen the plaintext.
func (m *Message) OpenUnauthenticated(dst io.Writer, src io.ReaderAt, size int64, dk keyring.DataKey) error {
	b, err := m.body(src, size)
	if err != nil {
		return err
	}
	s := m.suite()
	if s.mode == modeCTR {
		stream := cipher.NewCTR(s.block(dk), m.bodyIV)
		return b.each(func(piece []byte) error {
			stream.XORKeyStream(piece, piece)
			_, err := dst.Write(piece)
			return err
		})
	}
	if b.length%int64(len(m.bodyIV)) != 0 || s.mode == modeCBCPadded && b.length == 0 {
		return fmt.Errorf("%w: %d bytes are no whole blocks", ErrAuth, b.length)
	}
	blocks := cipher.NewCBCDecrypter(s.block(dk), m.bodyIV)
	left := b.length
	return b.each(func(piece []byte) error {
		blocks.CryptBlocks(piece, piece)
		if left -= int64(len(piece)); left == 0 && s.mode == modeCBCPadded {
			if piece, err = unpad(piece); err != nil {
				return err
			}
		}
		_, err := dst.Write(piece)
		return err
	})
}

// unpad takes PKCS#7 padding off.
func unpad(b []byte) ([]byte, error) {
	n := int(b[len(b)-1])
	if n < 1 || n > 16 || n > len(b) {
		return nil, fmt.Errorf("%w: bad padding", ErrAuth)
	}
	for _, p := range b[len(b)-n:] {
		if int(p) != n {
			return nil, fmt.Errorf("%w: bad padding", ErrAuth)
		}
	}
	return b[:len(b)-n], nil
}

// A body is where the sealed bytes of a message are.
type body struct {
	src    io.ReaderAt
	at     int64
	length int64
	tag    []byte
}

// body finds the sealed bytes in a message of size bytes.
func (m *Message) body(src io.ReaderAt, size int64) (*body, error) {
	if !m.fits(size) || m.Segmented() {
		return nil, fmt.Errorf("%w: it was cut, or something follows it", ErrAuth)
	}
	b := &body{src: src, at: int64(m.size), length: size - int64(m.size) - m.trailer()}
	end := make([]byte, m.trailer())
	if err := readAt(src, end, b.at+b.length); err != nil {
		return nil, err
	}
	if m.Format == Alibaba {
		if end[0] != derOctetString || int(end[1]) != len(end)-2 {
			return nil, fmt.Errorf("%w: %w", ErrAuth, errDER)
		}
		end = end[2:]
	}
	b.tag = end
	return b, nil
}

// each reads the sealed bytes piece by piece; use may change them.
func (b *body) each(use func(piece []byte) error) error {
	buf := make([]byte, min(pieceSize, b.length))
	for at := int64(0); at < b.length; {
		piece := buf[:min(pieceSize, b.length-at)]
		if err := readAt(b.src, piece, b.at+at); err != nil {
			return err
		}
		at += int64(len(piece))
		if err := use(piece); err != nil {
			return err
		}
	}
	return nil
}

// readAt fills p; that the message has become shorter is an error of its own.
func readAt(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it ends early", ErrAuth)
	}
	return err
}

// OpenSegments writes the plaintext of a segmented message to dst, each segment as soon as it is authenticated. src is what follows the prefix. Nothing
// authenticates the order of segments, nor how many there are. The message must have been verified. The error wraps [ErrAuth] or
// [ErrUnauthenticated].
func (m *Message) OpenSegments(dst io.Writer, src io.Reader, dk keyring.DataKey) error {
	if !m.Authenticated() {
		return fmt.Errorf("%w (%v)", ErrUnauthenticated, m)
	}
	return m.openSegments(dst, src, dk)
}

// OpenSegmentsUnauthenticated is OpenSegments for messages that [Message.Authenticated] reports false for.
func (m *Message) OpenSegmentsUnauthenticated(dst io.Writer, src io.Reader, dk keyring.DataKey) error {
	return m.openSegments(dst, src, dk)
}

func (m *Message) openSegments(dst io.Writer, src io.Reader, dk keyring.DataKey) error {
	s := m.suite()
	block := s.block(dk)
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("sdkformat: internal error: " + err.Error())
	}
	head := make([]byte, s.ivSize()+8)
	var sealed []byte
	for i := 0; ; i++ {
		if _, err := io.ReadFull(src, head); err == io.EOF {
			return nil
		} else if err != nil {
			return cut(err, i)
		}
		iv, n := head[:s.ivSize()], binary.BigEndian.Uint64(head[s.ivSize():])
		if n > maxSegment || n < uint64(s.tagSize()) {
			return fmt.Errorf("%w: segment %d has %d bytes, at most %d", ErrAuth, i, n, maxSegment)
		}
		if sealed, err = readSegment(src, sealed[:0], int(n)); err != nil {
			return cut(err, i)
		}
		plain := sealed
		if s.mode == modeGCM {
			if plain, err = aead.Open(sealed[:0], iv, sealed, m.ctx); err != nil {
				return fmt.Errorf("%w: segment %d was changed", ErrAuth, i)
			}
		} else {
			if n == 0 || n%uint64(len(iv)) != 0 {
				return fmt.Errorf("%w: segment %d has no whole blocks", ErrAuth, i)
			}
			cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, sealed)
			if plain, err = unpad(plain); err != nil {
				return fmt.Errorf("%w: segment %d", err, i)
			}
		}
		if _, err := dst.Write(plain); err != nil {
			return err
		}
	}
}

// readSegment appends n bytes of src to buf, which grows only with what is there.
func readSegment(src io.Reader, buf []byte, n int) ([]byte, error) {
	for len(buf) < n {
		at := len(buf)
		buf = append(buf, make([]byte, min(n-at, 64<<10))...)
		if _, err := io.ReadFull(src, buf[at:]); err != nil {
			return nil, err
		}
	}
	return buf, nil
}

func cut(err error, segment int) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: segment %d is cut", ErrAuth, segment)
	}
	return err
}
