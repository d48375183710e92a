package emulator

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"github.com/aliyun/alibaba-cloud-sdk-go/services/kms"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/auth/basic"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/config"
	csmsclient "github.com/huaweicloud/huaweicloud-sdk-go-v3/services/csms/v1"
	csmsmodel "github.com/huaweicloud/huaweicloud-sdk-go-v3/services/csms/v1/model"
)

func secretClient(t *testing.T, p *Endpoint, c Credential, project string) *csmsclient.CsmsClient {
	t.Helper()
	auth, err := basic.NewCredentialsBuilder().WithAk(c.ID).WithSk(c.Secret).WithProjectId(project).SafeBuild()
	must(t, err)
	cfg := config.DefaultHttpConfig().WithUserAgent("kmsfs").WithHttpRoundTripper(transport(t))
	client, err := csmsclient.CsmsClientBuilder().WithEndpoint(p.URL).WithCredential(auth).WithHttpConfig(cfg).SafeBuild()
	must(t, err)
	return csmsclient.NewCsmsClient(client)
}

func TestHuaweiSecrets(t *testing.T) {
	e := start(t, Options{})
	p := listen(t, e, Huawei, beijing)
	client := secretClient(t, p, e.Credential(Huawei), project)
	show := func(name, version string) (*csmsmodel.Version, error) {
		a, err := client.ShowSecretVersion(&csmsmodel.ShowSecretVersionRequest{SecretName: name, VersionId: version})
		if err != nil {
			return nil, err
		}
		return a.Version, nil
	}
	create := func(b csmsmodel.CreateSecretRequestBody) error {
		_, err := client.CreateSecret(&csmsmodel.CreateSecretRequest{Body: &b})
		return err
	}
	must(t, create(csmsmodel.CreateSecretRequestBody{Name: "db", SecretString: ptr("first & <value>"), KmsKeyId: ptr(keyID(hwAES))}))
	must(t, create(csmsmodel.CreateSecretRequestBody{Name: "binary", SecretBinary: ptr(b64([]byte{0xff, 1}))}))
	if id := e.PutSecret(Huawei, beijing, project, "db", []byte("the second value")); id != "v2" {
		t.Errorf("version %s", id)
	}
	for version, want := range map[string][2]string{"latest": {"the second value", "SYSCURRENT"}, "v2": {"the second value", "SYSCURRENT"}, "v1": {"first & <value>", "SYSPREVIOUS"}} {
		v, err := show("db", version)
		must(t, err)
		if *v.SecretString != want[0] || !slices.Equal(*v.VersionMetadata.VersionStages, []string{want[1]}) || *v.VersionMetadata.SecretName != "db" {
			t.Errorf("%s: %+v", version, v)
		}
	}
	if v, err := show("binary", "v1"); err != nil || v.SecretString != nil || *v.SecretBinary != b64([]byte{0xff, 1}) {
		t.Errorf("%+v, %v", v, err)
	}
	for name, b := range map[string]csmsmodel.CreateSecretRequestBody{
		"taken": {Name: "db", SecretString: ptr("x")}, "no name": {SecretString: ptr("x")}, "odd name": {Name: "a b", SecretString: ptr("x")}, "no value": {Name: "new"},
		"two values": {Name: "new", SecretString: ptr("x"), SecretBinary: ptr("AA==")}, "too long": {Name: "new", SecretString: ptr(strings.Repeat("x", 32<<10+1))},
		"no Base64": {Name: "new", SecretBinary: ptr("*")},
	} {
		t.Run(name, func(t *testing.T) { wantHuawei(t, create(b), 400, "CSMS.0002") })
	}
	wantHuawei(t, create(csmsmodel.CreateSecretRequestBody{Name: "new", SecretString: ptr("x"), KmsKeyId: ptr(keyID(hwFar))}), 404, "KMS.0207")
	for _, missing := range [][2]string{{"none", "latest"}, {"db", "v3"}} {
		_, err := show(missing[0], missing[1])
		wantHuawei(t, err, 400, "CSMS.0106")
	}
	for state, code := range map[State]string{Disabled: "CSMS.0103", PendingDeletion: "CSMS.0103", Deleted: "CSMS.0106", Denied: "APIGW.0302"} {
		must(t, e.SetSecretState(Huawei, beijing, project, "db", state))
		_, err := show("db", "latest")
		status := 400
		if state == Denied {
			status = 403
		}
		wantHuawei(t, err, status, code)
	}
	// Another project, and another secret key.
	_, err := secretClient(t, p, e.Credential(Huawei), "0000000000000000000000000000dead").ShowSecretVersion(&csmsmodel.ShowSecretVersionRequest{SecretName: "db", VersionId: "v1"})
	wantHuawei(t, err, 403, "APIGW.0302")
	_, err = secretClient(t, p, Credential{ID: "HPUAtest", Secret: "wrong"}, project).ShowSecretVersion(&csmsmodel.ShowSecretVersionRequest{SecretName: "db", VersionId: "v1"})
	wantHuawei(t, err, 401, "APIGW.0301")
	for _, want := range []string{"first & <value>", "the second value", "\xff\x01"} {
		if !slices.Contains(e.Plaintexts(), want) {
			t.Errorf("%q is not on record", want)
		}
	}
	if e.Count(Huawei, "CreateSecret") != 10 {
		t.Errorf("%+v", e.Calls())
	}
}

