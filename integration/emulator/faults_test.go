package emulator

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/services/kms"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/sdkerr"
)

// A pair is a client of each cloud, with what it can open.
type pair struct {
	e               *Emulator
	alibaba, huawei func() error // unwraps
	ali             *kms.DecryptResponse
	hwKey, hwDigest string
	hwFields        int // present in the answer
}

// newPair returns clients whose results are kept for a look.
func newPair(t *testing.T) *pair {
	t.Helper()
	e := start(t, Options{})
	p := &pair{e: e}
	aliClient := alibabaClient(t, listen(t, e, Alibaba, hangzhou), e.Credential(Alibaba))
	hwClient := huaweiClient(t, listen(t, e, Huawei, beijing), e.Credential(Huawei), project)
	encrypt := kms.CreateEncryptRequest()
	encrypt.KeyId, encrypt.Plaintext = aliAES, b64(bytes.Repeat([]byte{1}, 32))
	wrapped, err := aliClient.Encrypt(encrypt)
	must(t, err)
	dk, err := createDataKey(hwClient, hwAES, "context")
	must(t, err)
	p.alibaba = func() error {
		decrypt := kms.CreateDecryptRequest()
		decrypt.CiphertextBlob = wrapped.CiphertextBlob
		var err error
		p.ali, err = aliClient.Decrypt(decrypt)
		return err
	}
	p.huawei = func() error {
		p.hwKey, p.hwDigest, p.hwFields = "", "", 0
		opened, err := decryptDataKey(hwClient, hwAES, *dk.CipherText, "32", "context")
		if err != nil {
			return err
		}
		if opened.DataKey != nil {
			p.hwKey = *opened.DataKey
			p.hwFields++
		}
		if opened.DatakeyDgst != nil {
			p.hwDigest = *opened.DatakeyDgst
			p.hwFields++
		}
		return nil
	}
	must(t, p.alibaba())
	must(t, p.huawei())
	return p
}

func TestFaultErrors(t *testing.T) {
	p := newPair(t)
	must(t, p.e.SetFaults(Fault{Kind: Throttle}))
	wantAlibaba(t, p.alibaba(), 429, "Rejected.Throttling")
	wantHuawei(t, p.huawei(), 429, "APIGW.0308")
	must(t, p.e.SetFaults(Fault{Kind: Throttle, Provider: Alibaba, Status: 400, Code: "Throttling.User"}))
	wantAlibaba(t, p.alibaba(), 400, "Throttling.User")
	must(t, p.huawei())
	must(t, p.e.SetFaults(Fault{Kind: Status, Status: 503, Code: "ServiceUnavailableTemporary", Message: "later"}))
	wantAlibaba(t, p.alibaba(), 503, "ServiceUnavailableTemporary")
	wantHuawei(t, p.huawei(), 503, "ServiceUnavailableTemporary")
	must(t, p.e.SetFaults(Fault{Kind: Status, Status: 502, Body: "<html>bad gateway</html>"}))
	wantAlibaba(t, p.alibaba(), 502, "")
	wantHuawei(t, p.huawei(), 502, "")
	must(t, p.e.SetFaults(Fault{Kind: ClockSkew, Skew: -16 * time.Minute}))
	wantAlibaba(t, p.alibaba(), 400, "IllegalTimestamp")
	wantHuawei(t, p.huawei(), 401, "APIGW.0301")
	must(t, p.e.SetFaults(Fault{Kind: ClockSkew, Skew: 14 * time.Minute}))
	must(t, p.alibaba())
	must(t, p.huawei())
}

