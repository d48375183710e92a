package huaweikms

import (
	"context"
	"encoding/base64"

	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core"
	csms "github.com/huaweicloud/huaweicloud-sdk-go-v3/services/csms/v1"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/services/csms/v1/model"

	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// latest is what CSMS calls the current version.
const latest = "latest"

// GetSecret returns the value of a secret in CSMS, which is at the endpoint of the KMS.
func (c *Client) GetSecret(ctx context.Context, s cloud.Secret) (value []byte, err error) {
	_, err = c.do(ctx, s, "ShowSecretVersion", func(client *core.HcHttpClient) error {
		version := s.Version
		if version == "" {
			version = latest
		}
		a, err := invoke[model.ShowSecretVersionResponse](client, csms.GenReqDefForShowSecretVersion(), &model.ShowSecretVersionRequest{SecretName: s.Name, VersionId: version})
		if err != nil {
			return err
		}
		v := a.Version
		if v == nil || v.VersionMetadata == nil || v.VersionMetadata.SecretName == nil || v.VersionMetadata.Id == nil {
			return cloud.Distrust("it does not describe the secret")
		}
		if *v.VersionMetadata.SecretName != s.Name || version != latest && *v.VersionMetadata.Id != version {
			return cloud.Distrust("it is about another secret, or another version of it")
		}
		var b []byte
		switch {
		case v.SecretString != nil && v.SecretBinary == nil:
			b = []byte(*v.SecretString)
		case v.SecretBinary != nil && v.SecretString == nil:
			if b, err = base64.StdEncoding.DecodeString(*v.SecretBinary); err != nil {
				return cloud.Distrust("its value is not Base64")
			}
		default:
			return cloud.Distrust("its value is not one of text and binary")
		}
		value, err = cloud.SecretValue(b)
		return err
	})
	return value, err
}

// CreateSecret makes a secret. CSMS chooses the ID of its first version.
func (c *Client) CreateSecret(ctx context.Context, s cloud.Secret, n cloud.NewSecret) error {
	_, err := c.do(ctx, s, "CreateSecret", func(client *core.HcHttpClient) error {
		body := &model.CreateSecretRequestBody{Name: s.Name}
		data := string(n.Value)
		if n.Text() {
			body.SecretString = &data
		} else {
			data = base64.StdEncoding.EncodeToString(n.Value)
			body.SecretBinary = &data
		}
		if n.KeyID != "" {
			body.KmsKeyId = &n.KeyID
		}
		a, err := invoke[model.CreateSecretResponse](client, csms.GenReqDefForCreateSecret(), &model.CreateSecretRequest{Body: body})
		if err != nil {
			return err
		}
		if a.Secret == nil || a.Secret.Name == nil || *a.Secret.Name != s.Name {
			return cloud.Distrust("it is about another secret")
		}
		return nil
	})
	return err
}
