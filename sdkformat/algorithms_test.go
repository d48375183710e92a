package sdkformat

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"testing"

	"github.com/kmsfs/kmsfs/keyring"
)

// TestEveryAlgorithm opens messages of every algorithm of both vendors, those included that are not written here, with bodies that are empty, end
// with a piece or a block, or do not. They are sealed with the ciphers alone.
func TestEveryAlgorithm(t *testing.T) {
	for _, f := range Formats() {
		for id, s := range f.suites() {
			if id == 0 {
				continue
			}
			for _, n := range []int{0, 1, 15, 16, 17, 48, pieceSize - 1, pieceSize, pieceSize + 1, pieceSize + 16} {
				if s.mode == modeCBC && n%16 != 0 {
					continue
				}
				plain, dk := plaintext(n), keyring.NewDataKey(s.keySize)
				got, err := open(f, sealWith(t, f, id, plain, dk), dk)
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%v, algorithm %d, %d bytes: opened to %d bytes, %v", f, id, n, len(got), err)
				}
			}
		}
	}
}

// sealWith makes a message of any algorithm.
func sealWith(t *testing.T, f Format, id int, plain []byte, dk keyring.DataKey) []byte {
	t.Helper()
	s := f.suites()[id]
	m, err := New(f, map[int]Cipher{16: AES128GCM, 32: AES256GCM}[s.keySize], keyring.EncryptionContext{"k": "v"}, edks(), dk)
	if err != nil {
		t.Fatal(err)
	}
	m.Algorithm, m.bodyIV = id, plaintext(s.ivSize())
	m.headerTag = m.authenticate(dk)
	block := s.block(dk)
	sealed := bytes.Clone(plain)
	switch s.mode {
	case modeGCM:
		aead, err := cipher.NewGCM(block)
		if err != nil {
			t.Fatal(err)
		}
		sealed = aead.Seal(nil, m.bodyIV, plain, m.ctx)
	case modeCTR:
		cipher.NewCTR(block, m.bodyIV).XORKeyStream(sealed, sealed)
	case modeCBCPadded:
		pad := 16 - len(plain)%16
		sealed = append(sealed, bytes.Repeat([]byte{byte(pad)}, pad)...)
		fallthrough
	case modeCBC:
		cipher.NewCBCEncrypter(block, m.bodyIV).CryptBlocks(sealed, sealed)
	}
	body := len(sealed) - s.tagSize()
	m.length = int64(body)
	message, err := m.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	switch f {
	case HuaweiStream: // exactly one segment
		message = append(message, m.bodyIV...)
		message = binary.BigEndian.AppendUint64(message, uint64(len(sealed)))
	case Alibaba:
		tag := appendTLV(nil, derOctetString, sealed[body:])
		sealed = append(bytes.Clone(sealed[:body]), tag...)
	}
	return append(message, sealed...)
}
