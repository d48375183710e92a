// Package huaweikms makes the calls of keyrings on CMKs of Huawei Cloud KMS (DEW).
package huaweikms

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/auth/basic"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/config"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/def"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/sdkerr"
	kms "github.com/huaweicloud/huaweicloud-sdk-go-v3/services/kms/v2"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/services/kms/v2/model"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// DefaultRate is the cap on calls in a second. The KMS takes 20 of a user.
const DefaultRate = 10

// A Client is a [cloud.KMS], for all keyrings on Huawei Cloud.
type Client struct{ caller *cloud.Caller }

var _ cloud.KMS = (*Client)(nil)

// NewClient returns a client. The error wraps [cloud.ErrEndpoint].
func NewClient(c cloud.Config) (*Client, error) {
	caller, err := cloud.NewCaller(cloud.Vendor{
		Host:    "kms.%s.myhuaweicloud.com",
		Rate:    DefaultRate,
		Explain: explain,
		Kind:    kind,
	}, c)
	if err != nil {
		return nil, err
	}
	return &Client{caller: caller}, nil
}

// Close closes the connections that no call uses.
func (c *Client) Close() { c.caller.Close() }

// Calls implements [cloud.KMS].
func (c *Client) Calls(cmk cloud.CMK) map[string]int { return c.caller.Calls(cmk) }

// do makes one call with a client of its own, whose credential the SDK cannot change under another call.
func (c *Client) do(ctx context.Context, on cloud.Target, call string, send func(*core.HcHttpClient) error) (cloud.Answer, error) {
	_, project := on.Place()
	return c.caller.Do(ctx, on, call, func(s cloud.Session) error {
		// Without a project the SDK would ask IAM for one.
		credential, err := basic.NewCredentialsBuilder().
			WithAk(s.Credential.ID).WithSk(s.Credential.Secret).WithSecurityToken(s.Credential.Token).
			WithProjectId(project).SafeBuild()
		if err != nil {
			return err
		}
		// Without a user agent the SDK would make one up, and keep it in a file in the home directory.
		hc, err := core.NewHcHttpClientBuilder().
			WithEndpoint(s.Endpoint.String()).
			WithCredential(credential).
			WithHttpConfig(config.DefaultHttpConfig().WithHttpRoundTripper(s.Transport).WithUserAgent("kmsfs")).
			SafeBuild()
		if err != nil {
			return err
		}
		return send(hc)
	})
}

// invoke makes a call through the SDK's core client. kms.KmsClient does just that, but has several hundred methods that would all be linked in.
func invoke[Answer any](client *core.HcHttpClient, call *def.HttpRequestDef, request any) (*Answer, error) {
	answer, err := client.Sync(request, call)
	if err != nil {
		return nil, err
	}
	a, ok := answer.(*Answer)
	if !ok || a == nil {
		return nil, cloud.Distrust("the SDK gives nothing back")
	}
	return a, nil
}

// bound is the parameter additional_authenticated_data: the digest of our context. The SDK never sends its own.
func bound(b cloud.Binding) *string {
	if b.Digest == "" {
		return nil
	}
	return &b.Digest
}

// Wrap implements [cloud.KMS].
func (c *Client) Wrap(ctx context.Context, cmk cloud.CMK, info *cloud.KeyInfo, dk keyring.DataKey, b cloud.Binding) (blob []byte, err error) {
	// The KMS wants the data key with a digest, by an algorithm that goes with the CMK's.
	sum := sumSHA256(dk)
	if info.Spec == "SM4" {
		sum = sumSM3(dk)
	}
	_, err = c.do(ctx, cmk, "encrypt-datakey", func(client *core.HcHttpClient) error {
		a, err := invoke[model.EncryptDatakeyResponse](client, kms.GenReqDefForEncryptDatakey(), &model.EncryptDatakeyRequest{Body: &model.EncryptDatakeyRequestBody{
			KeyId:                       cmk.KeyID,
			PlainText:                   hex.EncodeToString(dk) + hex.EncodeToString(sum),
			DatakeyPlainLength:          strconv.Itoa(len(dk)), // bytes
			AdditionalAuthenticatedData: bound(b),
		}})
		if err != nil {
			return err
		}
		if err := sameKey(cmk, a.KeyId); err != nil {
			return err
		}
		blob, err = wrapped(a.CipherText)
		return err
	})
	return blob, err
}

