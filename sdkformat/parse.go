package sdkformat

import (
	"encoding/binary"
	"errors"
	"unicode/utf8"

	"github.com/kmsfs/kmsfs/keyring"
)

var (
	errCut       = errors.New("it ends early, or a length is wrong")
	errValue     = errors.New("a field has a value that none of the SDKs writes")
	errAlgorithm = errors.New("unknown algorithm")
	errContext   = errors.New("the encryption context is not sorted, not UTF-8, or has a key twice")
	errKeys      = errors.New("the wrapped data keys are too many, none, or name a CMK twice")
	errDER       = errors.New("it is not DER")
)

// A parser reads fields off b. After an error it reads zeros.
type parser struct {
	b   []byte
	at  int
	err error
}

func (p *parser) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// expect fails unless ok.
func (p *parser) expect(ok bool, err error) {
	if !ok {
		p.fail(err)
	}
}

// bytes returns the next n bytes.
func (p *parser) bytes(n int64) []byte {
	if p.err == nil && (n < 0 || n > int64(len(p.b)-p.at)) {
		p.fail(errCut)
	}
	if p.err != nil {
		return nil
	}
	p.at += int(n)
	return p.b[p.at-int(n) : p.at : p.at]
}

// number reads an unsigned number of size bytes.
func (p *parser) number(size int) int64 {
	n := int64(0)
	for _, b := range p.bytes(int64(size)) {
		p.expect(n < 1<<55, errCut)
		n = n<<8 | int64(b)
	}
	return n
}

// field reads a length of size bytes, at most limit, and that many bytes.
func (p *parser) field(size int, limit int64) []byte {
	n := p.number(size)
	p.expect(n <= limit, errCut)
	return p.bytes(n)
}

// littleEndian32 reads a number.
func (p *parser) littleEndian32() int64 {
	if b := p.bytes(4); p.err == nil {
		return int64(binary.LittleEndian.Uint32(b))
	}
	return 0
}

// sub returns a parser of the next n bytes.
func (p *parser) sub(n int64) *parser { return &parser{b: p.bytes(n), err: p.err} }

// end fails unless a parser has read all that it was made for; p takes over its error.
func (p *parser) end(sub *parser) {
	sub.expect(sub.at == len(sub.b), errCut)
	if sub.err != nil {
		p.fail(sub.err)
	}
}

// text reads a field that has to be UTF-8.
func (p *parser) text(b []byte) string {
	p.expect(utf8.Valid(b), errContext)
	return string(b)
}

// context adds a pair to the message's encryption context.
func (m *Message) addPair(p *parser, key, value string) {
	if m.Context == nil {
		m.Context = make(keyring.EncryptionContext)
	}
	_, twice := m.Context[key]
	p.expect(!twice, errContext)
	m.Context[key] = value
	m.pairs = append(m.pairs, key, value)
}

// DER, as far as the messages need it.
const (
	derInteger     = 0x02
	derOctetString = 0x04
	derSequence    = 0x30
	derSet         = 0x31
)

// der reads a tag and a length, which is as short as it can be.
func (p *parser) der(tag byte) int64 {
	p.expect(p.number(1) == int64(tag), errDER)
	n := p.number(1)
	if n < 0x80 {
		return n
	}
	size := int(n - 0x80)
	p.expect(size >= 1 && size <= 7, errDER)
	if p.err != nil {
		return 0
	}
	n = p.number(size)
	p.expect(n >= 0x80 && n>>(8*(size-1)) != 0, errDER)
	return n
}

// derBytes reads an OCTET STRING.
func (p *parser) derBytes() []byte { return p.bytes(p.der(derOctetString)) }

// derNumber reads an INTEGER of one byte.
func (p *parser) derNumber() int {
	b := p.bytes(p.der(derInteger))
	p.expect(len(b) == 1 && b[0] < 0x80, errValue)
	if p.err != nil {
		return 0
	}
	return int(b[0])
}

// appendTL appends a tag and a length.
func appendTL(dst []byte, tag byte, n int64) []byte {
	dst = append(dst, tag)
	if n < 0x80 {
		return append(dst, byte(n))
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(n))
	for b[0] == 0 {
		b = b[1:]
	}
	return append(append(dst, 0x80|byte(len(b))), b...)
}

// appendTLV appends an element with the given content.
func appendTLV(dst []byte, tag byte, content []byte) []byte {
	return append(appendTL(dst, tag, int64(len(content))), content...)
}

// sizeTL is the length of what appendTL appends.
func sizeTL(n int64) int64 { return int64(len(appendTL(nil, 0, n))) }
