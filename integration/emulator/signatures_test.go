package emulator

import (
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestAlibabaRefuses takes a request that is in order and spoils it in one way after another.
func TestAlibabaRefuses(t *testing.T) {
	now := time.Date(2026, 11, 27, 8, 0, 0, 0, time.UTC)
	e := start(t, Options{Now: func() time.Time { return now }})
	p := listen(t, e, Alibaba, hangzhou)
	temporary := e.IssueCredential(Alibaba)
	nonce := 0
	send := func(c Credential, before, after func(url.Values)) (int, string) {
		nonce++
		q := url.Values{"Action": {"DescribeKey"}, "Version": {"2016-01-20"}, "RegionId": {hangzhou}, "KeyId": {aliAES}, "AccessKeyId": {c.ID},
			"SignatureMethod": {"HMAC-SHA1"}, "SignatureType": {""}, "SignatureVersion": {"1.0"}, "SignatureNonce": {itoa(nonce)}, "Timestamp": {now.Format(alibabaTime)}}
		if c.Token != "" {
			q.Set("SecurityToken", c.Token)
		}
		before(q)
		signature, _ := alibabaSignature("POST", q, c.Secret)
		q.Set("Signature", signature)
		after(q)
		status, body := do(t, "POST", p.URL+"/?"+q.Encode(), "")
		var reply struct{ Code, RequestId string }
		decode(t, body, &reply)
		if reply.RequestId == "" {
			t.Errorf("no request ID: %s", body)
		}
		return status, reply.Code
	}
	nothing := func(url.Values) {}
	set := func(name, value string) func(url.Values) { return func(q url.Values) { q.Set(name, value) } }
	static := e.Credential(Alibaba)
	for _, test := range []struct {
		name          string
		c             Credential
		before, after func(url.Values)
		status        int
		code          string
	}{
		{"in order", static, nothing, nothing, 200, ""},
		{"SHA-256", static, set("SignatureMethod", "HMAC-SHA256"), nothing, 200, ""},
		{"temporary", temporary, nothing, nothing, 200, ""},
		{"almost too early", static, set("Timestamp", now.Add(-window).Format(alibabaTime)), nothing, 200, ""},
		{"too early", static, set("Timestamp", now.Add(-window-time.Second).Format(alibabaTime)), nothing, 400, "IllegalTimestamp"},
		{"too late", static, set("Timestamp", now.Add(window+time.Second).Format(alibabaTime)), nothing, 400, "IllegalTimestamp"},
		{"no date", static, set("Timestamp", ""), nothing, 400, "IncompleteSignature"},
		{"changed", static, nothing, set("KeyId", aliSM4), 400, "SignatureDoesNotMatch"},
		{"added", static, nothing, set("DryRun", "true"), 400, "SignatureDoesNotMatch"},
		{"another secret", Credential{ID: static.ID, Secret: "guess"}, nothing, nothing, 400, "SignatureDoesNotMatch"},
		{"unknown method", static, nothing, set("SignatureMethod", "NONE"), 400, "SignatureDoesNotMatch"},
		{"unknown key", Credential{ID: "LTAInobody", Secret: "guess"}, nothing, nothing, 404, "InvalidAccessKeyId.NotFound"},
		{"no token", Credential{ID: temporary.ID, Secret: temporary.Secret}, nothing, nothing, 400, "InvalidSecurityToken.MismatchWithAccessKey"},
		{"used nonce", static, set("SignatureNonce", "1"), nothing, 400, "SignatureNonceUsed"},
		{"unknown action", static, set("Action", "Nothing"), nothing, 404, "InvalidAction.NotFound"},
		{"another version", static, set("Version", "2015-01-01"), nothing, 400, "InvalidParameter"},
		{"another region", static, set("RegionId", "cn-beijing"), nothing, 404, "InvalidRegionId.NotFound"},
	} {
		if status, code := send(test.c, test.before, test.after); status != test.status || code != test.code {
			t.Errorf("%s: %d %s, want %d %s", test.name, status, code, test.status, test.code)
		}
	}
	e.ExpireCredentials("")
	if status, code := send(temporary, nothing, nothing); status != 400 || code != "InvalidSecurityToken.Expired" {
		t.Errorf("expired: %d %s", status, code)
	}
	if status, code := send(static, nothing, nothing); status != 200 {
		t.Errorf("a static credential has expired: %d %s", status, code)
	}
}

// TestHuaweiRefuses is TestAlibabaRefuses for Huawei Cloud.
func TestHuaweiRefuses(t *testing.T) {
	now := time.Date(2026, 11, 27, 8, 0, 0, 0, time.UTC)
	var later atomic.Int64 // a time.Duration
	e := start(t, Options{Now: func() time.Time { return now.Add(time.Duration(later.Load())) }})
	p := listen(t, e, Huawei, beijing)
	temporary := e.IssueCredential(Huawei)
	body := `{"key_id":"` + keyID(hwAES) + `"}` + "\n"
	send := func(c Credential, path, body string, before, after func(*http.Request)) (int, string) {
		r, err := http.NewRequest("POST", p.URL+path, nil)
		must(t, err)
		r.Header.Set("X-Sdk-Date", now.Add(time.Duration(later.Load())).Format(huaweiTime))
		r.Header.Set("X-Project-Id", project)
		signed := []string{"x-project-id", "x-sdk-date"}
		if c.Token != "" {
			r.Header.Set("X-Security-Token", c.Token)
			signed = append(signed, "x-security-token")
		}
		before(r)
		r.Header.Set("Authorization", "SDK-HMAC-SHA256 Access="+c.ID+", SignedHeaders="+strings.Join(signed, ";")+", Signature="+huaweiSignature(r, []byte(body), signed, c.Secret))
		after(r)
		var header []string
		for name := range r.Header {
			header = append(header, name, r.Header.Get(name))
		}
		status, answer := do(t, "POST", r.URL.String(), body, header...)
		var reply struct {
			Flat   string `json:"error_code"`
			Nested struct {
				Code string `json:"error_code"`
			} `json:"error"`
		}
		decode(t, answer, &reply)
		return status, reply.Flat + reply.Nested.Code
	}
	nothing := func(*http.Request) {}
	set := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	static, path := e.Credential(Huawei), "/v1.0/"+project+"/kms/describe-key"
	for _, test := range []struct {
		name          string
		c             Credential
		path, body    string
		before, after func(*http.Request)
		status        int
		code          string
	}{
		{"in order", static, path, body, nothing, nothing, 200, ""},
		{"temporary", temporary, path, body, nothing, nothing, 200, ""},
		{"almost too late", static, path, body, set("X-Sdk-Date", now.Add(window).Format(huaweiTime)), nothing, 200, ""},
		{"too late", static, path, body, set("X-Sdk-Date", now.Add(window+time.Second).Format(huaweiTime)), nothing, 401, "APIGW.0301"},
		{"too early", static, path, body, set("X-Sdk-Date", now.Add(-window-time.Second).Format(huaweiTime)), nothing, 401, "APIGW.0301"},
		{"another date", static, path, body, nothing, set("X-Sdk-Date", now.Add(time.Second).Format(huaweiTime)), 401, "APIGW.0301"},
		{"another project", static, path, body, nothing, set("X-Project-Id", "other"), 401, "APIGW.0301"},
		{"unsigned", static, path, body, nothing, set("Authorization", ""), 401, "APIGW.0301"},
		{"another secret", Credential{ID: static.ID, Secret: "guess"}, path, body, nothing, nothing, 401, "APIGW.0301"},
		{"unknown key", Credential{ID: "HPUAnobody", Secret: "guess"}, path, body, nothing, nothing, 401, "APIGW.0301"},
		{"no token", Credential{ID: temporary.ID, Secret: temporary.Secret}, path, body, nothing, nothing, 401, "APIGW.0301"},
		{"foreign project", static, "/v1.0/other/kms/describe-key", body, nothing, nothing, 403, "APIGW.0302"},
		{"unknown operation", static, "/v1.0/" + project + "/kms/nothing", body, nothing, nothing, 404, "APIGW.0101"},
		{"no JSON", static, path, "{", nothing, nothing, 400, "KMS.0202"},
		{"a number", static, "/v1.0/" + project + "/kms/create-datakey", `{"key_id":"` + keyID(hwAES) + `","datakey_length":256}`, nothing, nothing, 400, "KMS.0202"},
		{"no CMK", static, path, "{}", nothing, nothing, 400, "KMS.0204"},
	} {
		if status, code := send(test.c, test.path, test.body, test.before, test.after); status != test.status || code != test.code {
			t.Errorf("%s: %d %s, want %d %s", test.name, status, code, test.status, test.code)
		}
	}
	if status, code := do(t, "POST", p.URL+"/?Action=DescribeKey", ""); status != 404 {
		t.Errorf("Alibaba Cloud's protocol: %d %s", status, code)
	}
	later.Store(int64(2 * time.Hour))
	if status, code := send(temporary, path, body, nothing, nothing); status != 401 || code != "APIGW.0301" {
		t.Errorf("expired: %d %s", status, code)
	}
}
