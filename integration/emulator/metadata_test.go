package emulator

import (
	"testing"
	"time"
)

const (
	aliTokenPath = "/latest/api/token"
	aliRolePath  = "/latest/meta-data/ram/security-credentials/"
	hwTokenPath  = "/meta-data/latest/api/token"
	hwKeyPath    = "/openstack/latest/securitykey"
)

// TestMetadata gets a credential of each cloud from its metadata service, uses it, and finds it expired.
func TestMetadata(t *testing.T) {
	e := start(t, Options{Life: 30 * time.Minute, Role: "reader"})
	ali, hw := listen(t, e, Alibaba, hangzhou), listen(t, e, Huawei, beijing)

	status, token := do(t, "PUT", ali.URL+aliTokenPath, "", "X-aliyun-ecs-metadata-token-ttl-seconds", "21600")
	if status != 200 || token == "" {
		t.Fatalf("%d %s", status, token)
	}
	if status, role := do(t, "GET", ali.URL+aliRolePath, "", "X-aliyun-ecs-metadata-token", token); status != 200 || role != "reader" {
		t.Errorf("role: %d %s", status, role)
	}
	status, body := do(t, "GET", ali.URL+aliRolePath+"reader", "", "X-aliyun-ecs-metadata-token", token)
	var a struct{ Code, AccessKeyId, AccessKeySecret, SecurityToken, Expiration string }
	decode(t, body, &a)
	until, err := time.Parse(time.RFC3339, a.Expiration)
	if status != 200 || a.Code != "Success" || err != nil || time.Until(until) > 30*time.Minute {
		t.Errorf("%d %s", status, body)
	}
	aliClient := alibabaClient(t, ali, Credential{ID: a.AccessKeyId, Secret: a.AccessKeySecret, Token: a.SecurityToken})
	_, err = aliClient.DescribeKey(describeRequest(aliAES))
	must(t, err)

	status, token = do(t, "PUT", hw.URL+hwTokenPath, "", "X-Metadata-Token-Ttl-Seconds", "60")
	if status != 200 || token == "" {
		t.Fatalf("%d %s", status, token)
	}
	status, body = do(t, "GET", hw.URL+hwKeyPath, "", "X-Metadata-Token", token)
	var h struct {
		Credential struct {
			Access, Secret, Securitytoken string
			Expires                       time.Time `json:"expires_at"`
		}
	}
	decode(t, body, &h)
	if status != 200 || time.Until(h.Credential.Expires) > 30*time.Minute {
		t.Errorf("%d %s", status, body)
	}
	hwClient := huaweiClient(t, hw, Credential{ID: h.Credential.Access, Secret: h.Credential.Secret, Token: h.Credential.Securitytoken}, project)
	_, err = createDataKey(hwClient, hwAES, "")
	must(t, err)

	if status, _ := do(t, "POST", ali.URL+"/emulator/expire", ""); status != 200 {
		t.Errorf("expire: %d", status)
	}
	_, err = aliClient.DescribeKey(describeRequest(aliAES))
	wantAlibaba(t, err, 400, "InvalidSecurityToken.Expired")
	_, err = createDataKey(hwClient, hwAES, "")
	wantHuawei(t, err, 401, "APIGW.0301")

	if n, kms := e.Count("", metadataToken, metadataCredentials), e.Count(""); n != 5 || kms != 4 {
		t.Errorf("%d calls of the metadata services, %d of the KMS", n, kms)
	}
}

func TestMetadataRefuses(t *testing.T) {
	e := start(t, Options{Faults: []Fault{{Kind: Status, Status: 404, Provider: Alibaba, Operation: metadataToken}}})
	ali, hw := listen(t, e, Alibaba, hangzhou), listen(t, e, Huawei, beijing)
	_, token := do(t, "PUT", hw.URL+hwTokenPath, "", "X-Metadata-Token-Ttl-Seconds", "60")
	for _, test := range []struct {
		method, url string
		header      []string
		status      int
	}{
		{"PUT", ali.URL + aliTokenPath, []string{"X-aliyun-ecs-metadata-token-ttl-seconds", "60"}, 404}, // the fault
		{"GET", ali.URL + aliRolePath + "kmsfs", nil, 200},                                              // the first version needs no token
		{"GET", ali.URL + aliRolePath + "another", nil, 404},
		{"GET", ali.URL + aliRolePath, []string{"X-aliyun-ecs-metadata-token", token}, 401}, // of the other cloud
		{"POST", ali.URL + aliRolePath, nil, 405},
		{"GET", ali.URL + "/latest/meta-data/", nil, 404},
		{"GET", hw.URL + hwTokenPath, nil, 405},
		{"PUT", hw.URL + hwTokenPath, nil, 400},
		{"PUT", hw.URL + hwTokenPath, []string{"X-Metadata-Token-Ttl-Seconds", "21601"}, 400},
		{"GET", hw.URL + hwKeyPath, []string{"X-Metadata-Token", "guess"}, 401},
		{"GET", ali.URL + hwKeyPath, nil, 404},
		{"GET", hw.URL + aliRolePath, nil, 404},
	} {
		if status, body := do(t, test.method, test.url, "", test.header...); status != test.status {
			t.Errorf("%s %s: %d %s, want %d", test.method, test.url, status, body, test.status)
		}
	}
}
