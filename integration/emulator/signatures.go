package emulator

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// window is how far a request's date may be from the region's clock. Alibaba Cloud documents it for one of its interfaces, Huawei Cloud for none.
const window = 15 * time.Minute

// Formats of dates on the wire.
const (
	alibabaTime = "2006-01-02T15:04:05Z"
	huaweiTime  = "20060102T150405Z"
)

func near(t, now time.Time) bool { return t.Sub(now).Abs() <= window }

// alibabaSignature signs the parameters of a call, those of the query and those of the body together.
func alibabaSignature(method string, params url.Values, secret string) (string, bool) {
	var newHash func() hash.Hash
	switch params.Get("SignatureMethod") {
	case "HMAC-SHA1":
		newHash = sha1.New
	case "HMAC-SHA256":
		newHash = sha256.New
	default:
		return "", false
	}
	var pairs []string
	for name, values := range params {
		if name != "Signature" {
			pairs = append(pairs, alibabaEscape(name)+"="+alibabaEscape(values[0]))
		}
	}
	slices.Sort(pairs)
	mac := hmac.New(newHash, []byte(secret+"&"))
	mac.Write([]byte(method + "&%2F&" + alibabaEscape(strings.Join(pairs, "&"))))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil)), true
}

// alibabaEscape differs from [url.QueryEscape] in three characters.
func alibabaEscape(s string) string {
	return strings.NewReplacer("+", "%20", "*", "%2A", "%7E", "~").Replace(url.QueryEscape(s))
}

// authenticateAlibaba returns the credential that signed a call.
func (e *Emulator) authenticateAlibaba(c *call, method string) (Credential, *failure) {
	p := c.params
	for _, name := range []string{"AccessKeyId", "Signature", "SignatureMethod", "SignatureNonce", "SignatureVersion", "Timestamp"} {
		if p.Get(name) == "" {
			return Credential{}, &failure{400, "IncompleteSignature", "The request signature does not conform to Aliyun standards: no " + name + "."}
		}
	}
	sent, err := time.Parse(alibabaTime, p.Get("Timestamp"))
	if err != nil || !near(sent, c.now) {
		return Credential{}, &failure{400, "IllegalTimestamp", "The input parameter Timestamp that is mandatory for processing this request is not supplied or expired."}
	}
	cred, ok := e.credential(Alibaba, p.Get("AccessKeyId"))
	if !ok {
		return cred, &failure{404, "InvalidAccessKeyId.NotFound", "Specified access key is not found."}
	}
	want, ok := alibabaSignature(method, p, cred.Secret)
	if !ok || !equal(want, p.Get("Signature")) {
		return cred, &failure{400, "SignatureDoesNotMatch", "Specified signature is not matched with our calculation."}
	}
	if !equal(cred.Token, p.Get("SecurityToken")) {
		return cred, &failure{400, "InvalidSecurityToken.MismatchWithAccessKey", "Specified SecurityToken mismatch with the AccessKey."}
	}
	if cred.expired(c.now) {
		return cred, &failure{400, "InvalidSecurityToken.Expired", "Specified SecurityToken is expired."}
	}
	if !e.fresh(cred.ID + " " + p.Get("SignatureNonce")) {
		return cred, &failure{400, "SignatureNonceUsed", "Specified signature nonce was used already."}
	}
	return cred, nil
}

// fresh remembers a nonce and reports whether it is new.
func (e *Emulator) fresh(nonce string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	used := e.nonces[nonce]
	e.nonces[nonce] = true
	return !used
}

// huaweiSignature signs a request. The host need not be signed.
func huaweiSignature(r *http.Request, body []byte, signed []string, secret string) string {
	segments := strings.Split(r.URL.Path, "/")
	for i, s := range segments {
		segments[i] = huaweiEscape(s)
	}
	path := strings.TrimSuffix(strings.Join(segments, "/"), "/") + "/"
	var pairs []string
	for name, values := range r.URL.Query() {
		for _, v := range values {
			pairs = append(pairs, huaweiEscape(name)+"="+huaweiEscape(v))
		}
	}
	slices.Sort(pairs)
	var headers strings.Builder
	for _, name := range signed {
		value := r.Header.Get(name)
		if name == "host" {
			value = r.Host
		}
		headers.WriteString(name + ":" + strings.TrimSpace(value) + "\n")
	}
	hashed := sha256.Sum256(body)
	request := sha256.Sum256([]byte(strings.Join([]string{r.Method, path, strings.Join(pairs, "&"), headers.String(),
		strings.Join(signed, ";"), hex.EncodeToString(hashed[:])}, "\n")))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte("SDK-HMAC-SHA256\n" + r.Header.Get("X-Sdk-Date") + "\n" + hex.EncodeToString(request[:])))
	return hex.EncodeToString(mac.Sum(nil))
}

// huaweiEscape leaves letters, digits and -_.~ as they are.
func huaweiEscape(s string) string {
	return strings.NewReplacer("+", "%20", "%7E", "~").Replace(url.QueryEscape(s))
}

// authenticateHuawei returns the credential that signed a request.
func (e *Emulator) authenticateHuawei(c *call, r *http.Request) (Credential, *failure) {
	refused := func(why string) *failure {
		return &failure{401, "APIGW.0301", "Incorrect IAM authentication information: " + why}
	}
	fields, ok := strings.CutPrefix(r.Header.Get("Authorization"), "SDK-HMAC-SHA256 ")
	if !ok {
		return Credential{}, refused("Authorization header is missing or of an unknown algorithm")
	}
	auth := map[string]string{}
	for field := range strings.SplitSeq(fields, ", ") {
		name, value, _ := strings.Cut(field, "=")
		auth[name] = value
	}
	signed := strings.Split(auth["SignedHeaders"], ";")
	if !slices.Contains(signed, "x-sdk-date") || !slices.IsSorted(signed) {
		return Credential{}, refused("x-sdk-date is not signed")
	}
	sent, err := time.Parse(huaweiTime, r.Header.Get("X-Sdk-Date"))
	if err != nil || !near(sent, c.now) {
		return Credential{}, refused("x-sdk-date is expired")
	}
	cred, ok := e.credential(Huawei, auth["Access"])
	if !ok {
		return cred, refused("access key is not found")
	}
	if !equal(huaweiSignature(r, c.body, signed, cred.Secret), auth["Signature"]) {
		return cred, refused("verify aksk signature fail")
	}
	if !equal(cred.Token, r.Header.Get("X-Security-Token")) || cred.expired(c.now) {
		return cred, refused("security token is invalid or expired")
	}
	return cred, nil
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