func TestFaultNetwork(t *testing.T) {
	p := newPair(t)
	for kind, want := range map[FaultKind]error{Reset: syscall.ECONNRESET, Refuse: syscall.ECONNREFUSED} {
		must(t, p.e.SetFaults(Fault{Kind: kind}))
		for name, unwrap := range map[string]func() error{Alibaba: p.alibaba, Huawei: p.huawei} {
			if err := unwrap(); !errors.Is(err, want) {
				t.Errorf("%s, %s: %v", kind, name, err)
			}
		}
	}
	must(t, p.e.SetFaults()) // the same addresses accept again
	must(t, p.alibaba())
	must(t, p.huawei())
	must(t, p.e.SetFaults(Fault{Kind: Truncate}))
	if err := p.alibaba(); err == nil || !strings.Contains(err.Error(), io.ErrUnexpectedEOF.Error()) {
		t.Errorf("truncate, alibaba: %v", err)
	}
	if err := p.huawei(); err == nil {
		t.Error("truncate, huawei: no error")
	}
}

// TestFaultRefuseRegion kills one region: the other goes on.
func TestFaultRefuseRegion(t *testing.T) {
	e := start(t, Options{Faults: []Fault{{Kind: Refuse, Provider: Alibaba, Region: hangzhou}}})
	dead, alive := listen(t, e, Alibaba, hangzhou), listen(t, e, Alibaba, "ap-southeast-1")
	r, err := http.NewRequest("GET", dead.URL+"/emulator/calls", nil)
	must(t, err)
	if _, err := transport(t).RoundTrip(r); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the dead region: %v", err)
	}
	if status, body := do(t, "DELETE", alive.URL+"/emulator/faults", ""); status != 200 {
		t.Errorf("the other one: %d %s", status, body)
	}
	if status, body := do(t, "GET", dead.URL+"/emulator/calls", ""); status != 200 {
		t.Errorf("alive again: %d %s", status, body)
	}
}

// TestFaultHang waits until the emulator has the call and then gives up.
func TestFaultHang(t *testing.T) {
	e := start(t, Options{Faults: []Fault{{Kind: Hang}}})
	p := listen(t, e, Huawei, beijing)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	send := func(ctx context.Context) chan error {
		ended := make(chan error, 1)
		r, err := http.NewRequestWithContext(ctx, "POST", p.URL+"/v1.0/p/kms/describe-key", strings.NewReader("{}"))
		must(t, err)
		tr := transport(t)
		go func() {
			_, err := tr.RoundTrip(r)
			ended <- err
		}()
		return ended
	}
	poll := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); e.Count(Huawei, "describe-key") < n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the call does not arrive")
			}
		}
	}
	ended := send(ctx)
	poll(1)
	select {
	case err := <-ended:
		t.Errorf("the call has ended: %v", err)
	default:
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	ended = send(context.Background())
	poll(2)
	must(t, e.Close()) // ends what hangs
	if err := <-ended; err == nil {
		t.Error("a call that hangs is answered at the end")
	}
}

func TestFaultDelay(t *testing.T) {
	p := newPair(t)
	const delay = 50 * time.Millisecond
	must(t, p.e.SetFaults(Fault{Kind: Slow, Delay: delay}))
	begun := time.Now()
	must(t, p.huawei())
	if d := time.Since(begun); d < delay {
		t.Errorf("answered after %v", d)
	}
}

func TestFaultAnswers(t *testing.T) {
	p := newPair(t)
	right, digest := p.hwKey, p.hwDigest
	set := func(f Fault) {
		t.Helper()
		must(t, p.e.SetFaults(f))
		must(t, p.alibaba())
		must(t, p.huawei())
	}
	set(Fault{Kind: Empty})
	if p.ali.Plaintext != "" || p.ali.KeyId != "" || p.hwFields != 0 {
		t.Errorf("empty: %+v, %d fields", p.ali, p.hwFields)
	}
	set(Fault{Kind: DropField, Field: "datakey_dgst"})
	if p.hwKey != right || p.hwFields != 1 {
		t.Errorf("drop-field: %d fields", p.hwFields)
	}
	set(Fault{Kind: WrongKeyID})
	if p.ali.KeyId == keyID(aliAES) || p.ali.KeyId == "" || len(unb64(t, p.ali.Plaintext)) != 32 {
		t.Errorf("wrong-key-id: %+v", p.ali)
	}
	set(Fault{Kind: WrongDigest})
	if p.hwKey != right || p.hwDigest == digest || len(p.hwDigest) != 64 {
		t.Errorf("wrong-digest: %s", p.hwDigest)
	}
	set(Fault{Kind: WrongLength})
	if n := len(unb64(t, p.ali.Plaintext)); n != 31 || len(p.hwKey) != 62 {
		t.Errorf("wrong-length: %d, %d", n, len(p.hwKey))
	}
	set(Fault{Kind: WrongPlaintext})
	plain, err := hex.DecodeString(p.hwKey)
	must(t, err)
	if p.hwKey == right || p.hwDigest != hex.EncodeToString(p.e.key(hwAES).digest(plain)) || bytes.Equal(unb64(t, p.ali.Plaintext), bytes.Repeat([]byte{1}, 32)) {
		t.Errorf("wrong-plaintext: %s, %s, %+v", p.hwKey, p.hwDigest, p.ali)
	}
}

