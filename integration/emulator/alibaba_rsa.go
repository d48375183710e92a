package emulator

import "encoding/base64"

// oaep is the one encryption algorithm of RSA CMKs that the emulator knows, by the name it has at both clouds.
const oaep = "RSAES_OAEP_SHA_256"

// asymmetric checks that a call suits an asymmetric CMK, and decodes a parameter of it.
func (a alibaba) asymmetric(c *call, k *key, usage, param string) ([]byte, *failure) {
	if k.secret != nil || k.Usage != usage {
		return nil, errAlibabaUsage
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
	if k.secret != nil {
		return nil, errAlibabaUsage
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
