// Package alikms makes the calls of keyrings on CMKs of Alibaba Cloud KMS.
package alikms

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/kms"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// DefaultRate is the cap on calls in a second. The shared gateway takes 1,000 of an account in a region.
const DefaultRate = 200

// ErrDebug says that the environment makes the SDK print every request, secrets included.
var ErrDebug = errors.New("alikms: the environment variable DEBUG has sdk in it, which prints secrets; unset it")

// A Client is a [cloud.KMS], for all keyrings on Alibaba Cloud.
type Client struct{ caller *cloud.Caller }

var _ cloud.KMS = (*Client)(nil)

// NewClient returns a client. The error wraps [cloud.ErrEndpoint] or [ErrDebug].
func NewClient(c cloud.Config) (*Client, error) {
	if slices.Contains(strings.Split(os.Getenv("DEBUG"), ","), "sdk") {
		return nil, ErrDebug
	}
	caller, err := cloud.NewCaller(cloud.Vendor{
		Host:    "kms.%s.aliyuncs.com",
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

// bind adds the parameter EncryptionContext, a JSON object: with the digest of ours or, as the SDK has it, the context itself, if it is not empty.
func bind(r *requests.RpcRequest, b cloud.Binding) error {
	object := b.SDK
	if b.Digest != "" {
		object = keyring.EncryptionContext{"kmsfs": b.Digest}
	}
	if len(object) == 0 {
		return nil
	}
	text, err := json.Marshal(object)
	if err == nil {
		form(r, "EncryptionContext", string(text))
	}
	return err
}

// do makes one call with a client of its own, for the SDK's are not safe for two goroutines. It is the SDK's core client: kms.Client has a
// global endpoint map, and several hundred methods that would all be linked in.
func (c *Client) do(ctx context.Context, on cloud.Target, call string, send func(*sdk.Client) error) (cloud.Answer, error) {
	return c.caller.Do(ctx, on, call, func(s cloud.Session) error {
		config := sdk.NewConfig().WithScheme(strings.ToUpper(s.Endpoint.Scheme)).WithUserAgent("kmsfs")
		config.Transport = bodyTransport{s.Transport}
		region, _ := on.Place()
		var provider credentials.CredentialsProvider = credentials.NewStaticAKCredentialsProvider(s.Credential.ID, s.Credential.Secret)
		if s.Credential.Token != "" {
			provider = credentials.NewStaticSTSCredentialsProvider(s.Credential.ID, s.Credential.Secret, s.Credential.Token)
		}
		client, err := sdk.NewClientWithOptions(region, config, provider)
		if err != nil {
			return err
		}
		client.Domain = s.Endpoint.Host
		// The transport sees to proxies. The SDK would fail on settings of the environment that it cannot parse.
		client.SetNoProxy("none")
		client.SetHttpProxy("http://none.invalid")
		client.SetHttpsProxy("http://none.invalid")
		return send(client)
	})
}

// form puts parameters where proxies and error texts do not show them: into the body, not the URL.
func form(r *requests.RpcRequest, parameters ...string) {
	for i := 0; i < len(parameters); i += 2 {
		r.FormParams[parameters[i]] = parameters[i+1]
	}
}

// Wrap implements [cloud.KMS].
func (c *Client) Wrap(ctx context.Context, cmk cloud.CMK, _ *cloud.KeyInfo, dk keyring.DataKey, b cloud.Binding) (blob []byte, err error) {
	return c.encrypt(ctx, cmk, dk, b)
}

// Generate implements [cloud.KMS].
func (c *Client) Generate(ctx context.Context, cmk cloud.CMK, size int, b cloud.Binding) (dk keyring.DataKey, blob []byte, err error) {
	_, err = c.do(ctx, cmk, "GenerateDataKey", func(client *sdk.Client) error {
		r := kms.CreateGenerateDataKeyRequest()
		form(r.RpcRequest, "KeyId", cmk.KeyID, "NumberOfBytes", strconv.Itoa(size))
		if err := bind(r.RpcRequest, b); err != nil {
			return err
		}
		a := kms.CreateGenerateDataKeyResponse()
		if err := client.DoAction(r, a); err != nil {
			return err
		}
		if err := sameKey(cmk, a.KeyId, cloud.BadAnswer); err != nil {
			return err
		}
		if blob, err = wrapped(a.CiphertextBlob); err != nil {
			return err
		}
		dk, err = dataKey(a.Plaintext, size)
		return err
	})
	return dk, blob, err
}

// Unwrap implements [cloud.KMS].
func (c *Client) Unwrap(ctx context.Context, cmk cloud.CMK, blob []byte, size int, b cloud.Binding) (dk keyring.DataKey, err error) {
	err = c.decrypt(ctx, cmk, blob, b, func(text string) error {
		dk, err = dataKey(text, size)
		return err
	})
	return dk, err
}

// DecryptRSA implements [cloud.KMS].
func (c *Client) DecryptRSA(ctx context.Context, cmk cloud.CMK, version string, ciphertext []byte) (text string, err error) {
	_, err = c.do(ctx, cmk, "AsymmetricDecrypt", func(client *sdk.Client) error {
		r := kms.CreateAsymmetricDecryptRequest()
		form(r.RpcRequest, "KeyId", cmk.KeyID, "KeyVersionId", version, "Algorithm", "RSAES_OAEP_SHA_256",
			"CiphertextBlob", base64.StdEncoding.EncodeToString(ciphertext))
		a := kms.CreateAsymmetricDecryptResponse()
		if err := client.DoAction(r, a); err != nil {
			return err
		}
		if err := sameKey(cmk, a.KeyId, cloud.BadAnswer); err != nil {
			return err
		}
		b, err := base64.StdEncoding.DecodeString(a.Plaintext)
		if err != nil || len(b) == 0 {
			return cloud.Distrust("it has no plaintext")
		}
		text = string(b)
		return nil
	})
	return text, err
}

// Describe implements [cloud.KMS].
func (c *Client) Describe(ctx context.Context, cmk cloud.CMK) (info *cloud.KeyInfo, answer cloud.Answer, err error) {
	answer, err = c.metadata(ctx, cmk, func(m kms.KeyMetadata) error {
		info = &cloud.KeyInfo{Spec: m.KeySpec, State: state(m.KeyState), Deletion: m.DeleteDate}
		if strings.HasPrefix(m.KeySpec, "RSA_") {
			info.Version = m.PrimaryKeyVersion
		}
		return nil
	})
	if err == nil && info.Version != "" && info.State == cloud.StateEnabled {
		err = c.publicKey(ctx, cmk, info.Version, func(text string) (err error) {
			info.PublicKey, err = cloud.ParsePublicKey(text)
			return err
		})
	}
	if err != nil {
		return nil, answer, err
	}
	return info, answer, nil
}

// metadata asks for what the KMS says of a CMK, and checks that it is about that one.
func (c *Client) metadata(ctx context.Context, cmk cloud.CMK, read func(kms.KeyMetadata) error) (cloud.Answer, error) {
	return c.do(ctx, cmk, "DescribeKey", func(client *sdk.Client) error {
		r := kms.CreateDescribeKeyRequest()
		form(r.RpcRequest, "KeyId", cmk.KeyID)
		a := kms.CreateDescribeKeyResponse()
		if err := client.DoAction(r, a); err != nil {
			return err
		}
		m := a.KeyMetadata
		if m.KeySpec == "" || m.KeyState == "" {
			return cloud.Distrust("it does not describe the CMK")
		}
		if err := sameKey(cmk, m.KeyId, cloud.BadAnswer); err != nil {
			return err
		}
		return read(m)
	})
}

// publicKey asks for the public key of a version of a CMK, as PEM.
func (c *Client) publicKey(ctx context.Context, cmk cloud.CMK, version string, read func(text string) error) error {
	_, err := c.do(ctx, cmk, "GetPublicKey", func(client *sdk.Client) error {
		r := kms.CreateGetPublicKeyRequest()
		form(r.RpcRequest, "KeyId", cmk.KeyID, "KeyVersionId", version)
		a := kms.CreateGetPublicKeyResponse()
		if err := client.DoAction(r, a); err != nil {
			return err
		}
		if a.KeyVersionId != version {
			return errOtherVersion()
		}
		if err := sameKey(cmk, a.KeyId, cloud.BadAnswer); err != nil {
			return err
		}
		return read(a.PublicKey)
	})
	return err
}

func errOtherVersion() error { return cloud.Distrust("it is about another version of the key") }

// wrapped returns the bytes of a CiphertextBlob, which must come back as the same text.
func wrapped(text string) ([]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(b) == 0 || strings.ContainsAny(text, "\r\n") {
		return nil, cloud.Distrust("its wrapped key is missing or not Base64")
	}
	return b, nil
}

func dataKey(text string, size int) (keyring.DataKey, error) {
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, cloud.Distrust("its data key is not Base64")
	}
	return cloud.DataKey(b, size)
}

// sameKey checks that an answer is about the CMK, by its ID or ARN.
func sameKey(cmk cloud.CMK, got string, otherwise cloud.Kind) error {
	switch {
	case got == "":
		return cloud.Distrust("it names no CMK")
	case got != cmk.KeyID && got != cmk.String():
		return &cloud.Error{Kind: otherwise, Err: cloud.ErrOtherCMK}
	}
	return nil
}

func state(s string) string {
	switch s {
	case "Enabled":
		return cloud.StateEnabled
	case "Disabled":
		return cloud.StateDisabled
	case "PendingDeletion":
		return cloud.StatePendingDeletion
	case "PendingImport":
		return cloud.StatePendingImport
	}
	return fmt.Sprintf("%.32q", s)
}

func explain(err error) (status int, code, requestID string, ok bool) {
	var e *sdkerrors.ServerError
	if !errors.As(err, &e) {
		return 0, "", "", false
	}
	return e.HttpStatus(), e.ErrorCode(), e.RequestId(), true
}

// kind classifies by code first: the KMS throttles with 400 too, and calls an unknown access key not found.
func kind(call, code string) (cloud.Kind, bool) {
	if kind, ok := secretKind(call, code); ok {
		return kind, true
	}
	switch code {
	case "Rejected.Disabled", "Rejected.PendingImport", "Rejected.Unavailable":
		return cloud.KeyDisabled, true
	case "Rejected.PendingDeletion":
		return cloud.PendingDeletion, true
	case "Forbidden.KeyNotFound", "Forbidden.AliasNotFound", "Forbidden.KeyVersionNotFound":
		return cloud.KeyNotFound, true
	case "Rejected.Throttling":
		return cloud.Throttled, true
	case "ServiceUnavailableTemporary", "InternalFailure":
		return cloud.Unavailable, true
	case "InvalidAccessKeyId.NotFound", "InvalidAccessKeyId.Inactive", "InvalidAccessKeyId", "Forbidden.AccessKey", "SignatureDoesNotMatch", "IncompleteSignature",
		"IllegalTimestamp", "MissingSecurityToken":
		return cloud.BadCredential, true
	case "InvalidParameter":
		return cloud.NotWrapped, call == "Decrypt" || call == "AsymmetricDecrypt"
	}
	family, _, _ := strings.Cut(code, ".")
	switch family {
	case "Throttling":
		return cloud.Throttled, true
	case "InvalidSecurityToken":
		return cloud.BadCredential, true
	case "Forbidden", "NoPermission":
		return cloud.NoPermission, true
	case "InvalidCiphertextBlob", "InvalidCiphertext":
		return cloud.NotWrapped, true
	}
	return 0, false
}