// Generate implements [cloud.KMS].
func (c *Client) Generate(ctx context.Context, cmk cloud.CMK, size int, b cloud.Binding) (dk keyring.DataKey, blob []byte, err error) {
	bits := strconv.Itoa(8 * size)
	_, err = c.do(ctx, cmk, "create-datakey", func(client *core.HcHttpClient) error {
		a, err := invoke[model.CreateDatakeyResponse](client, kms.GenReqDefForCreateDatakey(), &model.CreateDatakeyRequest{Body: &model.CreateDatakeyRequestBody{
			KeyId:                       cmk.KeyID,
			DatakeyLength:               &bits,
			AdditionalAuthenticatedData: bound(b),
		}})
		if err != nil {
			return err
		}
		if err := sameKey(cmk, a.KeyId); err != nil {
			return err
		}
		if blob, err = wrapped(a.CipherText); err != nil {
			return err
		}
		dk, err = dataKey(a.PlainText, size)
		return err
	})
	return dk, blob, err
}

// Unwrap implements [cloud.KMS]. The answer names no CMK; the request does.
func (c *Client) Unwrap(ctx context.Context, cmk cloud.CMK, blob []byte, size int, b cloud.Binding) (dk keyring.DataKey, err error) {
	_, err = c.do(ctx, cmk, "decrypt-datakey", func(client *core.HcHttpClient) error {
		a, err := invoke[model.DecryptDatakeyResponse](client, kms.GenReqDefForDecryptDatakey(), &model.DecryptDatakeyRequest{Body: &model.DecryptDatakeyRequestBody{
			KeyId:                       cmk.KeyID,
			CipherText:                  hex.EncodeToString(blob),
			DatakeyCipherLength:         strconv.Itoa(size), // bytes, of the data key
			AdditionalAuthenticatedData: bound(b),
		}})
		if err != nil {
			return err
		}
		got, err := dataKey(a.DataKey, size)
		if err != nil {
			return err
		}
		if a.DatakeyDgst == nil {
			return cloud.Distrust("it has no digest")
		}
		sum, err := hex.DecodeString(*a.DatakeyDgst)
		if err != nil || subtle.ConstantTimeCompare(sum, sumSHA256(got)) == 0 && subtle.ConstantTimeCompare(sum, sumSM3(got)) == 0 {
			got.Wipe()
			return cloud.Distrust("its digest is not the data key's")
		}
		dk = got
		return nil
	})
	return dk, err
}

// DecryptRSA implements [cloud.KMS]. CMKs have no versions here.
func (c *Client) DecryptRSA(ctx context.Context, cmk cloud.CMK, _ string, ciphertext []byte) (text string, err error) {
	algorithm := model.GetDecryptDataRequestBodyEncryptionAlgorithmEnum().RSAES_OAEP_SHA_256
	_, err = c.do(ctx, cmk, "decrypt-data", func(client *core.HcHttpClient) error {
		a, err := invoke[model.DecryptDataResponse](client, kms.GenReqDefForDecryptData(), &model.DecryptDataRequest{Body: &model.DecryptDataRequestBody{
			KeyId:               &cmk.KeyID,
			CipherText:          base64.StdEncoding.EncodeToString(ciphertext),
			EncryptionAlgorithm: &algorithm,
		}})
		if err != nil {
			return err
		}
		if err := sameKey(cmk, a.KeyId); err != nil {
			return err
		}
		if a.PlainText == nil || *a.PlainText == "" {
			return cloud.Distrust("it has no plaintext")
		}
		text = *a.PlainText
		return nil
	})
	return text, err
}

// Describe implements [cloud.KMS].
func (c *Client) Describe(ctx context.Context, cmk cloud.CMK) (info *cloud.KeyInfo, answer cloud.Answer, err error) {
	answer, err = c.details(ctx, cmk, func(i *model.KeyDetails) error {
		info = &cloud.KeyInfo{Spec: i.KeySpec.Value(), State: state(*i.KeyState)}
		if i.ScheduledDeletionDate != nil {
			if ms, err := strconv.ParseInt(*i.ScheduledDeletionDate, 10, 64); err == nil && ms > 0 {
				info.Deletion = time.UnixMilli(ms).UTC().Format(time.RFC3339)
			}
		}
		return nil
	})
	if err == nil && strings.HasPrefix(info.Spec, "RSA_") && info.State == cloud.StateEnabled {
		err = c.publicKey(ctx, cmk, func(text string) (err error) {
			info.PublicKey, err = cloud.ParsePublicKey(text)
			return err
		})
	}
	if err != nil {
		return nil, answer, err
	}
	return info, answer, nil
}

