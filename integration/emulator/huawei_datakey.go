package emulator

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
)

// A wrapped data key of Huawei Cloud, n bytes long inside, as public samples show it without additional authenticated data:
//
//	02 00 | length of the next two, 16 bits little-endian | IV, 16 | CBC(data key | its digest, 32) | key ID, 36 | 00 00 00 00 | SHA-256 of all that
//
// No sample with such data is public, and CBC cannot bind any. Here the blob then begins with 03 00 and has GCM, with a tag of 16 bytes, in the place of CBC.
const (
	blobCBC    = 2
	blobGCM    = 3
	blobIV     = 16
	blobHead   = 4
	blobKeyID  = 36
	blobTail   = blobKeyID + 4 + sha256.Size
	digestSize = 32 // of SHA-256 and of SM3
)

func sealDataKey(k *key, dataKey []byte, aad string) []byte {
	iv := make([]byte, blobIV)
	rand.Read(iv)
	plain := append(bytes.Clone(dataKey), k.digest(dataKey)...)
	var blob []byte
	if aad == "" {
		plain = append(plain, make([]byte, -len(plain)&(blobIV-1))...) // CBC wants whole blocks
		cipher.NewCBCEncrypter(k.block(), iv).CryptBlocks(plain, plain)
		blob = []byte{blobCBC, 0}
	} else {
		plain = k.gcm(blobIV).Seal(nil, iv, plain, []byte(aad))
		blob = []byte{blobGCM, 0}
	}
	blob = binary.LittleEndian.AppendUint16(blob, uint16(blobIV+len(plain)))
	blob = append(append(blob, iv...), plain...)
	blob = append(append(blob, k.id...), 0, 0, 0, 0)
	sum := sha256.Sum256(blob)
	return append(blob, sum[:]...)
}

// openDataKey returns the n bytes of a data key.
func openDataKey(k *key, blob []byte, n int, aad string) ([]byte, *failure) {
	if len(blob) < blobHead+blobIV+n+digestSize+blobTail {
		return nil, errHuaweiCipher
	}
	body, sum := blob[:len(blob)-sha256.Size], sha256.Sum256(blob[:len(blob)-sha256.Size])
	sealed := body[blobHead+blobIV : len(blob)-blobTail]
	keyID := string(blob[len(blob)-blobTail:][:blobKeyID])
	if !bytes.Equal(sum[:], blob[len(body):]) || keyID != k.id || int(binary.LittleEndian.Uint16(blob[2:])) != blobIV+len(sealed) || blob[1] != 0 {
		return nil, errHuaweiCipher
	}
	iv := blob[blobHead : blobHead+blobIV]
	var plain []byte
	switch {
	case blob[0] == blobCBC && aad == "" && len(sealed)%blobIV == 0:
		plain = make([]byte, len(sealed))
		cipher.NewCBCDecrypter(k.block(), iv).CryptBlocks(plain, sealed)
	case blob[0] == blobGCM && aad != "":
		var err error
		if plain, err = k.gcm(blobIV).Open(nil, iv, sealed, []byte(aad)); err != nil {
			return nil, errHuaweiHash
		}
	default:
		return nil, errHuaweiHash
	}
	if !bytes.Equal(plain[n:n+digestSize], k.digest(plain[:n])) {
		return nil, errHuaweiHash
	}
	return plain[:n], nil
}