func TestAlibabaSecrets(t *testing.T) {
	e := start(t, Options{})
	p := listen(t, e, Alibaba, hangzhou)
	client := alibabaClient(t, p, e.Credential(Alibaba))
	get := func(name, version, stage string) (*kms.GetSecretValueResponse, error) {
		r := kms.CreateGetSecretValueRequest()
		r.SecretName, r.VersionId, r.VersionStage = name, version, stage
		return client.GetSecretValue(r)
	}
	create := func(name, version, kind, data, key string) error {
		r := kms.CreateCreateSecretRequest()
		r.SecretName, r.VersionId, r.SecretDataType, r.EncryptionKeyId = name, version, kind, key
		r.FormParams["SecretData"] = data
		_, err := client.CreateSecret(r)
		return err
	}
	must(t, create("app/db", "v1", "text", `{"user":"u","password":"a long password"}`, keyID(aliAES)))
	must(t, create("binary", "first", "binary", b64([]byte{0xff, 1}), ""))
	e.PutSecret(Alibaba, hangzhou, "", "app/db", []byte("second"))
	for _, want := range [][4]string{
		{"", "", "second", "ACSCurrent"}, {"", "ACSCurrent", "second", "ACSCurrent"}, {"", "ACSPrevious", `{"user":"u","password":"a long password"}`, "ACSPrevious"},
		{"v1", "", `{"user":"u","password":"a long password"}`, "ACSPrevious"}, {"v2", "", "second", "ACSCurrent"},
	} {
		a, err := get("app/db", want[0], want[1])
		must(t, err)
		if a.SecretData != want[2] || a.SecretDataType != "text" || !slices.Equal(a.VersionStages.VersionStage, []string{want[3]}) || a.SecretName != "app/db" {
			t.Errorf("%q: %+v", want, a)
		}
	}
	if a, err := get("binary", "", ""); err != nil || a.SecretDataType != "binary" || a.SecretData != b64([]byte{0xff, 1}) {
		t.Errorf("%+v, %v", a, err)
	}
	wantAlibaba(t, create("app/db", "v1", "text", "x", ""), 409, "Rejected.ResourceExist")
	wantAlibaba(t, create("new", "v1", "text", "x", "nobody"), 404, "Forbidden.KeyNotFound")
	for _, bad := range [][4]string{{"a b", "v1", "text", "x"}, {"new", "", "text", "x"}, {"new", "v1", "json", "x"}, {"new", "v1", "text", ""}, {"new", "v1", "binary", "*"}, {"new", "v1", "text", strings.Repeat("x", 30<<10+1)}} {
		wantAlibaba(t, create(bad[0], bad[1], bad[2], bad[3], ""), 400, "InvalidParameter")
	}
	for _, missing := range [][3]string{{"none", "", ""}, {"app/db", "v3", ""}, {"app/db", "", "ACSPending"}, {"binary", "", "ACSPrevious"}} {
		_, err := get(missing[0], missing[1], missing[2])
		wantAlibaba(t, err, 404, "Forbidden.ResourceNotFound")
	}
	for state, want := range map[State]string{Disabled: "409 Rejected.Disabled", PendingDeletion: "409 Rejected.PendingDeletion", Deleted: "404 Forbidden.ResourceNotFound", Denied: "403 Forbidden.NoPermission"} {
		must(t, e.SetSecretState(Alibaba, hangzhou, "", "app/db", state))
		_, err := get("app/db", "", "")
		status := map[string]int{"409": 409, "404": 404, "403": 403}[want[:3]]
		wantAlibaba(t, err, status, want[4:])
	}
	if !slices.Contains(e.Plaintexts(), base64.StdEncoding.EncodeToString([]byte("a long password"))) {
		t.Error("the field of a secret is not on record")
	}
	if err := e.SetSecretState(Alibaba, hangzhou, "", "nobody", Disabled); err == nil {
		t.Error("there is no such secret")
	}
}
