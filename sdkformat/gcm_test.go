package sdkformat

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"testing"

	"github.com/emmansun/gmsm/sm4"
)

// TestGCM compares a run in pieces with the standard library's in one.
func TestGCM(t *testing.T) {
	for name, block := range map[string]func([]byte) (cipher.Block, error){"AES": aes.NewCipher, "SM4": sm4.NewCipher} {
		key := make([]byte, 16)
		rand.Read(key)
		b, err := block(key)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := cipher.NewGCM(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{0, 1, 15, 16, 17, 31, 32, 33, 255, 256, 257, 1000, 4096, 70001} {
			for _, aadSize := range []int{0, 1, 16, 40} {
				for _, piece := range []int{16, 48, 4096, 1 << 20} {
					text, aad, iv := make([]byte, size), make([]byte, aadSize), make([]byte, gcmIVSize)
					for _, b := range [][]byte{text, aad, iv} {
						rand.Read(b)
					}
					want := whole.Seal(nil, iv, text, aad)
					g := newGCM(b, iv, aad)
					g.stream.XORKeyStream(text, text)
					for at := 0; at < size; at += piece {
						g.hash(text[at:min(at+piece, size)])
					}
					if got := append(text, g.tag()...); !bytes.Equal(got, want) {
						t.Fatalf("%s, %d bytes, %d of AAD, in pieces of %d: another result", name, size, aadSize, piece)
					}
				}
			}
		}
	}
}