// details asks for what the KMS says of a CMK, kind and state at least, and checks that it is about that one.
func (c *Client) details(ctx context.Context, cmk cloud.CMK, read func(*model.KeyDetails) error) (cloud.Answer, error) {
	return c.do(ctx, cmk, "describe-key", func(client *core.HcHttpClient) error {
		a, err := invoke[model.ListKeyDetailResponse](client, kms.GenReqDefForListKeyDetail(), &model.ListKeyDetailRequest{Body: &model.OperateKeyRequestBody{KeyId: cmk.KeyID}})
		if err != nil {
			return err
		}
		i := a.KeyInfo
		if i == nil || i.KeySpec == nil || i.KeySpec.Value() == "" || i.KeyState == nil {
			return cloud.Distrust("it does not describe the CMK")
		}
		if err := sameKey(cmk, i.KeyId); err != nil {
			return err
		}
		return read(i)
	})
}

// publicKey asks for the public key of a CMK, as PEM.
func (c *Client) publicKey(ctx context.Context, cmk cloud.CMK, read func(text string) error) error {
	_, err := c.do(ctx, cmk, "get-publickey", func(client *core.HcHttpClient) error {
		a, err := invoke[model.ShowPublicKeyResponse](client, kms.GenReqDefForShowPublicKey(), &model.ShowPublicKeyRequest{Body: &model.OperateKeyRequestBody{KeyId: cmk.KeyID}})
		if err != nil {
			return err
		}
		if err := sameKey(cmk, a.KeyId); err != nil {
			return err
		}
		if a.PublicKey == nil {
			return cloud.Distrust("it has no public key")
		}
		return read(*a.PublicKey)
	})
	return err
}

// wrapped returns the bytes of a cipher_text, which must come back as the same text.
func wrapped(text *string) ([]byte, error) {
	if text == nil || *text == "" {
		return nil, cloud.Distrust("it has no wrapped key")
	}
	b, err := hex.DecodeString(*text)
	if err != nil || !bytes.EqualFold([]byte(hex.EncodeToString(b)), []byte(*text)) {
		return nil, cloud.Distrust("its wrapped key is not in hex digits")
	}
	return b, nil
}

func dataKey(text *string, size int) (keyring.DataKey, error) {
	if text == nil {
		return nil, cloud.Distrust("it has no data key")
	}
	b, err := hex.DecodeString(*text)
	if err != nil {
		return nil, cloud.Distrust("its data key is not in hex digits")
	}
	return cloud.DataKey(b, size)
}

// sameKey checks that an answer is about the CMK.
func sameKey(cmk cloud.CMK, got *string) error {
	switch {
	case got == nil || *got == "":
		return cloud.Distrust("it names no CMK")
	case *got != cmk.KeyID:
		return &cloud.Error{Kind: cloud.BadAnswer, Err: cloud.ErrOtherCMK}
	}
	return nil
}

func sumSHA256(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

func sumSM3(b []byte) []byte { s := sm3.Sum(b); return s[:] }

func state(s string) string {
	switch s {
	case "2":
		return cloud.StateEnabled
	case "1", "3", "7": // pending activation, disabled, frozen
		return cloud.StateDisabled
	case "4":
		return cloud.StatePendingDeletion
	case "5":
		return cloud.StatePendingImport
	}
	return fmt.Sprintf("%.32q", s)
}

func explain(err error) (status int, code, requestID string, ok bool) {
	var e *sdkerr.ServiceResponseError
	if !errors.As(err, &e) {
		return 0, "", "", false
	}
	return e.StatusCode, e.ErrorCode, e.RequestId, true
}

// kind classifies by code first: the KMS says 400 for a disabled CMK.
func kind(_, code string) (cloud.Kind, bool) {
	switch code {
	case "KMS.0209":
		return cloud.KeyDisabled, true
	case "KMS.0210":
		return cloud.PendingDeletion, true
	case "KMS.0207", "KMS.0205":
		return cloud.KeyNotFound, true
	case "KMS.0306", "KMS.0307", "APIGW.0302", "APIGW.0306":
		return cloud.NoPermission, true
	case "APIGW.0301", "KMS.0301", "KMS.0302", "KMS.0303":
		return cloud.BadCredential, true
	case "APIGW.0308":
		return cloud.Throttled, true
	case "KMS.2201", "KMS.2202", "KMS.2203":
		return cloud.NotWrapped, true
	case "CSMS.0005", "CSMS.0106":
		return cloud.SecretNotFound, true
	case "CSMS.0103", "CSMS.0107":
		return cloud.SecretDisabled, true
	}
	return 0, false
}
