package emulator

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/aliyun/alibaba-cloud-sdk-go/services/kms"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/services/kms/v2/model"
)

// TestPlaintexts finds each plaintext on record, and the one that a careless client puts into a URL.
func TestPlaintexts(t *testing.T) {
	e := start(t, Options{})
	ali := alibabaClient(t, listen(t, e, Alibaba, hangzhou), e.Credential(Alibaba))
	hw := huaweiClient(t, listen(t, e, Huawei, beijing), e.Credential(Huawei), project)
	dk, err := createDataKey(hw, hwAES, "")
	must(t, err)
	generate := kms.CreateGenerateDataKeyRequest()
	generate.KeyId = aliAES
	generated, err := ali.GenerateDataKey(generate)
	must(t, err)
	careful, careless := bytes.Repeat([]byte{0xa5}, 32), bytes.Repeat([]byte{0x5a}, 32)
	encrypt := kms.CreateEncryptRequest()
	encrypt.KeyId = aliAES
	encrypt.FormParams["Plaintext"] = b64(careful)
	_, err = ali.Encrypt(encrypt)
	must(t, err)
	encrypt = kms.CreateEncryptRequest()
	encrypt.KeyId, encrypt.Plaintext = aliAES, b64(careless)
	_, err = ali.Encrypt(encrypt)
	must(t, err)
	_, err = hw.EncryptData(&model.EncryptDataRequest{Body: &model.EncryptDataRequestBody{KeyId: keyID(hwAES), PlainText: "0123456789abcdef"}})
	must(t, err)

	plaintexts := e.Plaintexts()
	for _, want := range []string{*dk.PlainText, generated.Plaintext, b64(careful), hex.EncodeToString(careless), string(careless), "0123456789abcdef", "\x01\x23\x45\x67\x89\xab\xcd\xef"} {
		if !slices.Contains(plaintexts, want) {
			t.Errorf("%q is not on record", want)
		}
	}
	var found []string
	for _, r := range e.Requests() {
		for _, plain := range plaintexts {
			if strings.Contains(r.URL, alibabaEscape(plain)) {
				found = append(found, plain)
			}
		}
	}
	if !slices.Equal(found, []string{b64(careless)}) {
		t.Errorf("in URLs: %q", found)
	}
	if issued := e.IssueCredential(Huawei); !slices.Contains(e.Credentials(), issued) {
		t.Error("an issued credential is not among the credentials")
	}
}
