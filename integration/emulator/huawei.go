package emulator

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
)

// huawei speaks Huawei Cloud's KMS: JSON posted to /v1.0/PROJECT/kms/OPERATION. Numbers are strings of digits.
type huawei struct{ *Emulator }

// A huaweiRequest has the fields of all operations.
type huaweiRequest struct {
	KeyID         string `json:"key_id"`
	KeySpec       string `json:"key_spec"`
	Length        string `json:"datakey_length"`        // bits
	PlainLength   string `json:"datakey_plain_length"`  // bytes
	CipherLength  string `json:"datakey_cipher_length"` // bytes, of the data key
	PlainText     string `json:"plain_text"`
	CipherText    string `json:"cipher_text"`
	AAD           string `json:"additional_authenticated_data"`
	Algorithm     string `json:"encryption_algorithm"`
	Message       string `json:"message"`
	MessageType   string `json:"message_type"`
	Signature     string `json:"signature"`
	SignAlgorithm string `json:"signing_algorithm"`
	Sequence      string `json:"sequence"`
}

var (
	errHuaweiNotFound = &failure{404, "KMS.0207", "Key does not exist."}
	errHuaweiMissing  = &failure{400, "KMS.0204", "Parameters missing in the request message."}
	errHuaweiUsage    = &failure{400, "KMS.0205", "The key does not support this operation."} // the code is a guess
	errHuaweiCipher   = &failure{400, "KMS.2201", "Parameter error: cipher_text."}
	errHuaweiHash     = &failure{400, "KMS.2203", "Failed to verify the hash value of the DEK."}
)

func (h huawei) parse(c *call, r *http.Request) {
	_, c.operation, _ = strings.Cut(r.URL.Path, "/kms/")
	var named struct {
		KeyID      string `json:"key_id"`
		CipherText string `json:"cipher_text"`
	}
	json.Unmarshal(c.body, &named) // answer reports the error
	c.name = named.KeyID
	if c.name == "" && c.operation == "decrypt-data" {
		c.name = dataKeyID(named.CipherText)
	}
	c.key = h.find(Huawei, c.region, "", c.name)
	if c.region == "" && c.key != nil {
		c.region = c.key.region
	}
}

func (h huawei) report(c *call, f failure) any {
	if strings.HasPrefix(f.code, "APIGW.") {
		return map[string]any{"error_code": f.code, "error_msg": f.message, "request_id": c.id}
	}
	return map[string]any{"error": map[string]any{"error_code": f.code, "error_msg": f.message}}
}

func (h huawei) answer(c *call, r *http.Request) (any, *failure) {
	cred, fail := h.authenticateHuawei(c, r)
	if fail != nil {
		return nil, fail
	}
	path := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1.0/"), "/")
	op := map[string]func(*call, *key, huaweiRequest) (map[string]any, *failure){
		"create-datakey": h.create, "create-datakey-without-plaintext": h.create,
		"encrypt-datakey": h.encryptDataKey, "decrypt-datakey": h.decryptDataKey,
		"encrypt-data": h.encryptData, "decrypt-data": h.decryptData,
		"describe-key": h.describe, "get-publickey": h.publicKey, "sign": h.sign, "verify": h.verify,
	}[c.operation]
	if op == nil || len(path) != 3 || r.Method != http.MethodPost {
		return nil, &failure{404, "APIGW.0101", "The API does not exist or has not been published in the environment"}
	}
	project := path[0]
	if sent := r.Header.Get("X-Project-Id"); sent != "" && sent != project || cred.Scope != "" && cred.Scope != project {
		return nil, &failure{403, "APIGW.0302", "The project is not one of the access key's."}
	}
	var req huaweiRequest
	if err := json.Unmarshal(c.body, &req); err != nil {
		return nil, &failure{400, "KMS.0202", "Invalid JSON format of the request message."}
	}
	k := h.find(Huawei, c.region, project, c.name)
	if c.name == "" && req.CipherText != "" && c.operation == "decrypt-data" {
		return nil, errHuaweiCipher // nothing in it says which CMK it is for
	}
	if c.name == "" {
		return nil, errHuaweiMissing
	}
	if fail := h.usable(c, k); fail != nil {
		return nil, fail
	}
	if k.curve != nil && !forCurves(c.operation) {
		return nil, errHuaweiUsage
	}
	switch h.contexts[Huawei+"/"+c.region] {
	case ContextIgnored:
		req.AAD = ""
	case ContextRejected:
		if req.AAD != "" {
			return nil, &failure{400, "KMS.0208", "Invalid encryption context."}
		}
	}
	if len(req.AAD) > 128 {
		return nil, &failure{400, "KMS.0208", "Invalid encryption context."}
	}
	answer, fail := op(c, k, req)
	if fail != nil {
		return nil, fail
	}
	return answer, nil
}

