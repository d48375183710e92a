package emulator

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// alibaba speaks Alibaba Cloud's KMS, version 2016-01-20, in its RPC style: parameters in the query or in the body.
type alibaba struct{ *Emulator }

const (
	versionLength   = 36 // of a key version ID at the start of a ciphertext
	alibabaNonce    = 12
	alibabaMaxPlain = 6 << 10
)

var (
	errAlibabaUsage    = &failure{409, "Rejected.UnsupportedOperation", "The key does not support this operation."}
	errAlibabaNotFound = &failure{404, "Forbidden.KeyNotFound", "The specified Key is not found."}
	errAlibabaCipher   = &failure{400, "InvalidParameter", "The specified parameter CiphertextBlob is not valid."}
)

func alibabaInvalid(name string) *failure {
	return &failure{400, "InvalidParameter", "The specified parameter " + name + " is not valid."}
}

func (a alibaba) parse(c *call, r *http.Request) {
	c.params = url.Values{}
	maps.Copy(c.params, r.URL.Query())
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		if form, err := url.ParseQuery(string(c.body)); err == nil {
			maps.Copy(c.params, form)
		}
	}
	c.operation = c.params.Get("Action")
	if c.region == "" {
		c.region = c.params.Get("RegionId")
	}
	if secretOperation(c.operation) {
		c.name = c.params.Get("SecretName")
		return
	}
	c.name = c.params.Get("KeyId")
	if c.operation == "Decrypt" {
		c.name = ""
		if blob, err := base64.StdEncoding.DecodeString(c.params.Get("CiphertextBlob")); err == nil && len(blob) > versionLength {
			c.name = string(blob[:versionLength])
			if w := a.elsewhere(Alibaba, c.region, "", blob); w != nil {
				c.name = a.key(w.CMK).id
			}
		}
	}
	c.key = a.find(Alibaba, c.region, "", c.name)
}

func (a alibaba) report(c *call, f failure) any {
	return map[string]any{"Code": f.code, "Message": f.message, "RequestId": c.id, "HostId": "kms." + c.region + ".aliyuncs.com", "HttpStatus": f.status}
}

func (a alibaba) answer(c *call, r *http.Request) (any, *failure) {
	cred, fail := a.authenticateAlibaba(c, r.Method)
	if fail != nil {
		return nil, fail
	}
	if c.params.Get("Version") != "2016-01-20" {
		return nil, alibabaInvalid("Version")
	}
	if region := c.params.Get("RegionId"); region != "" && region != c.region {
		return nil, &failure{404, "InvalidRegionId.NotFound", "The specified region is not this endpoint's."}
	}
	if c.operation == "ListKeys" {
		return a.listKeys(c, cred)
	}
	if secretOperation(c.operation) {
		return a.secretManager(c)
	}
	op := map[string]func(*call, *key) (map[string]any, *failure){
		"GenerateDataKey": a.generate, "GenerateDataKeyWithoutPlaintext": a.generate,
		"Encrypt": a.encrypt, "Decrypt": a.decrypt, "DescribeKey": a.describe, "GetPublicKey": a.publicKey,
		"AsymmetricEncrypt": a.asymmetricEncrypt, "AsymmetricDecrypt": a.asymmetricDecrypt,
		"AsymmetricSign": a.asymmetricSign, "AsymmetricVerify": a.asymmetricVerify,
	}[c.operation]
	if op == nil {
		return nil, &failure{404, "InvalidAction.NotFound", "Specified api is not found, please check your url and method."}
	}
	k := a.find(Alibaba, c.region, cred.Scope, c.name)
	if k == nil && c.operation == "Decrypt" && c.name == "" {
		return nil, errAlibabaCipher
	}
	if fail := a.usable(c, k); fail != nil {
		return nil, fail
	}
	if k.curve != nil && !forCurves(c.operation) {
		return nil, errAlibabaUsage
	}
	answer, fail := op(c, k)
	if fail != nil {
		return nil, fail
	}
	if c.params.Get("DryRun") == "true" {
		return nil, &failure{400, "DryRunOperationError", "The request would have succeeded, but the DryRun parameter is set."}
	}
	answer["RequestId"] = c.id
	if c.operation != "DescribeKey" {
		answer["KeyId"], answer["KeyVersionId"] = k.id, k.version
	}
	return answer, nil
}

// usable says why a CMK cannot be used, or described, now.
func (a alibaba) usable(c *call, k *key) *failure {
	if k == nil {
		return errAlibabaNotFound
	}
	switch s := a.state(k); {
	case s == Deleted:
		return errAlibabaNotFound
	case s == Denied:
		return &failure{403, "Forbidden.NoPermission", "This operation is forbidden by permission system."}
	case s == Enabled || c.operation == "DescribeKey":
		return nil
	case s == PendingDeletion:
		return &failure{409, "Rejected.PendingDeletion", "The request was rejected because the key is pending deletion."}
	case s == PendingImport:
		return &failure{409, "Rejected.PendingImport", "The request was rejected because the key is pending import."}
	default:
		return &failure{409, "Rejected.Disabled", "The request was rejected because the key is disabled."}
	}
}

// context returns the canonical form of the encryption context: it is compared as a map.
func (a alibaba) context(c *call) ([]byte, *failure) {
	text := c.params.Get("EncryptionContext")
	mode := a.contexts[Alibaba+"/"+c.region]
	if text == "" || mode == ContextIgnored {
		return nil, nil
	}
	var context map[string]string
	if mode == ContextRejected || len(text) > 8192 || json.Unmarshal([]byte(text), &context) != nil {
		return nil, alibabaInvalid("EncryptionContext")
	}
	canonical, err := json.Marshal(context) // sorts the names
	if err != nil {
		return nil, alibabaInvalid("EncryptionContext")
	}
	return canonical, nil
}

