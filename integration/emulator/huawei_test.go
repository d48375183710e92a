package emulator

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/sm3"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/sdkerr"
	kms "github.com/huaweicloud/huaweicloud-sdk-go-v3/services/kms/v2"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/services/kms/v2/model"
)

// wantHuawei fails unless err is what the SDK makes of an error of the service.
func wantHuawei(t *testing.T, err error, status int, code string) {
	t.Helper()
	var server *sdkerr.ServiceResponseError
	if !errors.As(err, &server) || server.StatusCode != status || server.ErrorCode != code || server.RequestId == "" {
		t.Errorf("%v, want %d %s", err, status, code)
	}
}

func unhex(t *testing.T, s *string) []byte {
	t.Helper()
	if s == nil {
		t.Fatal("a field is missing")
	}
	b, err := hex.DecodeString(*s)
	must(t, err)
	return b
}

func ptr[T any](v T) *T { return &v }

func createDataKey(client *kms.KmsClient, uri, aad string) (*model.CreateDatakeyResponse, error) {
	body := &model.CreateDatakeyRequestBody{KeyId: keyID(uri), DatakeyLength: ptr("256")}
	if aad != "" {
		body.AdditionalAuthenticatedData = &aad
	}
	return client.CreateDatakey(&model.CreateDatakeyRequest{Body: body})
}

func decryptDataKey(client *kms.KmsClient, uri, blob, length, aad string) (*model.DecryptDatakeyResponse, error) {
	body := &model.DecryptDatakeyRequestBody{KeyId: keyID(uri), CipherText: blob, DatakeyCipherLength: length}
	if aad != "" {
		body.AdditionalAuthenticatedData = &aad
	}
	return client.DecryptDatakey(&model.DecryptDatakeyRequest{Body: body})
}

func TestHuaweiDataKeys(t *testing.T) {
	e := start(t, Options{})
	client := huaweiClient(t, listen(t, e, Huawei, beijing), e.Credential(Huawei), project)
	for uri, digest := range map[string]func([]byte) []byte{
		hwAES: func(b []byte) []byte { s := sha256.Sum256(b); return s[:] },
		hwSM4: func(b []byte) []byte { s := sm3.Sum(b); return s[:] },
	} {
		for _, aad := range []string{"", "context ~*+/ü", strings.Repeat("x", 128)} {
			dk, err := createDataKey(client, uri, aad)
			must(t, err)
			plain, blob := unhex(t, dk.PlainText), unhex(t, dk.CipherText)
			if len(plain) != 32 || *dk.KeyId != keyID(uri) || aad == "" && len(blob) != 156 {
				t.Errorf("%s: %d bytes in %d for %s", uri, len(plain), len(blob), *dk.KeyId)
			}
			opened, err := decryptDataKey(client, uri, *dk.CipherText, "32", aad)
			must(t, err)
			if !bytes.Equal(unhex(t, opened.DataKey), plain) || !bytes.Equal(unhex(t, opened.DatakeyDgst), digest(plain)) || *opened.DatakeyLength != "32" {
				t.Errorf("%s: decrypt: %+v", uri, opened)
			}
			_, err = decryptDataKey(client, uri, *dk.CipherText, "32", "another context")
			wantHuawei(t, err, 400, "KMS.2203")
			blob[30] ^= 1
			_, err = decryptDataKey(client, uri, hex.EncodeToString(blob), "32", aad)
			wantHuawei(t, err, 400, "KMS.2201")

			wrap := &model.EncryptDatakeyRequestBody{
				KeyId: keyID(uri), PlainText: hex.EncodeToString(append(bytes.Clone(plain[:16]), digest(plain[:16])...)), DatakeyPlainLength: "16",
			}
			if aad != "" {
				wrap.AdditionalAuthenticatedData = &aad
			}
			wrapped, err := client.EncryptDatakey(&model.EncryptDatakeyRequest{Body: wrap})
			must(t, err)
			if opened, err = decryptDataKey(client, uri, *wrapped.CipherText, "16", aad); err != nil || !bytes.Equal(unhex(t, opened.DataKey), plain[:16]) {
				t.Errorf("%s: wrapped: %v, %+v", uri, err, opened)
			}
			wrap.PlainText = hex.EncodeToString(make([]byte, 48))
			_, err = client.EncryptDatakey(&model.EncryptDatakeyRequest{Body: wrap})
			wantHuawei(t, err, 400, "KMS.2103")
		}
		_, err := createDataKey(client, uri, strings.Repeat("x", 129))
		wantHuawei(t, err, 400, "KMS.0208")
	}
	without, err := client.CreateDatakeyWithoutPlaintext(&model.CreateDatakeyWithoutPlaintextRequest{Body: &model.CreateDatakeyRequestBody{
		KeyId: "alias/main", KeySpec: ptr(model.GetCreateDatakeyRequestBodyKeySpecEnum().AES_128)}})
	must(t, err)
	_, err = decryptDataKey(client, hwAES, *without.CipherText, "16", "")
	must(t, err)
	_, err = decryptDataKey(client, hwSM4, *without.CipherText, "16", "") // of another CMK
	wantHuawei(t, err, 400, "KMS.2201")
}

