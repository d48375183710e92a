package emulator

import (
	"encoding/base64"
	"regexp"
)

// secretOperation reports whether an operation is one of Alibaba Cloud's Secrets Manager, which shares the KMS's endpoint.
func secretOperation(operation string) bool {
	return operation == "GetSecretValue" || operation == "CreateSecret"
}

var (
	alibabaSecretName    = regexp.MustCompile(`^[A-Za-z0-9_/+=.@-]{1,64}$`)
	errAlibabaNoResource = &failure{404, "Forbidden.ResourceNotFound", "Resource not found."}
)

func (a alibaba) secretManager(c *call) (any, *failure) {
	if !alibabaSecretName.MatchString(c.name) {
		return nil, alibabaInvalid("SecretName")
	}
	k := secretKey{provider: Alibaba, region: c.region, name: c.name}
	if c.operation == "CreateSecret" {
		return a.newSecret(c, k)
	}
	id, before := c.params.Get("VersionId"), 0
	switch c.params.Get("VersionStage") {
	case "", "ACSCurrent":
	case "ACSPrevious":
		before = 1
	default:
		return nil, errAlibabaNoResource
	}
	state, v := a.secret(k, id, before)
	switch {
	case state == Deleted || v == nil:
		return nil, errAlibabaNoResource
	case state == Denied:
		return nil, &failure{403, "Forbidden.NoPermission", "This operation is forbidden by permission system."}
	case state == PendingDeletion: // the code is a guess
		return nil, &failure{409, "Rejected.PendingDeletion", "The request was rejected because the secret is pending deletion."}
	case state != Enabled:
		return nil, &failure{409, "Rejected.Disabled", "The request was rejected because the key of the secret is disabled."}
	}
	answer := map[string]any{
		"RequestId": c.id, "SecretName": c.name, "VersionId": v.id, "SecretDataType": "text", "SecretData": string(v.value), "SecretType": "Generic",
		"CreateTime": "2026-01-01T00:00:00Z", "VersionStages": map[string]any{"VersionStage": a.stages(k, v.id, "ACSCurrent", "ACSPrevious")},
	}
	if !v.text() {
		answer["SecretDataType"], answer["SecretData"] = "binary", base64.StdEncoding.EncodeToString(v.value)
	}
	return answer, nil
}

func (a alibaba) newSecret(c *call, k secretKey) (any, *failure) {
	v := version{c.params.Get("VersionId"), []byte(c.params.Get("SecretData"))}
	switch c.params.Get("SecretDataType") {
	case "", "text":
	case "binary":
		var err error
		if v.value, err = base64.StdEncoding.DecodeString(string(v.value)); err != nil {
			return nil, alibabaInvalid("SecretData")
		}
	default:
		return nil, alibabaInvalid("SecretDataType")
	}
	if v.id == "" {
		return nil, alibabaInvalid("VersionId")
	}
	if len(v.value) == 0 || len(v.value) > maxSecret(Alibaba) {
		return nil, alibabaInvalid("SecretData")
	}
	if name := c.params.Get("EncryptionKeyId"); name != "" {
		if fail := a.usable(c, a.find(Alibaba, c.region, "", name)); fail != nil {
			return nil, fail
		}
	}
	if !a.createSecret(k, v) {
		return nil, &failure{409, "Rejected.ResourceExist", "The resource already exists."}
	}
	return map[string]any{
		"RequestId": c.id, "SecretName": c.name, "VersionId": v.id, "SecretType": "Generic", "AutomaticRotation": "Disabled",
		"Arn": "acs:kms:" + c.region + ":1000000000000001:secret/" + c.name,
	}, nil
}
