package sdkformat

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// alibabaVersion is that of both encodings.
const alibabaVersion = 1

// newAlibaba fills in what only messages of Alibaba Cloud have, in the order in which they have it.
func (m *Message) newAlibaba() error {
	for k, v := range m.Context {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return fmt.Errorf("%w: the encryption context is not UTF-8", ErrBounds)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(m.Context)) {
		m.pairs = append(m.pairs, k, m.Context[k])
	}
	m.ctx = m.alibabaCTX()
	if len(m.ctx) > maxCTX {
		return fmt.Errorf("%w: an encryption context of %d bytes, at most %d", ErrBounds, len(m.ctx), maxCTX)
	}
	// Streams have the EDKs sorted by the CMK, DER has every SET sorted by the bytes of its elements.
	slices.SortFunc(m.Keys, func(a, b Key) int { return strings.Compare(a.CMK, b.CMK) })
	if m.Format == Alibaba {
		slices.SortFunc(m.Keys, func(a, b Key) int { return bytes.Compare(appendKey(nil, a), appendKey(nil, b)) })
		var elements [][]byte
		for i := 0; i < len(m.pairs); i += 2 {
			elements = append(elements, appendPair(nil, m.pairs[i], m.pairs[i+1]))
		}
		slices.SortFunc(elements, bytes.Compare)
		m.pairs = nil
		for _, e := range elements {
			p := &parser{b: e}
			p.der(derSequence)
			m.pairs = append(m.pairs, string(p.derBytes()), string(p.derBytes()))
		}
	}
	return nil
}

// alibabaCTX encodes the context: nothing if it is empty.
func (m *Message) alibabaCTX() []byte {
	if len(m.Context) == 0 {
		return nil
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(m.Context)))
	for _, k := range slices.Sorted(maps.Keys(m.Context)) {
		b = append32(append32(b, k), m.Context[k])
	}
	return b
}

// append32 appends a length of four bytes and s.
func append32[T string | []byte](dst []byte, s T) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(s))), s...)
}

// wireText is a wrapped key as the KMS's own text.
func wireText(k Key) string { return base64.StdEncoding.EncodeToString(k.Wrapped) }

// alibabaAAD is what the header's tag covers. The number of pairs is in it twice, for CTX begins with it.
func (m *Message) alibabaAAD() []byte {
	b := binary.BigEndian.AppendUint32(nil, alibabaVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(m.Algorithm))
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.Context)))
	b = append(b, m.ctx...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.Keys)))
	sorted := slices.SortedFunc(slices.Values(m.Keys), func(a, b Key) int { return strings.Compare(a.CMK, b.CMK) })
	for _, k := range sorted {
		b = append32(append32(b, k.CMK), wireText(k))
	}
	return b
}

// addKey adds an EDK. SDKs keep one for each CMK.
func (m *Message) addKey(p *parser, cmk string, wrapped []byte) {
	twice := slices.ContainsFunc(m.Keys, func(k Key) bool { return k.CMK == cmk })
	p.expect(!twice && len(m.Keys) < maxKeys && len(wrapped) > 0, errKeys)
	m.Keys = append(m.Keys, Key{CMK: cmk, Wrapped: bytes.Clone(wrapped)})
}

// algorithm takes over an algorithm ID.
func (m *Message) algorithm(p *parser, id int64) suite {
	p.expect(id > 0 && id < int64(len(m.Format.suites())), errAlgorithm)
	if p.err != nil {
		return suite{}
	}
	m.Algorithm = int(id)
	return m.suite()
}

// parseAlibaba reads either encoding.
func (m *Message) parseAlibaba(p *parser) {
	if m.Format == Alibaba {
		m.parseDER(p)
	} else {
		m.parseFlat(p)
	}
	m.ctx = m.alibabaCTX()
}