// TestContextModes lets regions ignore or reject the encryption context.
func TestContextModes(t *testing.T) {
	e := start(t, Options{Contexts: map[string]ContextMode{"huawei/cn-north-4": ContextIgnored, "huawei/ap-southeast-3": ContextRejected},
		Credentials: []Credential{{Provider: Huawei, ID: "any", Secret: "secret"}}})
	client := huaweiClient(t, listen(t, e, Huawei, beijing), e.Credential(Huawei), project)
	dk, err := createDataKey(client, hwAES, "one context")
	must(t, err)
	if _, err := decryptDataKey(client, hwAES, *dk.CipherText, "32", "another"); err != nil {
		t.Errorf("a region that ignores contexts: %v", err)
	}
	client = huaweiClient(t, listen(t, e, Huawei, "ap-southeast-3"), e.Credential(Huawei), "0000000000000000000000000000beef")
	_, err = createDataKey(client, hwFar, "one context")
	wantHuawei(t, err, 400, "KMS.0208")
	if _, err := createDataKey(client, hwFar, ""); err != nil {
		t.Error(err)
	}
}

func TestHuaweiStates(t *testing.T) {
	e := start(t, Options{})
	p := listen(t, e, Huawei, beijing)
	client := huaweiClient(t, p, e.Credential(Huawei), project)
	dk, err := createDataKey(client, hwAES, "")
	must(t, err)
	describe := func(uri string) (*model.ListKeyDetailResponse, error) {
		return client.ListKeyDetail(&model.ListKeyDetailRequest{Body: &model.OperateKeyRequestBody{KeyId: keyID(uri)}})
	}
	for _, want := range []struct {
		state  State
		status int
		code   string
		number string // of the state; empty if describing fails as well
	}{
		{Disabled, 400, "KMS.0209", "3"},
		{PendingDeletion, 400, "KMS.0210", "4"},
		{PendingImport, 400, "KMS.0209", "5"},
		{Deleted, 404, "KMS.0207", ""},
		{Denied, 403, "KMS.0306", ""},
	} {
		must(t, e.SetState(hwAES, want.state))
		_, err := createDataKey(client, hwAES, "")
		wantHuawei(t, err, want.status, want.code)
		_, err = decryptDataKey(client, hwAES, *dk.CipherText, "32", "")
		wantHuawei(t, err, want.status, want.code)
		described, err := describe(hwAES)
		if want.number == "" {
			wantHuawei(t, err, want.status, want.code)
		} else if err != nil || *described.KeyInfo.KeyState != want.number || (*described.KeyInfo.ScheduledDeletionDate != "") != (want.state == PendingDeletion) {
			t.Errorf("%s: %v, %+v", want.state, err, described)
		}
	}
	must(t, e.SetState(hwAES, Enabled))
	for uri, spec := range map[string]string{hwAES: "AES_256", hwSM4: "SM4", hwRSA: "RSA_2048"} {
		described, err := describe(uri)
		must(t, err)
		if i := described.KeyInfo; *i.KeyState != "2" || *i.KeyId != keyID(uri) || i.KeySpec.Value() != spec || *i.Realm != beijing {
			t.Errorf("%+v", i)
		}
	}
	for _, uri := range []string{hwFar, hwOthers, "/77777777-7777-4777-8777-777777777777"} { // of another region or project, or nobody's
		_, err := createDataKey(client, uri, "")
		wantHuawei(t, err, 404, "KMS.0207")
	}
	_, err = createDataKey(huaweiClient(t, p, e.Credential(Huawei), "0000000000000000000000000000dead"), hwOthers, "")
	wantHuawei(t, err, 403, "APIGW.0302")
}