// usable says why a CMK cannot be used, or described, now.
func (h huawei) usable(c *call, k *key) *failure {
	if k == nil {
		return errHuaweiNotFound
	}
	switch s := h.state(k); {
	case s == Deleted:
		return errHuaweiNotFound
	case s == Denied:
		return &failure{403, "KMS.0306", "You do not have the permission to use the key."}
	case s == Enabled || c.operation == "describe-key":
		return nil
	case s == PendingDeletion:
		return &failure{400, "KMS.0210", "The key is in the scheduled deletion state and is unavailable."}
	default:
		return &failure{400, "KMS.0209", "The key is disabled."}
	}
}

func (h huawei) create(c *call, k *key, req huaweiRequest) (map[string]any, *failure) {
	if k.private != nil {
		return nil, errHuaweiUsage
	}
	bits := 256
	if req.Length != "" {
		var err error
		if bits, err = strconv.Atoi(req.Length); err != nil || bits < 8 || bits > 8192 || bits%8 != 0 {
			return nil, &failure{400, "KMS.2002", "Parameter error: datakey_length."}
		}
	} else {
		switch req.KeySpec {
		case "", "AES_256":
		case "AES_128", "SM4":
			bits = 128
		default:
			return nil, &failure{400, "KMS.2002", "Parameter error: key_spec."}
		}
	}
	dataKey := make([]byte, bits/8)
	rand.Read(dataKey)
	h.saw(dataKey)
	answer := map[string]any{"key_id": k.id, "cipher_text": hex.EncodeToString(sealDataKey(k, dataKey, req.AAD))}
	if c.operation == "create-datakey" {
		answer["plain_text"] = hex.EncodeToString(dataKey)
	}
	return answer, nil
}

func (h huawei) encryptDataKey(c *call, k *key, req huaweiRequest) (map[string]any, *failure) {
	if k.private != nil {
		return nil, errHuaweiUsage
	}
	plain, err := hex.DecodeString(req.PlainText)
	n, errLength := strconv.Atoi(req.PlainLength)
	if err != nil || errLength != nil || n < 1 || n > 1024 || len(plain) <= n {
		return nil, &failure{400, "KMS.2101", "Parameter error: plain_text or datakey_plain_length."}
	}
	dataKey, digest := plain[:n], plain[n:]
	if string(digest) != string(k.digest(dataKey)) {
		return nil, &failure{400, "KMS.2103", "Failed to verify the hash value of the DEK."}
	}
	h.saw(dataKey)
	return map[string]any{
		"key_id": k.id, "cipher_text": hex.EncodeToString(sealDataKey(k, dataKey, req.AAD)), "datakey_length": req.PlainLength,
	}, nil
}

func (h huawei) decryptDataKey(c *call, k *key, req huaweiRequest) (map[string]any, *failure) {
	if k.private != nil {
		return nil, errHuaweiUsage
	}
	blob, err := hex.DecodeString(req.CipherText)
	n, errLength := strconv.Atoi(req.CipherLength)
	if err != nil || errLength != nil || n < 1 || n > 1024 {
		return nil, errHuaweiCipher
	}
	dataKey, fail := openDataKey(k, blob, n, req.AAD)
	if w := h.elsewhere(Huawei, k.region, k.URI, blob); w != nil && len(w.DataKey) == n && req.AAD == "" {
		dataKey, fail = w.DataKey, nil
	}
	if fail != nil {
		return nil, fail
	}
	h.saw(dataKey)
	return map[string]any{
		"data_key": hex.EncodeToString(dataKey), "datakey_length": req.CipherLength, "datakey_dgst": hex.EncodeToString(k.digest(dataKey)),
	}, nil
}

func (h huawei) describe(c *call, k *key, _ huaweiRequest) (map[string]any, *failure) {
	info := map[string]any{
		"key_id": k.id, "domain_id": "emulator", "key_alias": k.Alias, "realm": k.region, "key_spec": k.Spec, "key_usage": "ENCRYPT_DECRYPT",
		"creation_date": "1767225600000", "scheduled_deletion_date": "", "key_type": "1", "origin": "kms", "key_rotation_enabled": "false", "default_key_flag": "0",
		"key_state": map[State]string{Enabled: "2", Disabled: "3", PendingDeletion: "4", PendingImport: "5"}[h.state(k)],
	}
	if k.Usage == SignVerify {
		info["key_usage"] = "SIGN_VERIFY"
	}
	if info["key_state"] == "4" {
		info["scheduled_deletion_date"] = strconv.FormatInt(c.now.AddDate(0, 0, 7).UnixMilli(), 10)
	}
	return map[string]any{"key_info": info}, nil
}

func (h huawei) publicKey(_ *call, k *key, _ huaweiRequest) (map[string]any, *failure) {
	if k.secret != nil {
		return nil, errHuaweiUsage
	}
	return map[string]any{"key_id": k.id, "public_key": k.publicPEM()}, nil
}
