package emulator

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/kms"
)

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func unb64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	must(t, err)
	return b
}

// wantAlibaba fails unless err is what the SDK makes of an error of the service.
func wantAlibaba(t *testing.T, err error, status int, code string) {
	t.Helper()
	var server *sdkerrors.ServerError
	if !errors.As(err, &server) || server.HttpStatus() != status || server.ErrorCode() != code {
		t.Errorf("%v, want %d %s", err, status, code)
	}
}

func TestAlibabaDataKeys(t *testing.T) {
	e := start(t, Options{})
	client := alibabaClient(t, listen(t, e, Alibaba, hangzhou), e.Credential(Alibaba))
	for _, uri := range []string{aliAES, aliSM4} {
		generate := kms.CreateGenerateDataKeyRequest()
		generate.KeyId, generate.NumberOfBytes, generate.EncryptionContext = uri, requests.NewInteger(32), `{"b":"2","a":"1 ~*+/ü"}`
		dk, err := client.GenerateDataKey(generate)
		must(t, err)
		plain, blob := unb64(t, dk.Plaintext), unb64(t, dk.CiphertextBlob)
		if len(plain) != 32 || len(blob) != 108 || dk.KeyId != keyID(uri) || string(blob[:36]) != dk.KeyVersionId || dk.RequestId == "" {
			t.Errorf("%s: %d bytes in %d: %+v", uri, len(plain), len(blob), dk)
		}
		decrypt := kms.CreateDecryptRequest()
		decrypt.FormParams["CiphertextBlob"] = dk.CiphertextBlob // in the body, and still signed
		decrypt.EncryptionContext = `{"a":"1 ~*+/ü", "b":"2"}`   // the same map
		opened, err := client.Decrypt(decrypt)
		must(t, err)
		if opened.Plaintext != dk.Plaintext || opened.KeyId != keyID(uri) {
			t.Errorf("%s: decrypt: %+v", uri, opened)
		}
		for _, context := range []string{"", `{"a":"1"}`, `{"a":"1 ~*+/ü","b":"2","c":"3"}`, `{"a":1}`, `[]`} {
			decrypt := kms.CreateDecryptRequest()
			decrypt.CiphertextBlob, decrypt.EncryptionContext = dk.CiphertextBlob, context
			_, err := client.Decrypt(decrypt)
			wantAlibaba(t, err, 400, "InvalidParameter")
		}
		for i := range blob {
			blob[i] ^= 1
			decrypt := kms.CreateDecryptRequest()
			decrypt.CiphertextBlob, decrypt.EncryptionContext = b64(blob), generate.EncryptionContext
			if _, err := client.Decrypt(decrypt); err == nil {
				t.Errorf("%s: byte %d changed, it opens", uri, i)
			}
			blob[i] ^= 1
		}

		encrypt := kms.CreateEncryptRequest()
		encrypt.KeyId = "alias/main"
		encrypt.FormParams["Plaintext"] = b64([]byte("sixteen bytes ok"))
		wrapped, err := client.Encrypt(encrypt)
		must(t, err)
		decrypt = kms.CreateDecryptRequest()
		decrypt.CiphertextBlob = wrapped.CiphertextBlob
		opened, err = client.Decrypt(decrypt)
		must(t, err)
		if opened.Plaintext != encrypt.FormParams["Plaintext"] || opened.KeyId != keyID(aliAES) {
			t.Errorf("%s: encrypt, decrypt: %+v", uri, opened)
		}
	}
	without := kms.CreateGenerateDataKeyWithoutPlaintextRequest()
	without.KeyId, without.KeySpec = keyID(aliAES), "AES_128"
	dk, err := client.GenerateDataKeyWithoutPlaintext(without)
	must(t, err)
	decrypt := kms.CreateDecryptRequest()
	decrypt.CiphertextBlob = dk.CiphertextBlob
	opened, err := client.Decrypt(decrypt)
	must(t, err)
	if n := len(unb64(t, opened.Plaintext)); n != 16 {
		t.Errorf("AES_128: %d bytes", n)
	}
	decrypt.DryRun = "true"
	_, err = client.Decrypt(decrypt)
	wantAlibaba(t, err, 400, "DryRunOperationError")
}

