// Package sdkformat reads and writes the messages of the two clouds' encryption SDKs.
//
// A message is a header, which names a data key that CMKs have wrapped and ends in a tag under that key, and a body that the same key seals: in one run
// of a cipher or, for streams of Huawei Cloud, in segments. docs/sdk-formats.md describes the four formats, what they do not protect, and what this package
// checks beyond the SDKs. [Parse] checks the structure; nothing in a message is to be believed before [Message.Verify] has checked its header, and nothing in
// its body before [Message.Open] has.
package sdkformat

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"

	"github.com/kmsfs/kmsfs/keyring"
)

// Errors that callers branch on.
var (
	ErrFormat = errors.New("sdkformat: not a message of this format")
	ErrAuth   = errors.New("sdkformat: does not authenticate")
	ErrBounds = errors.New("sdkformat: more than a message of this format can hold")
	// ErrUnauthenticated says that a message is of an algorithm that does not authenticate its body: whoever can write it can change the plaintext.
	ErrUnauthenticated = errors.New("sdkformat: the algorithm does not authenticate the content")
)

// Bounds of what is read.
const (
	MaxPrefix = 256 << 10 // bytes before the body
	maxKeys   = 127       // EDKs; a Java byte
	maxCTX    = 32767     // bytes of an encoded context; a Java short, and a buffer of the other SDK
)

// A Format is one of the layouts.
type Format int

// The formats.
const (
	Alibaba       Format = iota + 1 // a DER object
	AlibabaStream                   // a flat header, and the rest of the stream is the body
	Huawei
	HuaweiStream // segments
)

// Formats lists all of them.
func Formats() []Format { return []Format{Alibaba, AlibabaStream, Huawei, HuaweiStream} }

// String returns the format's name on the command line.
func (f Format) String() string {
	if f < Alibaba || f > HuaweiStream {
		return fmt.Sprintf("format %d", int(f))
	}
	return [...]string{"alibaba", "alibaba-stream", "huawei", "huawei-stream"}[f-1]
}

// OfAlibaba reports whether the format is Alibaba Cloud's; else it is Huawei Cloud's.
func (f Format) OfAlibaba() bool { return f == Alibaba || f == AlibabaStream }

// A Cipher seals the body of a message.
type Cipher int

// The ciphers that a message can be made with.
const (
	AES256GCM Cipher = iota + 1
	AES128GCM
	SM4128GCM
)

// modes of operation
const (
	modeGCM = iota + 1
	modeCBC
	modeCBCPadded // PKCS#7
	modeCTR
)

// A suite is an algorithm of a vendor's table.
type suite struct {
	mode    int
	sm4     bool
	keySize int
}

func (s suite) ivSize() int {
	if s.mode == modeGCM {
		return gcmIVSize
	}
	return aes.BlockSize // and SM4's
}

func (s suite) tagSize() int {
	if s.mode == modeGCM {
		return gcmTagSize
	}
	return 0
}

// suites returns the algorithms of a format by ID; 0 is none.
func (f Format) suites() []suite {
	if f.OfAlibaba() {
		return []suite{{}, {modeGCM, false, 16}, {modeGCM, false, 32},
			{modeCBC, false, 16}, {modeCBC, false, 32}, {modeCBCPadded, false, 16}, {modeCBCPadded, false, 32},
			{modeCTR, false, 16}, {modeCTR, false, 32},
			{modeGCM, true, 16}, {modeCBC, true, 16}, {modeCBCPadded, true, 16}, {modeCTR, true, 16}}
	}
	return []suite{{}, {modeGCM, false, 16}, {modeGCM, false, 32}, {modeGCM, true, 16}, {modeCBCPadded, true, 16}}
}

// A Message is all of a message but the sealed bytes of its body.
type Message struct {
	Format    Format
	Algorithm int // the vendor's ID
	Context   keyring.EncryptionContext
	Keys      []Key // in the order of the message

	pairs     []string // of Context in the order of the message: key, value, key, value
	ctx       []byte   // the AAD that stands for Context
	headerIV  []byte
	headerTag []byte
	bodyIV    []byte // not of segments
	length    int64  // of the body's ciphertext; -1 if the message does not tell
	size      int    // of the prefix
}

// A Key is a data key wrapped by one CMK.
type Key struct {
	CMK     string // what an Alibaba Cloud message calls the CMK: its ARN, as a rule; empty at Huawei Cloud
	Wrapped []byte // what the KMS or a raw keyring made

	provider string // of Huawei Cloud: providerKMS or providerRaw
	info     []byte // of Huawei Cloud
	named    huaweiCMK
}

