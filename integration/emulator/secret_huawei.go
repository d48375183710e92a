package emulator

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
)

// csms speaks Huawei Cloud's secret manager: /v1/PROJECT/secrets, at the endpoint of the KMS.
type csms struct{ huawei }

var (
	csmsName        = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	errCSMSInvalid  = &failure{400, "CSMS.0002", "The value of parameter is invalid."}
	errCSMSNotFound = &failure{400, "CSMS.0106", "The secret name not found int the db."}
)

// path returns the parts of the path after /v1/.
func (s csms) path(r *http.Request) []string {
	return strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/"), "/")
}

func (s csms) parse(c *call, r *http.Request) {
	path := s.path(r)
	switch {
	case r.Method == http.MethodGet && len(path) == 5 && path[1] == "secrets" && path[3] == "versions":
		c.operation, c.name = "ShowSecretVersion", path[2]
	case r.Method == http.MethodPost && len(path) == 2 && path[1] == "secrets":
		var named struct{ Name string }
		json.Unmarshal(c.body, &named) // answer reports the error
		c.operation, c.name = "CreateSecret", named.Name
	}
}

func (s csms) report(_ *call, f failure) any {
	return map[string]any{"error_code": f.code, "error_msg": f.message}
}

func (s csms) answer(c *call, r *http.Request) (any, *failure) {
	cred, fail := s.authenticateHuawei(c, r)
	if fail != nil {
		return nil, fail
	}
	path := s.path(r)
	if c.operation == "" {
		return nil, &failure{404, "APIGW.0101", "The API does not exist or has not been published in the environment"}
	}
	project := path[0]
	if sent := r.Header.Get("X-Project-Id"); sent != "" && sent != project || cred.Scope != "" && cred.Scope != project {
		return nil, &failure{403, "APIGW.0302", "The project is not one of the access key's."}
	}
	if !csmsName.MatchString(c.name) {
		return nil, errCSMSInvalid
	}
	k := secretKey{Huawei, c.region, project, c.name}
	if c.operation == "CreateSecret" {
		return s.newSecret(c, k)
	}
	id := path[4]
	if id == "latest" {
		id = ""
	}
	state, v := s.secret(k, id, 0)
	switch {
	case state == Deleted || v == nil:
		return nil, errCSMSNotFound
	case state == Denied:
		return nil, &failure{403, "APIGW.0302", "The access key may not read the secret."}
	case state != Enabled:
		return nil, &failure{400, "CSMS.0103", "The secret is in the scheduled deletion state."}
	}
	answer := map[string]any{"version_metadata": map[string]any{
		"id": v.id, "secret_name": c.name, "create_time": 1767225600000, "kms_key_id": "", "version_stages": s.stages(k, v.id, "SYSCURRENT", "SYSPREVIOUS"),
	}}
	if v.text() {
		answer["secret_string"] = string(v.value)
	} else {
		answer["secret_binary"] = base64.StdEncoding.EncodeToString(v.value)
	}
	return map[string]any{"version": answer}, nil
}

func (s csms) newSecret(c *call, k secretKey) (any, *failure) {
	var req struct {
		Name   string  `json:"name"`
		KeyID  string  `json:"kms_key_id"`
		Text   *string `json:"secret_string"`
		Binary *string `json:"secret_binary"`
	}
	if err := json.Unmarshal(c.body, &req); err != nil {
		return nil, &failure{400, "CSMS.0004", "The requested body format is wrong."}
	}
	v := version{id: "v1"}
	switch {
	case req.Text != nil && req.Binary == nil:
		v.value = []byte(*req.Text)
	case req.Binary != nil && req.Text == nil:
		var err error
		if v.value, err = base64.StdEncoding.DecodeString(*req.Binary); err != nil {
			return nil, errCSMSInvalid
		}
	default:
		return nil, errCSMSInvalid
	}
	if len(v.value) == 0 || len(v.value) > maxSecret(Huawei) {
		return nil, errCSMSInvalid
	}
	if req.KeyID != "" {
		if fail := s.usable(c, s.find(Huawei, c.region, k.project, req.KeyID)); fail != nil {
			return nil, fail
		}
	}
	if !s.createSecret(k, v) {
		return nil, errCSMSInvalid // the code is a guess
	}
	return map[string]any{"secret": map[string]any{"id": requestID(), "name": c.name, "state": "ENABLED", "kms_key_id": req.KeyID, "create_time": 1767225600000}}, nil
}

// renameSecret makes an answer, of either cloud, one about another secret.
func renameSecret(answer map[string]any) {
	const another = "another-secret"
	if _, ok := answer["SecretName"]; ok {
		answer["SecretName"] = another
	}
	if v, ok := answer["version"].(map[string]any); ok {
		v["version_metadata"].(map[string]any)["secret_name"] = another
	}
	if s, ok := answer["secret"].(map[string]any); ok {
		s["name"] = another
	}
}
