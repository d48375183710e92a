package alikms

import (
	"context"
	"encoding/base64"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/kms"

	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/signature"
)

var _ cloud.SigningKMS = (*Client)(nil)

// algorithm is the vendor's name of a signature algorithm.
func algorithm(a signature.Algorithm) string {
	switch a {
	case signature.RSAPSS:
		return "RSA_PSS_SHA_256"
	case signature.SM2:
		return "SM2DSA"
	}
	return string(a)
}

// SigningKey implements [cloud.SigningKMS].
func (c *Client) SigningKey(ctx context.Context, cmk cloud.CMK) (version string, err error) {
	_, err = c.metadata(ctx, cmk, func(m kms.KeyMetadata) error {
		version = m.PrimaryKeyVersion
		err := cloud.CheckSigning(m.KeyUsage == "SIGN/VERIFY", m.KeySpec, state(m.KeyState), "RSA_2048", "RSA_3072", "RSA_4096", "EC_P256", "EC_SM2")
		if err == nil && version == "" {
			return cloud.Distrust("it names no version of the key")
		}
		return err
	})
	return version, err
}

// PublicKey implements [cloud.SigningKMS].
func (c *Client) PublicKey(ctx context.Context, cmk cloud.CMK, version string) (key *signature.PublicKey, err error) {
	err = c.publicKey(ctx, cmk, version, func(text string) (err error) {
		key, err = cloud.ReadPublicKey(text)
		return err
	})
	return key, err
}

// Sign implements [cloud.SigningKMS].
func (c *Client) Sign(ctx context.Context, cmk cloud.CMK, version string, a signature.Algorithm, digest []byte) (value []byte, err error) {
	_, err = c.do(ctx, cmk, "AsymmetricSign", func(client *sdk.Client) error {
		r := kms.CreateAsymmetricSignRequest()
		form(r.RpcRequest, "KeyId", cmk.KeyID, "KeyVersionId", version, "Algorithm", algorithm(a), "Digest", base64.StdEncoding.EncodeToString(digest))
		answer := kms.CreateAsymmetricSignResponse()
		if err := client.DoAction(r, answer); err != nil {
			return err
		}
		if err := sameKey(cmk, answer.KeyId, cloud.BadAnswer); err != nil {
			return err
		}
		if answer.KeyVersionId != version {
			return errOtherVersion()
		}
		if value, err = base64.StdEncoding.DecodeString(answer.Value); err != nil || len(value) == 0 {
			return cloud.Distrust("it has no signature")
		}
		return nil
	})
	return value, err
}
