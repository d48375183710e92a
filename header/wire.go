package header

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/kmsfs/kmsfs/keyring"
)

var magic = [8]byte{'k', 'm', 's', 'f', 's', 0, '\r', '\n'}

// Begins reports whether b begins as a header does, sound or not.
func Begins(b []byte) bool { return bytes.HasPrefix(b, magic[:]) }

// FileIDIn returns the file ID in the first [FixedSize] bytes of a header, sound or not.
func FileIDIn(fixed []byte) ID { return ID(fixed[24:40]) }

// Parse reads a header from the start of b and checks its structure; it authenticates nothing. The error wraps [ErrFormat], or
// [ErrVersion] if this package is too old for the header.
func Parse(b []byte) (*Header, error) {
	if len(b) < FixedSize {
		return nil, fmt.Errorf("%w: only %d bytes", ErrFormat, len(b))
	}
	if [8]byte(b[:8]) != magic {
		return nil, fmt.Errorf("%w: no magic", ErrFormat)
	}
	switch version, minReader := b[8], b[9]; {
	case minReader > Version:
		return nil, fmt.Errorf("%w: it needs a reader of format version %d, this one reads %d", ErrVersion, minReader, Version)
	case minReader != Version || version < minReader:
		return nil, fmt.Errorf("%w: format version %d, minimum reader version %d", ErrFormat, version, minReader)
	}
	h := &Header{
		Kind:      Kind(b[10]),
		Algorithm: Algorithm(b[11]),
		Size:      int(binary.BigEndian.Uint32(b[16:])),
		FileID:    FileIDIn(b),
		KeyID:     ID(b[40:56]),
	}
	log, reserved, flags := b[12], b[13], binary.BigEndian.Uint16(b[14:])
	rotated := false
	if b[8] > Version {
		h.later.version, h.later.flags = b[8], flags&flagsIgnorable
		flags &^= flagsIgnorable
		if h.Kind == Volume {
			h.PerFile, rotated = h.later.flags&flagPerFile != 0, h.later.flags&flagRotated != 0
			h.later.flags &^= flagPerFile | flagRotated
		}
	}
	used := int(binary.BigEndian.Uint32(b[20:]))
	switch {
	case h.Kind != File && h.Kind != Volume && (h.Kind != Current || b[8] < version2):
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
	h.used = used
	h.SegmentSize = 1 << log
	h.PlaintextNames = flags&flagPlainNames != 0

	fields, err := h.parseLists(b[FixedSize : used-commitmentSize-macSize])
	if err == nil {
		err = h.parseFields(fields, rotated)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	h.commitment = [commitmentSize]byte(b[used-macSize-commitmentSize:])
	h.mac = [macSize]byte(b[used-macSize:])
	for _, pad := range b[used:h.Size] {
		if pad != 0 {
			return nil, fmt.Errorf("%w: padding is not zero", ErrFormat)
		}
	}
	return h, nil
}

// parseLists reads the encryption context and the EDKs, and returns what is left of b.
func (h *Header) parseLists(b []byte) (rest []byte, err error) {
	if h.Context, b, err = keyring.ParseEncryptionContext(b); err != nil {
		return nil, err
	}
	if len(b) < 1 || b[0] < 1 || b[0] > MaxEDKs {
		return nil, errors.New("bad number of EDKs")
	}
	n := int(b[0])
	b = b[1:]
	h.EDKs = make([]keyring.EncryptedDataKey, n)
	for i := range h.EDKs {
		cmk, rest, ok1 := cut(b, MaxCMK)
		wrapped, rest, ok2 := cut(rest, MaxWrapped)
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("EDK %d has a bad length", i+1)
		}
		h.EDKs[i] = keyring.EncryptedDataKey{CMK: string(cmk), Wrapped: bytes.Clone(wrapped)}
		if lists(h.EDKs[:i], h.EDKs[i].CMK) {
			return nil, fmt.Errorf("CMK %q is listed twice", h.EDKs[i].CMK)
		}
		b = rest
	}
	return b, nil
}

// parseFields reads what later versions have between the EDKs and the key commitment.
func (h *Header) parseFields(b []byte, rotated bool) error {
	if len(b) != 0 && h.later.version == 0 {
		return errors.New("bytes after the last EDK")
	}
	if h.Kind == Current || rotated {
		if len(b) < 8 {
			return errors.New("no generation")
		}
		if h.Generation, b = binary.BigEndian.Uint64(b), b[8:]; h.Generation == 0 {
			return errors.New("generation 0")
		}
	}
	if h.Kind == Current {
		if len(b) < endorsementSize {
			return errors.New("no endorsement")
		}
		h.Endorsement, b = [endorsementSize]byte(b), b[endorsementSize:]
	}
	h.later.fields = string(b)
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

// check looks at the fields of constant length.
func (h *Header) check() error {
	switch {
	case h.Kind != File && h.Kind != Volume && h.Kind != Current:
		return fmt.Errorf("%w: unknown kind %d", ErrBounds, h.Kind)
	case h.Algorithm.KeySize() == 0:
		return fmt.Errorf("%w: unknown algorithm %d", ErrBounds, uint8(h.Algorithm))
	case h.SegmentSize < 1<<minSegmentLog || h.SegmentSize > 1<<maxSegmentLog || bits.OnesCount(uint(h.SegmentSize)) != 1:
		return fmt.Errorf("%w: segment size %d is not a power of two from %d to %d", ErrBounds, h.SegmentSize, 1<<minSegmentLog, 1<<maxSegmentLog)
	case (h.PlaintextNames || h.PerFile) && h.Kind != Volume:
		return fmt.Errorf("%w: what only a volume may say", ErrBounds)
	case h.Kind == Current && h.Generation == 0, h.Kind == File && h.Generation != 0:
		return fmt.Errorf("%w: generation %d", ErrBounds, h.Generation)
	case h.Size%sizeUnit != 0 || h.Size < sizeUnit || h.Size > MaxSize:
		return fmt.Errorf("%w: header length %d is not a multiple of %d up to %d", ErrBounds, h.Size, sizeUnit, MaxSize)
	case len(h.EDKs) < 1 || len(h.EDKs) > MaxEDKs:
		return fmt.Errorf("%w: %d wrapped data keys; a header lists 1 to %d", ErrBounds, len(h.EDKs), MaxEDKs)
	}
	return nil
}

// appendSigned appends the bytes that the MAC covers, of which there is one spelling. The error wraps [ErrBounds].
func (h *Header) appendSigned(dst []byte) ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	start := len(dst)
	dst, err := h.appendFixed(dst)
	if err != nil {
		return nil, err
	}
	dst = append(dst, byte(len(h.EDKs)))
	for i, e := range h.EDKs {
		switch {
		case len(e.CMK) < 1 || len(e.CMK) > MaxCMK:
			return nil, fmt.Errorf("%w: CMK %.60q has a name of %d bytes, at most %d", ErrBounds, e.CMK, len(e.CMK), MaxCMK)
		case len(e.Wrapped) < 1 || len(e.Wrapped) > MaxWrapped:
			return nil, fmt.Errorf("%w: CMK %q wrapped the data key to %d bytes, at most %d", ErrBounds, e.CMK, len(e.Wrapped), MaxWrapped)
		case lists(h.EDKs[:i], e.CMK):
			return nil, fmt.Errorf("%w: CMK %q is listed twice", ErrBounds, e.CMK)
		}
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(e.CMK)))
		dst = append(dst, e.CMK...)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(e.Wrapped)))
		dst = append(dst, e.Wrapped...)
	}
	dst = h.appendAfter(dst)
	used := len(dst) - start + macSize
	if used > h.Size {
		return nil, fmt.Errorf("%w: %d bytes do not fit into a header of %d", ErrBounds, used, h.Size)
	}
	binary.BigEndian.PutUint32(dst[start+20:], uint32(used))
	return dst, nil
}

