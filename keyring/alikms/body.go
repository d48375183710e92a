package alikms

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// bodyTransport moves what tells of the credential from the URL, where the SDK puts it, into the body, where proxies and access logs do not show
// it. The signature is over the parameters wherever they stand.
type bodyTransport struct{ next http.RoundTripper }

// RoundTrip implements [http.RoundTripper].
func (t bodyTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	query, moved := r.URL.Query(), url.Values{}
	for _, name := range []string{"AccessKeyId", "SecurityToken", "Signature"} {
		if query.Has(name) {
			moved[name] = query[name]
			query.Del(name)
		}
	}
	if r.Method != http.MethodPost || len(moved) == 0 {
		return t.next.RoundTrip(r)
	}
	var body []byte
	if r.Body != nil {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		body = b
	}
	if len(body) > 0 {
		body = append(body, '&')
	}
	body = append(body, moved.Encode()...)
	r = r.Clone(r.Context())
	r.URL.RawQuery = query.Encode()
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Content-Length", strconv.Itoa(len(body)))
	r.ContentLength = int64(len(body))
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.GetBody = nil
	return t.next.RoundTrip(r)
}
