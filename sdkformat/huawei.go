package sdkformat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/emmansun/gmsm/sm3"
)

const (
	huaweiVersion     = 1
	huaweiContentType = 1
	providerKMS       = "huawei-kms"
	providerRaw       = "huawei-local"
	maxHuaweiField    = 127   // a Java byte
	maxHuaweiLong     = 32767 // a Java short

	infoNamed   = 1 // key information that names the CMK: the SDK's discovery
	infoUnnamed = 2
)

// A huaweiCMK is what the key information names. The endpoint that it names, too, is not kept: nobody has authenticated it.
type huaweiCMK struct{ id, region, project string }

// newHuawei fills in what only messages of Huawei Cloud have. CMKs are not named, which is the SDK's default.
func (m *Message) newHuawei() error {
	// Pairs are sorted by value, in the order of Java's strings. Of two equal values the SDK does not say which comes first, and may fail to open the message.
	type pair struct {
		key, value string
		order      []uint16
	}
	var pairs []pair
	for k, v := range m.Context {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return fmt.Errorf("%w: the encryption context is not UTF-8", ErrBounds)
		}
		if len(k) > maxHuaweiLong || len(v) > maxHuaweiLong {
			return fmt.Errorf("%w: an encryption context of more than %d bytes", ErrBounds, maxCTX)
		}
		pairs = append(pairs, pair{k, v, utf16.Encode([]rune(v))})
	}
	slices.SortFunc(pairs, func(a, b pair) int { return slices.Compare(a.order, b.order) })
	if len(pairs) > 0 {
		m.ctx = binary.BigEndian.AppendUint16(nil, uint16(len(pairs)))
	}
	for i, p := range pairs {
		if i > 0 && pairs[i-1].value == p.value {
			return fmt.Errorf("%w: keys %q and %q of the encryption context have the same value, which Huawei Cloud's SDK cannot read reliably", ErrBounds, pairs[i-1].key, p.key)
		}
		m.pairs = append(m.pairs, p.key, p.value)
		m.ctx = append16(append16(m.ctx, p.key), p.value)
	}
	if len(m.ctx) > maxCTX {
		return fmt.Errorf("%w: an encryption context of %d bytes, at most %d", ErrBounds, len(m.ctx), maxCTX)
	}
	for i := range m.Keys {
		k := &m.Keys[i]
		k.CMK, k.provider, k.info = "", providerKMS, []byte{infoUnnamed}
		if len(k.Wrapped) > maxHuaweiLong {
			return fmt.Errorf("%w: a wrapped data key of %d bytes", ErrBounds, len(k.Wrapped))
		}
	}
	return nil
}

// append16 appends a length of two bytes and s.
func append16[T string | []byte](dst []byte, s T) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

// append8 appends a length of one byte and s.
func append8[T string | []byte](dst []byte, s T) []byte {
	return append(append(dst, byte(len(s))), s...)
}

// huaweiAAD is what the header's tag covers: the fields before it.
func (m *Message) huaweiAAD() []byte {
	b := []byte{huaweiVersion}
	b = binary.BigEndian.AppendUint16(b, uint16(m.Algorithm))
	b = append16(b, m.ctx)
	b = append(b, byte(len(m.Keys)))
	for _, k := range m.Keys {
		b = append16(append8(append8(b, k.provider), k.info), k.Wrapped)
	}
	return append(b, huaweiContentType, byte(m.suite().ivSize()))
}

func (m *Message) appendHuawei(dst []byte) ([]byte, error) {
	h := m.huaweiAAD()
	if m.Authenticated() {
		h = append16(h, append(bytes.Clone(m.headerIV), m.headerTag...))
	} else {
		h = append16(h, m.headerTag)
	}
	if m.Format == HuaweiStream {
		if len(h) > maxHuaweiLong {
			return nil, fmt.Errorf("%w: a header of %d bytes, at most %d", ErrBounds, len(h), maxHuaweiLong)
		}
		return append16(dst, h), nil
	}
	dst = append(append(dst, h...), m.bodyIV...)
	return binary.BigEndian.AppendUint64(dst, uint64(m.length)), nil
}

func (m *Message) parseHuawei(p *parser) {
	if m.Format == HuaweiStream {
		h := p.sub(p.number(2))
		p.expect(len(h.b) <= maxHuaweiLong, errCut)
		m.parseHuaweiHeader(h)
		p.end(h)
		return
	}
	s := m.parseHuaweiHeader(p)
	if p.err == nil {
		m.bodyIV = bytes.Clone(p.bytes(int64(s.ivSize())))
		m.length = p.number(8)
	}
}

func (m *Message) parseHuaweiHeader(p *parser) suite {
	p.expect(p.number(1) == huaweiVersion, errValue)
	s := m.algorithm(p, p.number(2))
	m.ctx = bytes.Clone(p.field(2, maxCTX))
	if len(m.ctx) > 0 {
		c := &parser{b: m.ctx}
		n := c.number(2)
		c.expect(n > 0, errValue)
		for range n {
			if c.err != nil {
				break
			}
			m.addPair(c, c.text(c.field(2, maxHuaweiLong)), c.text(c.field(2, maxHuaweiLong)))
		}
		p.end(c)
	}
	n := p.number(1)
	p.expect(n > 0 && n <= maxKeys, errKeys)
	for range n {
		if p.err != nil {
			return s
		}
		k := Key{
			provider: string(p.field(1, maxHuaweiField)), info: bytes.Clone(p.field(1, maxHuaweiField)),
			Wrapped: bytes.Clone(p.field(2, maxHuaweiLong)),
		}
		p.expect(k.provider == providerKMS || k.provider == providerRaw, errValue)
		p.expect(len(k.Wrapped) > 0, errKeys)
		k.named = parseKeyInfo(p, k.info)
		m.Keys = append(m.Keys, k)
	}
	p.expect(p.number(1) == huaweiContentType, errValue)
	p.expect(p.number(1) == int64(s.ivSize()), errValue)
	tag := p.field(2, maxHuaweiLong)
	if p.err == nil && m.Authenticated() {
		p.expect(len(tag) == gcmIVSize+gcmTagSize, errValue)
		m.headerIV, m.headerTag = bytes.Clone(tag[:min(gcmIVSize, len(tag))]), bytes.Clone(tag[min(gcmIVSize, len(tag)):])
	} else {
		p.expect(len(tag) == sm3.Size, errValue)
		m.headerTag = bytes.Clone(tag)
	}
	return s
}

// parseKeyInfo reads key information: of a CMK that is named, or not.
func parseKeyInfo(p *parser, info []byte) (c huaweiCMK) {
	i := &parser{b: info, err: p.err}
	if i.number(1) == infoUnnamed {
		p.end(i)
		return c
	}
	i.at = 0
	i.expect(i.number(1) == infoNamed, errValue)
	c.id, c.region, c.project = string(i.field(1, maxHuaweiField)), string(i.field(1, maxHuaweiField)), string(i.field(1, maxHuaweiField))
	i.field(1, maxHuaweiField) // an endpoint
	p.end(i)
	return c
}