func TestAlibabaStates(t *testing.T) {
	e := start(t, Options{})
	client := alibabaClient(t, listen(t, e, Alibaba, hangzhou), e.Credential(Alibaba))
	wrap := func(name string) (*kms.EncryptResponse, error) {
		encrypt := kms.CreateEncryptRequest()
		encrypt.KeyId, encrypt.Plaintext = name, b64([]byte("key"))
		return client.Encrypt(encrypt)
	}
	wrapped, err := wrap(aliAES)
	must(t, err)
	describe := describeRequest(keyID(aliAES))
	for _, want := range []struct {
		state  State
		status int
		code   string
		name   string // of the state; empty if describing fails as well
	}{
		{Disabled, 409, "Rejected.Disabled", "Disabled"},
		{PendingDeletion, 409, "Rejected.PendingDeletion", "PendingDeletion"},
		{PendingImport, 409, "Rejected.PendingImport", "PendingImport"},
		{Deleted, 404, "Forbidden.KeyNotFound", ""},
		{Denied, 403, "Forbidden.NoPermission", ""},
	} {
		must(t, e.SetState(aliAES, want.state))
		_, err := wrap(aliAES)
		wantAlibaba(t, err, want.status, want.code)
		decrypt := kms.CreateDecryptRequest()
		decrypt.CiphertextBlob = wrapped.CiphertextBlob
		_, err = client.Decrypt(decrypt)
		wantAlibaba(t, err, want.status, want.code)
		described, err := client.DescribeKey(describe)
		if want.name == "" {
			wantAlibaba(t, err, want.status, want.code)
		} else if m := described.KeyMetadata; err != nil || m.KeyState != want.name || (m.DeleteDate != "") != (want.state == PendingDeletion) {
			t.Errorf("%s: %v, %+v", want.state, err, described)
		}
	}
	must(t, e.SetState(aliAES, Enabled))
	described, err := client.DescribeKey(describe)
	must(t, err)
	if m := described.KeyMetadata; m.KeyState != "Enabled" || m.Arn != aliAES || m.KeySpec != "Aliyun_AES_256" || m.PrimaryKeyVersion == "" {
		t.Errorf("%+v", m)
	}
	for _, name := range []string{aliFar, keyID(aliFar), aliOthers, keyID(aliOthers), "key-none", "alias/", ""} { // of another region or account, or nobody's
		_, err := wrap(name)
		wantAlibaba(t, err, 404, "Forbidden.KeyNotFound")
	}
	list, err := client.ListKeys(kms.CreateListKeysRequest())
	must(t, err)
	if list.TotalCount != 4 || len(list.Keys.Key) != 4 || list.Keys.Key[0].KeyArn != aliAES {
		t.Errorf("list: %+v", list)
	}
}

func TestAlibabaRSA(t *testing.T) {
	e := start(t, Options{})
	client := alibabaClient(t, listen(t, e, Alibaba, hangzhou), e.Credential(Alibaba))
	described, err := client.DescribeKey(describeRequest(aliRSA))
	must(t, err)
	version := described.KeyMetadata.PrimaryKeyVersion
	get := kms.CreateGetPublicKeyRequest()
	get.KeyId, get.KeyVersionId = aliRSA, version
	public, err := client.GetPublicKey(get)
	must(t, err)
	dataKey := bytes.Repeat([]byte{9}, 32)
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, parsePublic(t, public.PublicKey), dataKey, nil)
	must(t, err)
	unwrap := func(blob []byte, version string) (*kms.AsymmetricDecryptResponse, error) {
		req := kms.CreateAsymmetricDecryptRequest()
		req.KeyId, req.KeyVersionId, req.Algorithm = aliRSA, version, oaep
		req.FormParams["CiphertextBlob"] = b64(blob)
		return client.AsymmetricDecrypt(req)
	}
	opened, err := unwrap(wrapped, version)
	must(t, err)
	if !bytes.Equal(unb64(t, opened.Plaintext), dataKey) {
		t.Errorf("%+v", opened)
	}
	_, err = unwrap(wrapped, "another version")
	wantAlibaba(t, err, 404, "Forbidden.KeyVersionNotFound")
	wrapped[100] ^= 1
	_, err = unwrap(wrapped, version)
	wantAlibaba(t, err, 400, "InvalidParameter")

	seal := kms.CreateAsymmetricEncryptRequest()
	seal.KeyId, seal.KeyVersionId, seal.Algorithm, seal.Plaintext = aliRSA, version, oaep, b64(dataKey)
	sealed, err := client.AsymmetricEncrypt(seal)
	must(t, err)
	if opened, err = unwrap(unb64(t, sealed.CiphertextBlob), version); err != nil || opened.Plaintext != b64(dataKey) {
		t.Errorf("encrypted by the service: %v, %+v", err, opened)
	}
	generate := kms.CreateGenerateDataKeyRequest()
	generate.KeyId = aliRSA
	_, err = client.GenerateDataKey(generate)
	wantAlibaba(t, err, 409, "Rejected.UnsupportedOperation")
}

func TestAlibabaSignatures(t *testing.T) {
	e := start(t, Options{})
	client := alibabaClient(t, listen(t, e, Alibaba, hangzhou), e.Credential(Alibaba))
	version := e.key(aliSign).version
	digest := sha256.Sum256([]byte("a manifest"))
	for _, algorithm := range []string{"RSA_PSS_SHA_256", "RSA_PKCS1_SHA_256"} {
		sign := kms.CreateAsymmetricSignRequest()
		sign.KeyId, sign.KeyVersionId, sign.Algorithm, sign.Digest = aliSign, version, algorithm, b64(digest[:])
		signed, err := client.AsymmetricSign(sign)
		must(t, err)
		verify := kms.CreateAsymmetricVerifyRequest()
		verify.KeyId, verify.KeyVersionId, verify.Algorithm, verify.Digest, verify.Value = aliSign, version, algorithm, b64(digest[:]), signed.Value
		for _, want := range []bool{true, false} {
			verified, err := client.AsymmetricVerify(verify)
			must(t, err)
			if verified.Value != want {
				t.Errorf("%s: verified: %v, want %v", algorithm, verified.Value, want)
			}
			verify.Digest = b64(make([]byte, 32))
		}
	}
}

func describeRequest(name string) *kms.DescribeKeyRequest {
	req := kms.CreateDescribeKeyRequest()
	req.KeyId = name
	return req
}

func parsePublic(t *testing.T, text string) *rsa.PublicKey {
	t.Helper()
	block, rest := pem.Decode([]byte(text))
	if block == nil || strings.TrimSpace(string(rest)) != "" {
		t.Fatalf("not a PEM block: %q", text)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	must(t, err)
	return public.(*rsa.PublicKey)
}
