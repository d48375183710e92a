package huaweikms

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core"
	kms "github.com/huaweicloud/huaweicloud-sdk-go-v3/services/kms/v2"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/services/kms/v2/model"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// The KMS encrypts up to 4,096 characters of text without line ends: Base64 of 3,072 bytes. More is cut into two pieces. Each is bound to its place and to a
// random ID, so that pieces of two messages do not go together. Sealed data is the ID and then, for each piece, a 16-bit length and the KMS's own text.
const (
	pieceSize = 3072
	dataID    = 16
	maxPieces = (keyring.MaxData + pieceSize - 1) / pieceSize
)

// pieceAAD is what is bound into a piece: at most 128 characters, which is all that the KMS takes.
func pieceAAD(digest string, id []byte, i, n int) string {
	return fmt.Sprintf("%s.%s.%d/%d", digest, hex.EncodeToString(id), i+1, n)
}

// EncryptData implements [cloud.KMS].
func (c *Client) EncryptData(ctx context.Context, cmk cloud.CMK, plain []byte, digest string) (sealed []byte, err error) {
	sealed = make([]byte, dataID)
	rand.Read(sealed)
	n := (len(plain) + pieceSize - 1) / pieceSize
	for i := range n {
		piece := plain[i*pieceSize : min((i+1)*pieceSize, len(plain))]
		text, err := c.encryptText(ctx, cmk, base64.StdEncoding.EncodeToString(piece), pieceAAD(digest, sealed[:dataID], i, n))
		if err != nil {
			return nil, err
		}
		sealed = binary.BigEndian.AppendUint16(sealed, uint16(len(text)))
		sealed = append(sealed, text...)
	}
	return sealed, nil
}

// DecryptData implements [cloud.KMS].
func (c *Client) DecryptData(ctx context.Context, cmk cloud.CMK, sealed []byte, digest string) (plain []byte, err error) {
	id, pieces, ok := cutPieces(sealed)
	if !ok {
		return nil, &cloud.Error{CMK: cmk.String(), Call: "read the data", Kind: cloud.NotWrapped}
	}
	for i, piece := range pieces {
		b, err := c.decryptText(ctx, cmk, string(piece), pieceAAD(digest, id, i, len(pieces)))
		if err != nil {
			clear(plain)
			return nil, err
		}
		plain = append(plain, b...)
		clear(b)
	}
	return plain, nil
}

func cutPieces(sealed []byte) (id []byte, pieces [][]byte, ok bool) {
	if len(sealed) < dataID {
		return nil, nil, false
	}
	id, rest := sealed[:dataID], sealed[dataID:]
	for len(rest) > 2 && len(pieces) < maxPieces {
		n := int(binary.BigEndian.Uint16(rest))
		if n == 0 || len(rest) < 2+n {
			return nil, nil, false
		}
		pieces, rest = append(pieces, rest[2:2+n]), rest[2+n:]
	}
	return id, pieces, len(pieces) > 0 && len(rest) == 0
}

func (c *Client) encryptText(ctx context.Context, cmk cloud.CMK, plain, aad string) (text string, err error) {
	_, err = c.do(ctx, cmk, "encrypt-data", func(client *core.HcHttpClient) error {
		a, err := invoke[model.EncryptDataResponse](client, kms.GenReqDefForEncryptData(), &model.EncryptDataRequest{Body: &model.EncryptDataRequestBody{
			KeyId:                       cmk.KeyID,
			PlainText:                   plain,
			AdditionalAuthenticatedData: &aad,
		}})
		if err != nil {
			return err
		}
		if err := sameKey(cmk, a.KeyId); err != nil {
			return err
		}
		if a.CipherText == nil || *a.CipherText == "" || len(*a.CipherText) > 1<<16-1 {
			return cloud.Distrust("it has no ciphertext, or one that is too long")
		}
		text = *a.CipherText
		return nil
	})
	return text, err
}

// decryptText opens one piece. The text itself says to the KMS which CMK made it, so the answer may be of any that the project may use.
func (c *Client) decryptText(ctx context.Context, cmk cloud.CMK, text, aad string) (piece []byte, err error) {
	_, err = c.do(ctx, cmk, "decrypt-data", func(client *core.HcHttpClient) error {
		a, err := invoke[model.DecryptDataResponse](client, kms.GenReqDefForDecryptData(), &model.DecryptDataRequest{Body: &model.DecryptDataRequestBody{
			CipherText:                  text,
			AdditionalAuthenticatedData: &aad,
		}})
		if err != nil {
			return err
		}
		if err := sameKey(cmk, a.KeyId); err != nil {
			return err
		}
		if a.PlainText == nil {
			return cloud.Distrust("it has no plaintext")
		}
		b, err := base64.StdEncoding.DecodeString(*a.PlainText)
		if err != nil || len(b) > pieceSize {
			return cloud.Distrust("its plaintext is not Base64 of one piece")
		}
		piece, err = cloud.Data(b)
		return err
	})
	return piece, err
}