// appendFixed appends what comes before the EDKs, with a used length of 0.
func (h *Header) appendFixed(dst []byte) ([]byte, error) {
	flags := h.later.flags
	if h.PlaintextNames {
		flags |= flagPlainNames
	}
	if h.PerFile {
		flags |= flagPerFile
	}
	if h.Kind == Volume && h.Generation > 0 {
		flags |= flagRotated
	}
	dst = append(dst, magic[:]...)
	dst = append(dst, byte(h.FormatVersion()), Version, byte(h.Kind), byte(h.Algorithm), byte(bits.TrailingZeros(uint(h.SegmentSize))), 0)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.Size))
	dst = append(dst, 0, 0, 0, 0)
	dst = append(dst, h.FileID[:]...)
	dst = append(dst, h.KeyID[:]...)
	dst, err := h.Context.AppendTo(dst)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBounds, err)
	}
	return dst, nil
}

// appendAfter appends what is between the EDKs and the MAC.
func (h *Header) appendAfter(dst []byte) []byte {
	if h.Generation > 0 {
		dst = binary.BigEndian.AppendUint64(dst, h.Generation)
	}
	if h.Kind == Current {
		dst = append(dst, h.Endorsement[:]...)
	}
	dst = append(dst, h.later.fields...)
	return append(dst, h.commitment[:]...)
}

// AppendLasting appends what a rewrap leaves as it is: everything but the EDKs, and the used length and the MAC, which follow from them. The error
// wraps [ErrBounds].
func (h *Header) AppendLasting(dst []byte) ([]byte, error) {
	dst, err := h.appendFixed(dst)
	if err != nil {
		return nil, err
	}
	return h.appendAfter(dst), nil
}

// lists reports whether one of edks is from cmk.
func lists(edks []keyring.EncryptedDataKey, cmk string) bool {
	return slices.ContainsFunc(edks, func(e keyring.EncryptedDataKey) bool { return e.CMK == cmk })
}
