package emulator

import (
	"crypto/rand"
	"encoding/base64"
	"strings"
)

const symmetric = "SYMMETRIC_DEFAULT"

// Small data that a symmetric CMK encrypts: key ID, nonce, ciphertext, tag, in Base64.
const dataNonce = 12

// dataKeyID returns the ID of the CMK that such data is for, or nothing.
func dataKeyID(cipherText string) string {
	if blob, err := base64.StdEncoding.Strict().DecodeString(cipherText); err == nil && len(blob) > blobKeyID {
		return string(blob[:blobKeyID])
	}
	return ""
}

// algorithm checks that a call suits its CMK.
func (req huaweiRequest) algorithm(k *key) *failure {
	switch {
	case k.private == nil && (req.Algorithm == "" || req.Algorithm == symmetric), k.private != nil && k.Usage == EncryptDecrypt && req.Algorithm == oaep:
		return nil
	}
	return errHuaweiUsage
}

func (h huawei) encryptData(_ *call, k *key, req huaweiRequest) (map[string]any, *failure) {
	if fail := req.algorithm(k); fail != nil {
		return nil, fail
	}
	if len(req.PlainText) < 1 || len(req.PlainText) > 4096 || strings.ContainsAny(req.PlainText, "\r\n") {
		return nil, &failure{400, "KMS.2101", "Parameter error: plain_text."}
	}
	h.saw([]byte(req.PlainText))
	var blob []byte
	if k.private != nil {
		var err error
		if blob, err = k.encryptOAEP([]byte(req.PlainText)); err != nil {
			return nil, &failure{400, "KMS.2101", "Parameter error: plain_text."}
		}
	} else {
		blob = append([]byte(k.id), make([]byte, dataNonce)...)
		nonce := blob[blobKeyID:]
		rand.Read(nonce)
		blob = k.gcm(dataNonce).Seal(blob, nonce, []byte(req.PlainText), []byte(req.AAD))
	}
	return map[string]any{"key_id": k.id, "cipher_text": base64.StdEncoding.EncodeToString(blob)}, nil
}

func (h huawei) decryptData(_ *call, k *key, req huaweiRequest) (map[string]any, *failure) {
	if fail := req.algorithm(k); fail != nil {
		return nil, fail
	}
	blob, err := base64.StdEncoding.Strict().DecodeString(req.CipherText)
	if err != nil {
		return nil, errHuaweiCipher
	}
	var plain []byte
	if k.private != nil {
		plain, err = k.decryptOAEP(blob)
	} else if len(blob) < blobKeyID+dataNonce || string(blob[:blobKeyID]) != k.id {
		return nil, errHuaweiCipher
	} else {
		plain, err = k.gcm(dataNonce).Open(nil, blob[blobKeyID:blobKeyID+dataNonce], blob[blobKeyID+dataNonce:], []byte(req.AAD))
	}
	if err != nil {
		return nil, errHuaweiCipher
	}
	h.saw(plain)
	return map[string]any{"key_id": k.id, "plain_text": string(plain), "plain_text_base64": base64.StdEncoding.EncodeToString(plain)}, nil
}