func (m *Message) parseDER(p *parser) {
	outer := p.der(derSequence)
	start := int64(p.at)
	h := p.sub(p.der(derSequence))
	p.expect(h.derNumber() == alibabaVersion, errValue)
	s := m.algorithm(h, int64(h.derNumber()))
	keys := h.sub(h.der(derSet))
	for keys.err == nil && keys.at < len(keys.b) {
		k := keys.sub(keys.der(derSequence))
		m.addKey(k, k.text(k.derBytes()), k.derBytes())
		keys.end(k)
	}
	h.end(keys)
	pairs := h.sub(h.der(derSet))
	for pairs.err == nil && pairs.at < len(pairs.b) {
		pair := pairs.sub(pairs.der(derSequence))
		m.addPair(pair, pair.text(pair.derBytes()), pair.text(pair.derBytes()))
		pairs.end(pair)
	}
	h.end(pairs)
	m.headerIV, m.headerTag = bytes.Clone(h.derBytes()), bytes.Clone(h.derBytes())
	p.end(h)
	p.expect(len(m.Keys) > 0, errKeys)
	p.expect(len(m.headerIV) == gcmIVSize && len(m.headerTag) == gcmTagSize, errValue)

	body := p.der(derSequence)
	bodyStart := int64(p.at)
	m.bodyIV = bytes.Clone(p.derBytes())
	p.expect(len(m.bodyIV) == s.ivSize(), errValue)
	m.length = p.der(derOctetString)
	if p.err != nil {
		return
	}
	p.expect(int64(p.at)-bodyStart+m.length+m.trailer() == body && bodyStart+body == start+outer, errCut)
}

func appendKey(dst []byte, k Key) []byte {
	content := appendTLV(nil, derOctetString, []byte(k.CMK))
	return appendTLV(dst, derSequence, appendTLV(content, derOctetString, k.Wrapped))
}

func appendPair(dst []byte, key, value string) []byte {
	content := appendTLV(nil, derOctetString, []byte(key))
	return appendTLV(dst, derSequence, appendTLV(content, derOctetString, []byte(value)))
}

func (m *Message) appendDER(dst []byte) []byte {
	h := appendTLV(nil, derInteger, []byte{alibabaVersion})
	h = appendTLV(h, derInteger, []byte{byte(m.Algorithm)})
	var set []byte
	for _, k := range m.Keys {
		set = appendKey(set, k)
	}
	h = appendTLV(h, derSet, set)
	set = nil
	for i := 0; i < len(m.pairs); i += 2 {
		set = appendPair(set, m.pairs[i], m.pairs[i+1])
	}
	h = appendTLV(h, derSet, set)
	h = appendTLV(h, derOctetString, m.headerIV)
	h = appendTLV(h, derOctetString, m.headerTag)
	h = appendTLV(nil, derSequence, h)

	iv := appendTLV(nil, derOctetString, m.bodyIV)
	body := int64(len(iv)) + sizeTL(m.length) + m.length + m.trailer()
	dst = appendTL(dst, derSequence, int64(len(h))+sizeTL(body)+body)
	dst = append(dst, h...)
	dst = append(appendTL(dst, derSequence, body), iv...)
	return appendTL(dst, derOctetString, m.length)
}

func (m *Message) parseFlat(p *parser) {
	p.expect(p.number(4) == alibabaVersion, errValue)
	s := m.algorithm(p, p.number(4))
	ctx := p.field(4, MaxPrefix)
	if len(ctx) > 0 {
		c := &parser{b: ctx}
		n := c.number(4)
		c.expect(n > 0, errValue)
		for range n {
			if c.err != nil {
				break
			}
			m.addPair(c, c.text(c.field(4, MaxPrefix)), c.text(c.field(4, MaxPrefix)))
		}
		p.end(c)
		p.expect(bytes.Equal(ctx, m.alibabaCTX()), errContext)
	}
	n := p.number(4)
	p.expect(n > 0 && n <= maxKeys, errKeys)
	for range n {
		if p.err != nil {
			return
		}
		cmk, text := p.text(p.field(4, MaxPrefix)), string(p.field(4, MaxPrefix))
		wrapped, err := base64.StdEncoding.Strict().DecodeString(text)
		p.expect(err == nil && base64.StdEncoding.EncodeToString(wrapped) == text, errValue)
		m.addKey(p, cmk, wrapped)
	}
	m.headerIV, m.headerTag = bytes.Clone(p.field(4, gcmIVSize)), bytes.Clone(p.field(4, gcmTagSize))
	p.expect(len(m.headerIV) == gcmIVSize && len(m.headerTag) == gcmTagSize, errValue)
	p.expect(p.littleEndian32() == int64(s.ivSize()), errValue)
	m.bodyIV = bytes.Clone(p.bytes(int64(s.ivSize())))
}

func (m *Message) appendFlat(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, alibabaVersion)
	dst = binary.BigEndian.AppendUint32(dst, uint32(m.Algorithm))
	dst = append32(dst, m.ctx)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(m.Keys)))
	for _, k := range m.Keys {
		dst = append32(append32(dst, k.CMK), wireText(k))
	}
	dst = append32(append32(dst, m.headerIV), m.headerTag)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(m.bodyIV)))
	return append(dst, m.bodyIV...)
}
