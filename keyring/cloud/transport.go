package cloud

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// maxAnswer bounds the body of an answer, in bytes. Real ones are below 8 KiB.
const maxAnswer = 256 << 10

// Faults of an answer, before any SDK sees it.
var (
	errRedirect = errors.New("the answer is a redirect")
	errTooLong  = fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	errStray    = errors.New("internal error: call to another host than the endpoint")
)

// NewTransport returns a transport for calls to KMSs: TLS 1.2 or later, and a proxy of the environment only for TLS, which it
// cannot read. With roots nil, the system's authorities are trusted.
func NewTransport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy: func(r *http.Request) (*url.URL, error) {
			if r.URL.Scheme != "https" {
				return nil, nil
			}
			return http.ProxyFromEnvironment(r)
		},
		DialContext:            (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:    5 * time.Second,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
	}
}

// exchange is the transport of one call: it gives the SDK, which knows no context, the one of the call, lets it reach only the
// endpoint, and hands it whole answers only.
type exchange struct {
	ctx      context.Context
	next     http.RoundTripper
	endpoint *url.URL

	status int           // of the last answer
	skew   time.Duration // of the last answer
	fault  error         // why there was no answer to hand on
}

func (x *exchange) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := x.roundTrip(r)
	x.fault = err
	return resp, err
}

func (x *exchange) roundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != x.endpoint.Scheme || r.URL.Host != x.endpoint.Host {
		return nil, errStray
	}
	x.status, x.skew = 0, 0
	resp, err := x.next.RoundTrip(r.WithContext(x.ctx))
	if err != nil {
		if isCertificate(err) {
			return nil, &certificateError{err}
		}
		return nil, err
	}
	defer resp.Body.Close()
	x.status = resp.StatusCode
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		x.skew = time.Since(date).Truncate(time.Second)
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		return nil, errRedirect
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the answer: %w", err)
	case len(body) > maxAnswer:
		return nil, errTooLong
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

func isCertificate(err error) bool {
	return errors.As(err, new(*tls.CertificateVerificationError)) || errors.As(err, new(x509.UnknownAuthorityError)) ||
		errors.As(err, new(x509.HostnameError)) || errors.As(err, new(x509.CertificateInvalidError)) ||
		errors.As(err, new(tls.RecordHeaderError))
}
