package emulator

import (
	"crypto"
	"encoding/base64"
)

// oaep is the one encryption algorithm of RSA CMKs that the emulator knows, by the name it has at both clouds.
const oaep = "RSAES_OAEP_SHA_256"

// asymmetric checks that a call suits an RSA CMK, and decodes a parameter of it.
func (a alibaba) asymmetric(c *call, k *key, usage, param string) ([]byte, *failure) {
	if k.private == nil || k.Usage != usage {
		return nil, &failure{409, "Rejected.UnsupportedOperation", "The key does not support this operation."}
	}
	if c.params.Get("KeyVersionId") != k.version {
		return nil, &failure{404, "Forbidden.KeyVersionNotFound", "The specified key version is not found."}
	}
	b, err := base64.StdEncoding.DecodeString(c.params.Get(param))
	if err != nil || len(b) == 0 {
		return nil, alibabaInvalid(param)
	}
	return b, nil
}

func (a alibaba) publicKey(c *call, k *key) (map[string]any, *failure) {
	if k.private == nil {
		return nil, &failure{409, "Rejected.UnsupportedOperation", "The key does not support this operation."}
	}
	if c.params.Get("KeyVersionId") != k.version {
		return nil, &failure{404, "Forbidden.KeyVersionNotFound", "The specified key version is not found."}
	}
	return map[string]any{"PublicKey": k.publicPEM()}, nil
}

func (a alibaba) asymmetricEncrypt(c *call, k *key) (map[string]any, *failure) {
	plain, fail := a.asymmetric(c, k, EncryptDecrypt, "Plaintext")
	if fail != nil {
		return nil, fail
	}
	if c.params.Get("Algorithm") != oaep {
		return nil, alibabaInvalid("Algorithm")
	}
	a.saw(plain)
	sealed, err := k.encryptOAEP(plain)
	if err != nil {
		return nil, alibabaInvalid("Plaintext")
	}
	return map[string]any{"CiphertextBlob": base64.StdEncoding.EncodeToString(sealed)}, nil
}

func (a alibaba) asymmetricDecrypt(c *call, k *key) (map[string]any, *failure) {
	sealed, fail := a.asymmetric(c, k, EncryptDecrypt, "CiphertextBlob")
	if fail != nil {
		return nil, fail
	}
	if c.params.Get("Algorithm") != oaep {
		return nil, alibabaInvalid("Algorithm")
	}
	plain, err := k.decryptOAEP(sealed)
	if err != nil {
		return nil, errAlibabaCipher
	}
	a.saw(plain)
	return map[string]any{"Plaintext": base64.StdEncoding.EncodeToString(plain)}, nil
}

// digest decodes the digest to sign or verify, and finds out how.
func (a alibaba) digest(c *call, k *key) ([]byte, scheme, *failure) {
	digest, fail := a.asymmetric(c, k, SignVerify, "Digest")
	if fail != nil {
		return nil, scheme{}, fail
	}
	if len(digest) != crypto.SHA256.Size() {
		return nil, scheme{}, alibabaInvalid("Digest")
	}
	switch c.params.Get("Algorithm") {
	case "RSA_PSS_SHA_256":
		return digest, scheme{crypto.SHA256, true}, nil
	case "RSA_PKCS1_SHA_256":
		return digest, scheme{crypto.SHA256, false}, nil
	}
	return nil, scheme{}, alibabaInvalid("Algorithm")
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
