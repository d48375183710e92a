package emulator

import (
	"crypto"
	"encoding/base64"
	"strconv"
)

// digest decodes the digest to sign or verify, and finds out how.
func (a alibaba) digest(c *call, k *key) ([]byte, scheme, *failure) {
	digest, fail := a.asymmetric(c, k, SignVerify, "Digest")
	if fail != nil {
		return nil, scheme{}, fail
	}
	s, ok := map[string]scheme{
		"RSA_PSS_SHA_256": {hash: crypto.SHA256, pss: true}, "RSA_PKCS1_SHA_256": {hash: crypto.SHA256},
		"ECDSA_SHA_256": {hash: crypto.SHA256, spec: specP256}, "SM2DSA": {spec: specSM2},
	}[c.params.Get("Algorithm")]
	switch {
	case !ok || !k.suits(s):
		return nil, scheme{}, alibabaInvalid("Algorithm")
	case len(digest) != s.size():
		return nil, scheme{}, alibabaInvalid("Digest")
	}
	return digest, s, nil
}

func (a alibaba) asymmetricSign(c *call, k *key) (map[string]any, *failure) {
	digest, s, fail := a.digest(c, k)
	if fail != nil {
		return nil, fail
	}
	signature, err := k.sign(s, digest)
	if err != nil {
		return nil, alibabaInvalid("Digest")
	}
	return map[string]any{"Value": base64.StdEncoding.EncodeToString(signature)}, nil
}

func (a alibaba) asymmetricVerify(c *call, k *key) (map[string]any, *failure) {
	digest, s, fail := a.digest(c, k)
	if fail != nil {
		return nil, fail
	}
	signature, err := base64.StdEncoding.DecodeString(c.params.Get("Value"))
	if err != nil {
		return nil, alibabaInvalid("Value")
	}
	return map[string]any{"Value": k.verify(s, digest, signature)}, nil
}

// digest returns what to sign or verify, and how.
func (req huaweiRequest) digest(k *key) ([]byte, scheme, *failure) {
	if k.Usage != SignVerify {
		return nil, scheme{}, errHuaweiUsage
	}
	s, ok := map[string]scheme{
		"RSASSA_PSS_SHA_256": {hash: crypto.SHA256, pss: true}, "RSASSA_PSS_SHA_384": {hash: crypto.SHA384, pss: true}, "RSASSA_PSS_SHA_512": {hash: crypto.SHA512, pss: true},
		"RSASSA_PKCS1_V1_5_SHA_256": {hash: crypto.SHA256}, "RSASSA_PKCS1_V1_5_SHA_384": {hash: crypto.SHA384}, "RSASSA_PKCS1_V1_5_SHA_512": {hash: crypto.SHA512},
		"ECDSA_SHA_256": {hash: crypto.SHA256, spec: specP256}, "ECDSA_SHA_384": {hash: crypto.SHA384, spec: specP384}, "SM2DSA_SM3": {spec: specSM2},
	}[req.SignAlgorithm]
	if !ok || !k.suits(s) {
		return nil, scheme{}, errHuaweiUsage
	}
	message, err := base64.StdEncoding.DecodeString(req.Message)
	if err != nil || len(message) == 0 || len(message) >= 4096 {
		return nil, scheme{}, errHuaweiMissing
	}
	if req.MessageType == "RAW" {
		if s.hash == 0 {
			return nil, scheme{}, errHuaweiUsage // SM2 keys sign digests only
		}
		hash := s.hash.New()
		hash.Write(message)
		message = hash.Sum(nil)
	}
	if len(message) != s.size() {
		return nil, scheme{}, errHuaweiMissing
	}
	return message, s, nil
}

func (h huawei) sign(_ *call, k *key, req huaweiRequest) (map[string]any, *failure) {
	digest, s, fail := req.digest(k)
	if fail != nil {
		return nil, fail
	}
	signature, err := k.sign(s, digest)
	if err != nil {
		return nil, errHuaweiUsage
	}
	return map[string]any{"key_id": k.id, "signature": base64.StdEncoding.EncodeToString(signature)}, nil
}

func (h huawei) verify(_ *call, k *key, req huaweiRequest) (map[string]any, *failure) {
	digest, s, fail := req.digest(k)
	if fail != nil {
		return nil, fail
	}
	signature, err := base64.StdEncoding.DecodeString(req.Signature)
	if err != nil {
		return nil, errHuaweiMissing
	}
	return map[string]any{"key_id": k.id, "signature_valid": strconv.FormatBool(k.verify(s, digest, signature))}, nil
}
