package header

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/kmsfs/kmsfs/keyring"
)

var magic = [8]byte{'k', 'm', 's', 'f', 's', 0, '\r', '\n'}

// Parse reads a header from the start of b and checks its structure; it authenticates nothing. The error wraps [ErrFormat], or
// [ErrVersion] if this package is too old for the header.
func Parse(b []byte) (*Header, error) {
	if len(b) < FixedSize || [8]byte(b[:8]) != magic {
		return nil, fmt.Errorf("%w: no magic", ErrFormat)
	}
	if minReader := b[9]; minReader > Version {
		return nil, fmt.Errorf("%w: it needs format version %d, this is %d", ErrVersion, minReader, Version)
	}
	if b[8] != Version || b[9] != Version {
		return nil, fmt.Errorf("%w: format version %d", ErrFormat, b[8])
	}
	h := &Header{
		Kind:      Kind(b[10]),
		Algorithm: Algorithm(b[11]),
		Size:      int(binary.BigEndian.Uint32(b[16:])),
		FileID:    ID(b[24:40]),
		KeyID:     ID(b[40:56]),
	}
	log, reserved, flags := b[12], b[13], binary.BigEndian.Uint16(b[14:])
	used := int(binary.BigEndian.Uint32(b[20:]))
	switch {
	case h.Kind != File && h.Kind != Volume:
		return nil, fmt.Errorf("%w: kind %d", ErrFormat, h.Kind)
	case h.Algorithm.KeySize() == 0:
		return nil, fmt.Errorf("%w: algorithm %d", ErrFormat, uint8(h.Algorithm))
	case log < minSegmentLog || log > maxSegmentLog:
		return nil, fmt.Errorf("%w: segment size 2^%d", ErrFormat, log)
	case reserved != 0 || flags&^flagPlainNames != 0 || flags != 0 && h.Kind != Volume:
		return nil, fmt.Errorf("%w: unknown flags", ErrFormat)
	case h.Size%sizeUnit != 0 || h.Size < sizeUnit || h.Size > MaxSize:
		return nil, fmt.Errorf("%w: header length %d", ErrFormat, h.Size)
	case len(b) < h.Size:
		return nil, fmt.Errorf("%w: cut after %d of %d bytes", ErrFormat, len(b), h.Size)
	case used < FixedSize+commitmentSize+macSize || used > h.Size:
		return nil, fmt.Errorf("%w: used length %d", ErrFormat, used)
	}
	h.SegmentSize = 1 << log
	h.PlaintextNames = flags&flagPlainNames != 0

	if err := h.parseLists(b[FixedSize : used-commitmentSize-macSize]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	h.commitment = [commitmentSize]byte(b[used-macSize-commitmentSize:])
	h.mac = [macSize]byte(b[used-macSize:])
	h.signed = bytes.Clone(b[:used-macSize])
	for _, pad := range b[used:h.Size] {
		if pad != 0 {
			return nil, fmt.Errorf("%w: padding is not zero", ErrFormat)
		}
	}
	return h, nil
}

// parseLists reads the encryption context and the EDKs, which fill b.
func (h *Header) parseLists(b []byte) (err error) {
	if h.Context, b, err = keyring.ParseEncryptionContext(b); err != nil {
		return err
	}
	if len(b) < 1 || b[0] < 1 || b[0] > MaxEDKs {
		return errors.New("bad number of EDKs")
	}
	n := int(b[0])
	b = b[1:]
	h.EDKs = make([]keyring.EncryptedDataKey, n)
	for i := range h.EDKs {
		cmk, rest, ok1 := cut(b, MaxCMK)
		wrapped, rest, ok2 := cut(rest, MaxWrapped)
		if !ok1 || !ok2 {
			return fmt.Errorf("EDK %d has a bad length", i)
		}
		h.EDKs[i] = keyring.EncryptedDataKey{CMK: string(cmk), Wrapped: bytes.Clone(wrapped)}
		for _, e := range h.EDKs[:i] {
			if e.CMK == h.EDKs[i].CMK {
				return fmt.Errorf("CMK %q is listed twice", e.CMK)
			}
		}
		b = rest
	}
	if len(b) != 0 {
		return errors.New("bytes after the last EDK")
	}
	return nil
}

// cut cuts a 16-bit length, from 1 to limit, and that many bytes off b.
func cut(b []byte, limit int) (s, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if n < 1 || n > limit || len(b) < 2+n {
		return nil, nil, false
	}
	return b[2 : 2+n], b[2+n:], true
}

// appendSigned appends the bytes that the MAC covers.
func (h *Header) appendSigned(dst []byte) ([]byte, error) {
	log := bits.TrailingZeros(uint(h.SegmentSize))
	switch {
	case h.Algorithm.KeySize() == 0:
		return nil, fmt.Errorf("header: unknown algorithm %d", uint8(h.Algorithm))
	case h.SegmentSize != 1<<log || log < minSegmentLog || log > maxSegmentLog:
		return nil, fmt.Errorf("header: segment size %d is not a power of two from %d to %d", h.SegmentSize, 1<<minSegmentLog, 1<<maxSegmentLog)
	case h.Size%sizeUnit != 0 || h.Size < sizeUnit || h.Size > MaxSize:
		return nil, fmt.Errorf("header: bad header length %d", h.Size)
	case len(h.EDKs) < 1 || len(h.EDKs) > MaxEDKs:
		return nil, fmt.Errorf("header: %d EDKs; a header lists 1 to %d", len(h.EDKs), MaxEDKs)
	}
	var flags uint16
	if h.PlaintextNames {
		flags = flagPlainNames
	}
	start := len(dst)
	dst = append(dst, magic[:]...)
	dst = append(dst, Version, Version, byte(h.Kind), byte(h.Algorithm), byte(log), 0)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.Size))
	dst = append(dst, 0, 0, 0, 0) // used length, below
	dst = append(dst, h.FileID[:]...)
	dst = append(dst, h.KeyID[:]...)
	dst, err := h.Context.AppendTo(dst)
	if err != nil {
		return nil, err
	}
	dst = append(dst, byte(len(h.EDKs)))
	for i, e := range h.EDKs {
		if len(e.CMK) < 1 || len(e.CMK) > MaxCMK || len(e.Wrapped) < 1 || len(e.Wrapped) > MaxWrapped {
			return nil, fmt.Errorf("header: CMK %.60q: name of %d or wrapped key of %d bytes is too long", e.CMK, len(e.CMK), len(e.Wrapped))
		}
		for _, other := range h.EDKs[:i] {
			if other.CMK == e.CMK {
				return nil, fmt.Errorf("header: CMK %s is listed twice", e.CMK)
			}
		}
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(e.CMK)))
		dst = append(dst, e.CMK...)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(e.Wrapped)))
		dst = append(dst, e.Wrapped...)
	}
	dst = append(dst, h.commitment[:]...)
	used := len(dst) - start + macSize
	if used > h.Size {
		return nil, fmt.Errorf("header: %d bytes do not fit in a header of %d", used, h.Size)
	}
	binary.BigEndian.PutUint32(dst[start+20:], uint32(used))
	return dst, nil
}
