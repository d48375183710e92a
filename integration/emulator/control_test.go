package emulator

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestControl does over HTTP what the methods do.
func TestControl(t *testing.T) {
	p := newPair(t)
	server := httptest.NewServer(p.e.Handler("", ""))
	defer server.Close()
	p.e.ResetCalls()
	must(t, p.huawei())
	must(t, p.huawei())
	must(t, p.alibaba())
	must(t, p.e.SetState(hwAES, Disabled))
	wantHuawei(t, p.huawei(), 400, "KMS.0209")

	want := []Count{
		{Provider: Alibaba, Region: hangzhou, CMK: aliAES, Operation: "Decrypt", Calls: 1},
		{Provider: Huawei, Region: beijing, CMK: hwAES, Operation: "decrypt-datakey", Calls: 3, Failed: 1},
	}
	var counts []Count
	_, body := do(t, "GET", server.URL+"/emulator/calls", "")
	decode(t, body, &counts)
	if !reflect.DeepEqual(counts, want) || p.e.Count("") != 4 || p.e.Count(Huawei, "decrypt-datakey") != 3 {
		t.Errorf("%+v", counts)
	}
	var requests []Request
	_, body = do(t, "GET", server.URL+"/emulator/requests", "")
	decode(t, body, &requests)
	if len(requests) != 4 || requests[3].Status != 400 || !strings.Contains(requests[2].URL, "CiphertextBlob=") || requests[0].Header.Get("X-Project-Id") != project {
		t.Errorf("%+v", requests)
	}
	if kept := p.e.Requests(); !strings.Contains(kept[0].Body, "additional_authenticated_data") {
		t.Errorf("the body is not kept: %+v", kept[0])
	}

	post := func(method, path, body string, want int) {
		t.Helper()
		if status, answer := do(t, method, server.URL+"/emulator/"+path, body); status != want {
			t.Errorf("%s %s %s: %d %s", method, path, body, status, answer)
		}
	}
	post("POST", "cmks", `{"cmk":"`+hwAES+`","state":"enabled"}`, 200)
	must(t, p.huawei())
	post("POST", "cmks", `{"cmk":"`+hwAES+`","state":"lost"}`, 400)
	post("POST", "cmks", `{"cmk":"huawei:kms:x:y:key/z","state":"enabled"}`, 400)
	var cmks []CMK
	_, body = do(t, "GET", server.URL+"/emulator/cmks", "")
	decode(t, body, &cmks)
	if len(cmks) != len(testCMKs()) || cmks[0].State != Enabled {
		t.Errorf("%+v", cmks)
	}
	post("PUT", "faults", `[{"fault":"throttle","provider":"huawei"}]`, 200)
	wantHuawei(t, p.huawei(), 429, "APIGW.0308")
	post("POST", "faults", `{"fault":"status","status":500}`, 200)
	wantHuawei(t, p.huawei(), 500, "")
	var faults []Fault
	_, body = do(t, "GET", server.URL+"/emulator/faults", "")
	decode(t, body, &faults)
	if len(faults) != 2 || faults[0].Status != 500 {
		t.Errorf("%+v", faults)
	}
	post("PUT", "faults", `[{"fault":"bad luck"}]`, 400)
	post("DELETE", "faults", "", 200)
	must(t, p.huawei())
	post("DELETE", "calls", "", 200)
	if n := p.e.Count(""); n != 0 || len(p.e.Requests()) != 0 {
		t.Errorf("%d calls", n)
	}
	post("GET", "nothing", "", 404)
}

// TestHandler lets one handler serve both clouds and all regions.
func TestHandler(t *testing.T) {
	e := start(t, Options{Credentials: []Credential{{Provider: Alibaba, ID: "a", Secret: "s"}, {Provider: Huawei, ID: "h", Secret: "s"}}})
	server := httptest.NewServer(e.Handler("", ""))
	defer server.Close()
	p := &Endpoint{URL: server.URL, region: "ap-southeast-1"}
	for uri, project := range map[string]string{hwAES: project, hwFar: "0000000000000000000000000000beef"} {
		_, err := createDataKey(huaweiClient(t, p, e.Credential(Huawei), project), uri, "")
		must(t, err)
	}
	_, err := alibabaClient(t, p, e.Credential(Alibaba)).DescribeKey(describeRequest(aliFar))
	must(t, err)
	_, err = alibabaClient(t, p, e.Credential(Alibaba)).DescribeKey(describeRequest(aliAES)) // the request names a region
	wantAlibaba(t, err, 404, "Forbidden.KeyNotFound")
}

// TestMany calls from many goroutines while the script changes.
func TestMany(t *testing.T) {
	e := start(t, Options{})
	ali, hw := listen(t, e, Alibaba, hangzhou), listen(t, e, Huawei, beijing)
	const callers, calls = 20, 5
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			tr := transport(t)
			for range calls {
				for _, url := range []string{ali.URL + "/?Action=DescribeKey&KeyId=" + keyID(aliAES), hw.URL + "/v1.0/p/kms/describe-key"} {
					req, err := http.NewRequest("POST", url, strings.NewReader("{}"))
					if err != nil {
						t.Error(err)
						return
					}
					resp, err := tr.RoundTrip(req)
					if err != nil {
						t.Error(err)
						return
					}
					resp.Body.Close()
				}
			}
		})
	}
	for range calls {
		for _, s := range []State{Disabled, Enabled} {
			must(t, e.SetState(aliAES, s))
			must(t, e.SetFaults(Fault{Kind: Throttle, Count: 1}))
			e.CMKs()
			e.Calls()
			e.Requests()
		}
	}
	wg.Wait()
	if n := e.Count(""); n != 2*callers*calls {
		t.Errorf("%d calls", n)
	}
}

// TestTLS serves over TLS, and resets connections there as well.
func TestTLS(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	defer server.Close()
	e := start(t, Options{TLS: &tls.Config{Certificates: server.TLS.Certificates}})
	p := listen(t, e, Huawei, beijing)
	get := func() (*http.Response, error) {
		r, err := http.NewRequest("PUT", p.URL+hwTokenPath, nil)
		must(t, err)
		tr := server.Client().Transport.(*http.Transport).Clone()
		tr.DisableKeepAlives = true
		return tr.RoundTrip(r)
	}
	skew := time.Hour
	must(t, e.SetFaults(Fault{Kind: ClockSkew, Skew: skew}))
	resp, err := get()
	must(t, err)
	resp.Body.Close()
	if date, err := http.ParseTime(resp.Header.Get("Date")); err != nil || time.Until(date) < skew/2 || resp.StatusCode != 400 {
		t.Errorf("%d, date %v: the region's clock is an hour ahead", resp.StatusCode, date)
	}
	must(t, e.SetFaults(Fault{Kind: Reset}))
	if resp, err := get(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, %v", resp, err)
	}
}

func TestListenRefuses(t *testing.T) {
	e := start(t, Options{})
	for _, address := range []string{":0", "0.0.0.0:0", "127.0.0.1", "nowhere"} {
		if p, err := e.Listen(Huawei, beijing, address); err == nil {
			t.Errorf("listens on %s", p.URL)
		}
	}
	must(t, e.Close())
	if _, err := e.Listen(Huawei, beijing, "127.0.0.1:0"); err == nil {
		t.Error("listens after Close")
	}
}