// TestFaultRedirect follows as the SDKs do: what they take along is on record.
func TestFaultRedirect(t *testing.T) {
	p := newPair(t)
	must(t, p.e.SetFaults(Fault{Kind: Redirect}))
	p.e.ResetCalls()
	must(t, p.alibaba()) // the SDK takes {} for an answer
	if p.ali.Plaintext != "" {
		t.Errorf("%+v", p.ali)
	}
	requests := p.e.Requests()
	if len(requests) != 2 || requests[0].Status != 302 || requests[1].URL != redirected || !strings.Contains(requests[1].Header.Get("Referer"), "CiphertextBlob=") {
		t.Errorf("%+v", requests)
	}
	if n := p.e.Count(""); n != 1 {
		t.Errorf("%d calls", n)
	}
}

// TestFaultMatch lets faults choose their calls.
func TestFaultMatch(t *testing.T) {
	p := newPair(t)
	fails := func(want ...bool) {
		t.Helper()
		for i, w := range want {
			if err := p.huawei(); (err != nil) != w {
				t.Errorf("call %d: %v", i, err)
			}
		}
	}
	broken := Fault{Kind: Status, Status: 500}
	for _, change := range []func(*Fault){
		func(f *Fault) { f.Provider = Alibaba }, func(f *Fault) { f.Region = hangzhou }, func(f *Fault) { f.CMK = hwSM4 }, func(f *Fault) { f.Operation = "create-datakey" },
	} {
		f := broken
		change(&f)
		must(t, p.e.SetFaults(f))
		fails(false)
	}
	match := Fault{Kind: Status, Status: 500, Provider: Huawei, Region: beijing, CMK: hwAES, Operation: "decrypt-datakey", Skip: 1, Count: 2}
	must(t, p.e.SetFaults(match))
	fails(false, true, true, false, false)
	must(t, p.e.SetFaults(match, Fault{Kind: Status, Status: 404, Code: "second"})) // the second one happens where the first does not
	var server *sdkerr.ServiceResponseError
	if err := p.huawei(); !errors.As(err, &server) || server.ErrorCode != "second" {
		t.Error(err)
	}
	must(t, p.e.SetFaults(Fault{Kind: Status, Status: 500, CMK: aliAES})) // found through the ciphertext
	wantAlibaba(t, p.alibaba(), 500, "")
}

func TestReadFaults(t *testing.T) {
	want := []Fault{{Provider: Huawei, Kind: Hang, Delay: 1500 * time.Millisecond, Skip: 2}, {Kind: ClockSkew, Skew: -time.Hour}}
	got, err := ReadFaults(strings.NewReader(`[{"provider":"huawei","fault":"hang","delay":"1.5s","skip":2},{"fault":"skew","skew":"-1h"}]`))
	must(t, err)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	b, err := json.Marshal(got)
	must(t, err)
	if again, err := ReadFaults(bytes.NewReader(b)); err != nil || !reflect.DeepEqual(again, want) {
		t.Errorf("%s: %v, %+v", b, err, again)
	}
	for _, bad := range []string{``, `{}`, `[{"fault":"hang","delay":"soon"}]`, `[{"fault":"hang","dealy":"1s"}]`, `[] []`} {
		if _, err := ReadFaults(strings.NewReader(bad)); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}
