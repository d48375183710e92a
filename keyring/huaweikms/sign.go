package huaweikms

import (
	"context"
	"encoding/base64"

	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core"
	kms "github.com/huaweicloud/huaweicloud-sdk-go-v3/services/kms/v2"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/services/kms/v2/model"

	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/signature"
)

var _ cloud.SigningKMS = (*Client)(nil)

// algorithm is the vendor's name of a signature algorithm.
func algorithm(a signature.Algorithm) model.SignRequestBodySigningAlgorithm {
	names := model.GetSignRequestBodySigningAlgorithmEnum()
	switch a {
	case signature.ECDSA:
		return names.ECDSA_SHA_256
	case signature.SM2:
		return names.SM2_DSA_SM3
	}
	return names.RSASSA_PSS_SHA_256
}

// SigningKey implements [cloud.SigningKMS]. CMKs have no versions here.
func (c *Client) SigningKey(ctx context.Context, cmk cloud.CMK) (version string, err error) {
	_, err = c.details(ctx, cmk, func(i *model.KeyDetails) error {
		signs := i.KeyUsage != nil && *i.KeyUsage == model.GetKeyDetailsKeyUsageEnum().SIGN_VERIFY
		return cloud.CheckSigning(signs, i.KeySpec.Value(), state(*i.KeyState), "RSA_2048", "RSA_3072", "RSA_4096", "EC_P256", "SM2")
	})
	return "", err
}

// PublicKey implements [cloud.SigningKMS].
func (c *Client) PublicKey(ctx context.Context, cmk cloud.CMK, _ string) (key *signature.PublicKey, err error) {
	err = c.publicKey(ctx, cmk, func(text string) (err error) {
		key, err = cloud.ReadPublicKey(text)
		return err
	})
	return key, err
}

// Sign implements [cloud.SigningKMS].
func (c *Client) Sign(ctx context.Context, cmk cloud.CMK, _ string, a signature.Algorithm, digest []byte) (value []byte, err error) {
	isDigest := model.GetSignRequestBodyMessageTypeEnum().DIGEST
	_, err = c.do(ctx, cmk, "sign", func(client *core.HcHttpClient) error {
		answer, err := invoke[model.SignResponse](client, kms.GenReqDefForSign(), &model.SignRequest{Body: &model.SignRequestBody{
			KeyId:            cmk.KeyID,
			Message:          base64.StdEncoding.EncodeToString(digest),
			SigningAlgorithm: algorithm(a),
			MessageType:      &isDigest,
		}})
		if err != nil {
			return err
		}
		if err := sameKey(cmk, answer.KeyId); err != nil {
			return err
		}
		if answer.Signature == nil {
			return cloud.Distrust("it has no signature")
		}
		if value, err = base64.StdEncoding.DecodeString(*answer.Signature); err != nil || len(value) == 0 {
			return cloud.Distrust("it has no signature")
		}
		return nil
	})
	return value, err
}