// seal wraps a plaintext, as the text that it is on the wire: version ID, nonce, ciphertext, tag.
func (a alibaba) seal(c *call, k *key, text string) (string, *failure) {
	if k.private != nil {
		return "", errAlibabaUsage
	}
	context, fail := a.context(c)
	if fail != nil {
		return "", fail
	}
	blob := append([]byte(k.version), make([]byte, alibabaNonce)...)
	nonce := blob[versionLength:]
	rand.Read(nonce)
	return base64.StdEncoding.EncodeToString(k.gcm(alibabaNonce).Seal(blob, nonce, []byte(text), context)), nil
}

func (a alibaba) generate(c *call, k *key) (map[string]any, *failure) {
	n := 32
	if text := c.params.Get("NumberOfBytes"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 1 || n > 1024 {
			return nil, alibabaInvalid("NumberOfBytes")
		}
	} else if spec := c.params.Get("KeySpec"); spec == "AES_128" {
		n = 16
	} else if spec != "" && spec != "AES_256" {
		return nil, alibabaInvalid("KeySpec")
	}
	dataKey := make([]byte, n)
	rand.Read(dataKey)
	a.saw(dataKey)
	text := base64.StdEncoding.EncodeToString(dataKey)
	blob, fail := a.seal(c, k, text)
	if fail != nil {
		return nil, fail
	}
	answer := map[string]any{"CiphertextBlob": blob}
	if c.operation == "GenerateDataKey" {
		answer["Plaintext"] = text
	}
	return answer, nil
}

func (a alibaba) encrypt(c *call, k *key) (map[string]any, *failure) {
	text := c.params.Get("Plaintext")
	plain, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(plain) == 0 || len(plain) > alibabaMaxPlain {
		return nil, alibabaInvalid("Plaintext")
	}
	a.saw(plain)
	blob, fail := a.seal(c, k, text)
	if fail != nil {
		return nil, fail
	}
	return map[string]any{"CiphertextBlob": blob}, nil
}

func (a alibaba) decrypt(c *call, k *key) (map[string]any, *failure) {
	blob, err := base64.StdEncoding.DecodeString(c.params.Get("CiphertextBlob"))
	if err != nil || k.private != nil || len(blob) < versionLength+alibabaNonce {
		return nil, errAlibabaCipher
	}
	context, fail := a.context(c)
	if fail != nil {
		return nil, fail
	}
	if w := a.elsewhere(Alibaba, c.region, k.URI, blob); w != nil {
		want, err := json.Marshal(w.Context)
		if err != nil || len(w.Context) > 0 && !bytes.Equal(want, context) || len(w.Context) == 0 && len(context) > 0 {
			return nil, errAlibabaCipher
		}
		a.saw(w.DataKey)
		return map[string]any{"Plaintext": base64.StdEncoding.EncodeToString(w.DataKey)}, nil
	}
	text, err := k.gcm(alibabaNonce).Open(nil, blob[versionLength:versionLength+alibabaNonce], blob[versionLength+alibabaNonce:], context)
	if err != nil {
		return nil, errAlibabaCipher
	}
	if plain, err := base64.StdEncoding.DecodeString(string(text)); err == nil { // another emulator may have sealed it
		a.saw(plain)
	}
	return map[string]any{"Plaintext": string(text)}, nil
}

func (a alibaba) describe(c *call, k *key) (map[string]any, *failure) {
	metadata := map[string]any{
		"KeyId": k.id, "Arn": k.URI, "KeySpec": k.Spec, "KeyUsage": "ENCRYPT/DECRYPT", "PrimaryKeyVersion": k.version,
		"CreationDate": "2026-01-01T00:00:00Z", "Creator": k.scope, "Origin": "Aliyun_KMS", "ProtectionLevel": "SOFTWARE", "DeleteDate": "",
	}
	switch {
	case k.secret != nil:
		metadata["KeySpec"] = "Aliyun_" + k.Spec
	case k.Spec == specSM2:
		metadata["KeySpec"] = "EC_SM2"
	}
	if k.Usage == SignVerify {
		metadata["KeyUsage"] = "SIGN/VERIFY"
	}
	metadata["KeyState"] = map[State]string{Enabled: "Enabled", Disabled: "Disabled", PendingDeletion: "PendingDeletion", PendingImport: "PendingImport"}[a.state(k)]
	if metadata["KeyState"] == "PendingDeletion" {
		metadata["DeleteDate"] = c.now.AddDate(0, 0, 7).UTC().Format(alibabaTime)
	}
	return map[string]any{"KeyMetadata": metadata}, nil
}

func (a alibaba) listKeys(c *call, cred Credential) (any, *failure) {
	page, size := 1, 10
	for name, into := range map[string]*int{"PageNumber": &page, "PageSize": &size} {
		if text := c.params.Get(name); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 || n > 100 {
				return nil, alibabaInvalid(name)
			}
			*into = n
		}
	}
	list := []map[string]any{}
	for _, k := range a.keys {
		if k.provider == Alibaba && k.region == c.region && (cred.Scope == "" || cred.Scope == k.scope) && a.state(k) != Deleted {
			list = append(list, map[string]any{"KeyId": k.id, "KeyArn": k.URI})
		}
	}
	from, to := min((page-1)*size, len(list)), min(page*size, len(list))
	return map[string]any{
		"Keys": map[string]any{"Key": list[from:to]}, "PageNumber": page, "PageSize": size, "TotalCount": len(list), "RequestId": c.id,
	}, nil
}