// New returns a message that is about to be sealed with dk. Its body has length bytes of plaintext, -1 if that is not known; formats that tell it in front
// take it from [Message.Seal] then. The error wraps [ErrBounds].
func New(f Format, c Cipher, ec keyring.EncryptionContext, keys []keyring.EncryptedDataKey, dk keyring.DataKey) (*Message, error) {
	m := &Message{Format: f, Context: maps.Clone(ec), length: -1}
	want := suite{modeGCM, c == SM4128GCM, 16}
	if c == AES256GCM {
		want.keySize = 32
	}
	m.Algorithm = slices.Index(f.suites(), want)
	if len(dk) != want.keySize {
		return nil, fmt.Errorf("%w: a data key of %d bytes", ErrBounds, len(dk))
	}
	if len(keys) < 1 || len(keys) > maxKeys {
		return nil, fmt.Errorf("%w: %d wrapped data keys, at most %d", ErrBounds, len(keys), maxKeys)
	}
	for _, k := range keys {
		m.Keys = append(m.Keys, Key{CMK: k.CMK, Wrapped: k.Wrapped})
	}
	prepare := m.newHuawei
	if f.OfAlibaba() {
		prepare = m.newAlibaba
	}
	if err := prepare(); err != nil {
		return nil, err
	}
	m.bodyIV = make([]byte, want.ivSize())
	m.headerIV = make([]byte, gcmIVSize)
	rand.Read(m.bodyIV)
	rand.Read(m.headerIV)
	m.headerTag = m.authenticate(dk)
	if b, err := m.Append(nil); err != nil || len(b) > MaxPrefix {
		return nil, errors.Join(err, fmt.Errorf("%w: a header of %d bytes, at most %d", ErrBounds, len(b), MaxPrefix))
	}
	return m, nil
}

// Parse reads what precedes the sealed bytes of a message at the start of b, which holds the whole message or at least [MaxPrefix] bytes of it. It
// authenticates nothing. The error wraps [ErrFormat].
func Parse(f Format, b []byte) (*Message, error) {
	b = b[:min(len(b), MaxPrefix)]
	m := &Message{Format: f, length: -1}
	p := &parser{b: b}
	if f.OfAlibaba() {
		m.parseAlibaba(p)
	} else {
		m.parseHuawei(p)
	}
	if p.err != nil {
		return nil, fmt.Errorf("%w (%v): %w", ErrFormat, f, p.err)
	}
	m.size = p.at
	return m, nil
}

