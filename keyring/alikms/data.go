package alikms

import (
	"context"
	"encoding/base64"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/kms"

	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// EncryptData implements [cloud.KMS].
func (c *Client) EncryptData(ctx context.Context, cmk cloud.CMK, plain []byte, digest string) (sealed []byte, err error) {
	return c.encrypt(ctx, cmk, plain, cloud.Binding{Digest: digest})
}

// DecryptData implements [cloud.KMS].
func (c *Client) DecryptData(ctx context.Context, cmk cloud.CMK, sealed []byte, digest string) (plain []byte, err error) {
	err = c.decrypt(ctx, cmk, sealed, cloud.Binding{Digest: digest}, func(text string) error {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return cloud.Distrust("its plaintext is not Base64")
		}
		plain, err = cloud.Data(b)
		return err
	})
	return plain, err
}

// encrypt makes the call that wraps data keys and encrypts data alike.
func (c *Client) encrypt(ctx context.Context, cmk cloud.CMK, plain []byte, b cloud.Binding) (blob []byte, err error) {
	_, err = c.do(ctx, cmk, "Encrypt", func(client *sdk.Client) error {
		r := kms.CreateEncryptRequest()
		form(r.RpcRequest, "KeyId", cmk.KeyID, "Plaintext", base64.StdEncoding.EncodeToString(plain))
		if err := bind(r.RpcRequest, b); err != nil {
			return err
		}
		a := kms.CreateEncryptResponse()
		if err := client.DoAction(r, a); err != nil {
			return err
		}
		if err := sameKey(cmk, a.KeyId, cloud.BadAnswer); err != nil {
			return err
		}
		blob, err = wrapped(a.CiphertextBlob)
		return err
	})
	return blob, err
}

// decrypt makes the call that unwraps data keys and decrypts data alike, and hands the plaintext, in Base64, to use.
func (c *Client) decrypt(ctx context.Context, cmk cloud.CMK, blob []byte, b cloud.Binding, use func(text string) error) error {
	_, err := c.do(ctx, cmk, "Decrypt", func(client *sdk.Client) error {
		r := kms.CreateDecryptRequest()
		form(r.RpcRequest, "CiphertextBlob", base64.StdEncoding.EncodeToString(blob))
		if err := bind(r.RpcRequest, b); err != nil {
			return err
		}
		a := kms.CreateDecryptResponse()
		if err := client.DoAction(r, a); err != nil {
			return err
		}
		// The request does not name the CMK, so the blob may be one of any that the account may use.
		if err := sameKey(cmk, a.KeyId, cloud.NotWrapped); err != nil {
			return err
		}
		return use(a.Plaintext)
	})
	return err
}
