package alikms

import (
	"context"
	"encoding/base64"
	"strings"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/kms"

	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// GetSecret returns the value of a secret in Secrets Manager. A version that begins with ACS is a stage, such as ACSPrevious; any other is an ID.
func (c *Client) GetSecret(ctx context.Context, s cloud.Secret) (value []byte, err error) {
	_, err = c.do(ctx, s, "GetSecretValue", func(client *sdk.Client) error {
		r := kms.CreateGetSecretValueRequest()
		form(r.RpcRequest, "SecretName", s.Name)
		stage := strings.HasPrefix(s.Version, "ACS")
		switch {
		case stage:
			form(r.RpcRequest, "VersionStage", s.Version)
		case s.Version != "":
			form(r.RpcRequest, "VersionId", s.Version)
		}
		a := kms.CreateGetSecretValueResponse()
		if err := client.DoAction(r, a); err != nil {
			return err
		}
		if a.SecretName != s.Name || a.VersionId == "" || !stage && s.Version != "" && a.VersionId != s.Version {
			return cloud.Distrust("it is about another secret, or another version of it")
		}
		var b []byte
		switch a.SecretDataType {
		case "text":
			b = []byte(a.SecretData)
		case "binary":
			if b, err = base64.StdEncoding.DecodeString(a.SecretData); err != nil {
				return cloud.Distrust("its value is not Base64")
			}
		default:
			return cloud.Distrust("its value is neither text nor binary")
		}
		value, err = cloud.SecretValue(b)
		return err
	})
	return value, err
}

// CreateSecret makes a secret, whose first version has the ID s.Version, or v1 if that is empty.
func (c *Client) CreateSecret(ctx context.Context, s cloud.Secret, n cloud.NewSecret) error {
	_, err := c.do(ctx, s, "CreateSecret", func(client *sdk.Client) error {
		r := kms.CreateCreateSecretRequest()
		data, kind, version := string(n.Value), "text", s.Version
		if !n.Text() {
			data, kind = base64.StdEncoding.EncodeToString(n.Value), "binary"
		}
		if version == "" {
			version = "v1"
		}
		form(r.RpcRequest, "SecretName", s.Name, "VersionId", version, "SecretData", data, "SecretDataType", kind)
		if n.KeyID != "" {
			form(r.RpcRequest, "EncryptionKeyId", n.KeyID)
		}
		if n.Instance != "" {
			form(r.RpcRequest, "DKMSInstanceId", n.Instance)
		}
		a := kms.CreateCreateSecretResponse()
		if err := client.DoAction(r, a); err != nil {
			return err
		}
		if a.SecretName != s.Name || a.VersionId != version {
			return cloud.Distrust("it is about another secret")
		}
		return nil
	})
	return err
}

// secretKind classifies what means something else of a secret than of a CMK.
func secretKind(call, code string) (cloud.Kind, bool) {
	switch code {
	case "Forbidden.ResourceNotFound":
		return cloud.SecretNotFound, true
	case "Rejected.ResourceExist":
		return cloud.SecretExists, true
	case "Rejected.Disabled", "Rejected.PendingDeletion":
		return cloud.SecretDisabled, call == "GetSecretValue"
	}
	return 0, false
}