// Detect returns the message that b, as for [Parse], begins with. size is that of the whole message, or -1. The error wraps [ErrFormat], or
// [ErrAuth] if the message was cut or extended.
func Detect(b []byte, size int64) (*Message, error) {
	var found, misfits []*Message
	for _, f := range Formats() {
		m, err := Parse(f, b)
		switch {
		case err != nil:
		case size < 0 || m.fits(size):
			found = append(found, m)
		default:
			misfits = append(misfits, m)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0 && len(misfits) > 0:
		return nil, fmt.Errorf("%w: it begins like a message (%v), but was cut or extended", ErrAuth, misfits[0])
	case len(found) == 0:
		return nil, fmt.Errorf("%w: it is of no format that is known", ErrFormat)
	}
	return nil, fmt.Errorf("%w: it could be %v or %v; say which", ErrFormat, found[0].Format, found[1].Format)
}

// fits reports whether a message may have size bytes.
func (m *Message) fits(size int64) bool {
	rest := size - int64(m.size)
	switch {
	case m.length >= 0:
		return rest == m.length+m.trailer()
	case m.Format == HuaweiStream:
		return rest >= 0
	}
	return rest >= m.trailer()
}

// trailer is how many bytes follow the ciphertext of the body.
func (m *Message) trailer() int64 {
	n := int64(m.suite().tagSize())
	if m.Format == Alibaba {
		n += 2 // tag and length of an OCTET STRING
	}
	return n
}

// Append appends the bytes that precede the sealed ones to dst. The error wraps [ErrBounds].
func (m *Message) Append(dst []byte) ([]byte, error) {
	switch {
	case m.length < 0 && (m.Format == Alibaba || m.Format == Huawei):
		probe := *m
		probe.length = 0
		return probe.Append(dst)
	case m.Format == Alibaba:
		return m.appendDER(dst), nil
	case m.Format == AlibabaStream:
		return m.appendFlat(dst), nil
	}
	return m.appendHuawei(dst)
}

func (m *Message) suite() suite { return m.Format.suites()[m.Algorithm] }

// KeySize returns the length of the message's data key in bytes.
func (m *Message) KeySize() int { return m.suite().keySize }

// Authenticated reports whether the message's algorithm authenticates its body.
func (m *Message) Authenticated() bool { return m.suite().mode == modeGCM }

// Segmented reports whether the body is opened segment by segment, front to back; else it has to be read twice.
func (m *Message) Segmented() bool { return m.Format == HuaweiStream }

// Prefix returns how many bytes precede the sealed ones.
func (m *Message) Prefix() int { return m.size }

// String names the format and the cipher.
func (m *Message) String() string { return m.Format.String() + ", " + m.CipherName() }

// CipherName describes the algorithm that seals the body.
func (m *Message) CipherName() string {
	s := m.suite()
	name := fmt.Sprintf("AES-%d", 8*s.keySize)
	if s.sm4 {
		name = "SM4"
	}
	return name + [...]string{"", "-GCM", "-CBC", "-CBC", "-CTR"}[s.mode]
}

// Verify checks the tag of the header, which covers all of it, with the data key. The error wraps [ErrAuth].
func (m *Message) Verify(dk keyring.DataKey) error {
	if len(dk) != m.KeySize() || !hmac.Equal(m.authenticate(dk), m.headerTag) {
		return fmt.Errorf("%w: the header was changed, or the data key is another one's", ErrAuth)
	}
	return nil
}

// authenticate computes the header's tag. Where the body is SM4-CBC, Huawei Cloud's SDK has no tag but a hash, which anyone can compute.
func (m *Message) authenticate(dk keyring.DataKey) []byte {
	aad := m.alibabaAAD
	if !m.Format.OfAlibaba() {
		aad = m.huaweiAAD
		if !m.Authenticated() {
			sum := sm3.Sum(aad())
			return sum[:]
		}
	}
	aead, err := cipher.NewGCM(m.suite().block(dk))
	if err != nil {
		panic("sdkformat: internal error: " + err.Error())
	}
	return aead.Seal(nil, m.headerIV, nil, aad())
}

func (s suite) block(dk keyring.DataKey) cipher.Block {
	newBlock := aes.NewCipher
	if s.sm4 {
		newBlock = sm4.NewCipher
	}
	block, err := newBlock(dk)
	if err != nil {
		panic("sdkformat: internal error: " + err.Error())
	}
	return block
}

// EDKs returns the message's wrapped data keys that CMKs of the given URIs may have wrapped, under their URIs: a message need not tell which wrapped what.
// Endpoints and such that a message names are never used.
func (m *Message) EDKs(cmks []string) (edks []keyring.EncryptedDataKey) {
	for _, k := range m.Keys {
		for _, uri := range cmks {
			if m.wrappedBy(k, uri) {
				edks = append(edks, keyring.EncryptedDataKey{CMK: uri, Wrapped: k.Wrapped})
			}
		}
	}
	return edks
}

func (m *Message) wrappedBy(k Key, uri string) bool {
	f := strings.Split(uri, ":") // PROVIDER:kms:REGION:ACCOUNT:key/ID
	if len(f) != 5 {
		return false
	}
	id := strings.TrimPrefix(f[4], "key/")
	switch {
	case m.Format.OfAlibaba():
		return f[0] == "acs" && (k.CMK == uri || k.CMK == id)
	case f[0] != "huawei" || k.provider != providerKMS:
		return false
	case k.named == huaweiCMK{}:
		return true
	}
	return k.named.id == id && k.named.region == f[2] && k.named.project == f[3]
}

// Names lists what the message says of the CMKs that open it; nobody has authenticated that.
func (m *Message) Names() (names []string) {
	for _, k := range m.Keys {
		switch {
		case m.Format.OfAlibaba():
			names = append(names, k.CMK)
		case k.provider == providerRaw:
			names = append(names, "a raw keyring")
		case k.named == huaweiCMK{}:
			names = append(names, "a CMK of Huawei Cloud that is not named")
		default:
			names = append(names, "huawei:kms:"+k.named.region+":"+k.named.project+":key/"+k.named.id)
		}
	}
	return names
}

// digest is what of a piece of ciphertext is remembered between two readings of it.
func digest(piece []byte) [sha256.Size]byte { return sha256.Sum256(piece) }