func TestHuaweiRSA(t *testing.T) {
	e := start(t, Options{})
	client := huaweiClient(t, listen(t, e, Huawei, beijing), e.Credential(Huawei), project)
	public, err := client.ShowPublicKey(&model.ShowPublicKeyRequest{Body: &model.OperateKeyRequestBody{KeyId: keyID(hwRSA)}})
	must(t, err)
	dataKey := strings.Repeat("0123456789abcdef", 4) // in hexadecimal, so that it is printable
	blob, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, parsePublic(t, *public.PublicKey), []byte(dataKey), nil)
	must(t, err)
	decrypt := &model.DecryptDataRequestBody{KeyId: ptr(keyID(hwRSA)), CipherText: b64(blob),
		EncryptionAlgorithm: ptr(model.GetDecryptDataRequestBodyEncryptionAlgorithmEnum().RSAES_OAEP_SHA_256)}
	opened, err := client.DecryptData(&model.DecryptDataRequest{Body: decrypt})
	must(t, err)
	if *opened.PlainText != dataKey || *opened.PlainTextBase64 != b64([]byte(dataKey)) || *opened.KeyId != keyID(hwRSA) {
		t.Errorf("%+v", opened)
	}
	encrypt := &model.EncryptDataRequestBody{KeyId: keyID(hwRSA), PlainText: dataKey,
		EncryptionAlgorithm: ptr(model.GetEncryptDataRequestBodyEncryptionAlgorithmEnum().RSAES_OAEP_SHA_256)}
	sealed, err := client.EncryptData(&model.EncryptDataRequest{Body: encrypt})
	must(t, err)
	decrypt.CipherText = *sealed.CipherText
	if opened, err = client.DecryptData(&model.DecryptDataRequest{Body: decrypt}); err != nil || *opened.PlainText != dataKey {
		t.Errorf("encrypted by the service: %v, %+v", err, opened)
	}
	blob[100] ^= 1
	decrypt.CipherText = b64(blob)
	_, err = client.DecryptData(&model.DecryptDataRequest{Body: decrypt})
	wantHuawei(t, err, 400, "KMS.2201")
	_, err = createDataKey(client, hwRSA, "")
	wantHuawei(t, err, 400, "KMS.0205")
}

func TestHuaweiSmallData(t *testing.T) {
	e := start(t, Options{})
	client := huaweiClient(t, listen(t, e, Huawei, beijing), e.Credential(Huawei), project)
	sealed, err := client.EncryptData(&model.EncryptDataRequest{Body: &model.EncryptDataRequestBody{
		KeyId: keyID(hwSM4), PlainText: "small & <data>", AdditionalAuthenticatedData: ptr("context")}})
	must(t, err)
	decrypt := &model.DecryptDataRequestBody{CipherText: *sealed.CipherText, AdditionalAuthenticatedData: ptr("context")} // names no CMK
	opened, err := client.DecryptData(&model.DecryptDataRequest{Body: decrypt})
	must(t, err)
	if *opened.PlainText != "small & <data>" || *opened.KeyId != keyID(hwSM4) {
		t.Errorf("%+v", opened)
	}
	decrypt.AdditionalAuthenticatedData = ptr("another")
	_, err = client.DecryptData(&model.DecryptDataRequest{Body: decrypt})
	wantHuawei(t, err, 400, "KMS.2201")
}

func TestHuaweiSignatures(t *testing.T) {
	e := start(t, Options{})
	client := huaweiClient(t, listen(t, e, Huawei, beijing), e.Credential(Huawei), project)
	for _, algorithm := range []string{"RSASSA_PSS_SHA_256", "RSASSA_PKCS1_V1_5_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512"} {
		sign := &model.SignRequestBody{KeyId: keyID(hwSign), Message: b64([]byte("a manifest")), MessageType: ptr(model.GetSignRequestBodyMessageTypeEnum().RAW)}
		must(t, sign.SigningAlgorithm.UnmarshalJSON([]byte(`"`+algorithm+`"`)))
		signed, err := client.Sign(&model.SignRequest{Body: sign})
		must(t, err)
		for message, want := range map[string]string{"a manifest": "true", "another": "false"} {
			verify := &model.VerifyRequestBody{KeyId: keyID(hwSign), Message: b64([]byte(message)), Signature: *signed.Signature,
				MessageType: ptr(model.GetVerifyRequestBodyMessageTypeEnum().RAW)}
			must(t, verify.SigningAlgorithm.UnmarshalJSON([]byte(`"`+algorithm+`"`)))
			verified, err := client.ValidateSignature(&model.ValidateSignatureRequest{Body: verify})
			must(t, err)
			if *verified.SignatureValid != want {
				t.Errorf("%s: %q: %s, want %s", algorithm, message, *verified.SignatureValid, want)
			}
		}
	}
}
