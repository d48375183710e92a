package emulator

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	alibabacred "github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	alibabakms "github.com/aliyun/alibaba-cloud-sdk-go/services/kms"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/auth/basic"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/config"
	huaweikms "github.com/huaweicloud/huaweicloud-sdk-go-v3/services/kms/v2"
)

// The CMKs of the tests, one of each kind in each cloud, and one in another region.
const (
	hangzhou = "cn-hangzhou"
	beijing  = "cn-north-4"
	account  = "1000000000000001"
	project  = "0000000000000000000000000000cafe"

	aliAES    = "acs:kms:cn-hangzhou:1000000000000001:key/key-aes"
	aliSM4    = "acs:kms:cn-hangzhou:1000000000000001:key/key-sm4"
	aliRSA    = "acs:kms:cn-hangzhou:1000000000000001:key/key-rsa"
	aliSign   = "acs:kms:cn-hangzhou:1000000000000001:key/key-sign"
	aliFar    = "acs:kms:ap-southeast-1:1000000000000001:key/key-far"
	aliOthers = "acs:kms:cn-hangzhou:2000000000000002:key/key-others"

	hwAES    = "huawei:kms:cn-north-4:0000000000000000000000000000cafe:key/11111111-1111-4111-8111-111111111111"
	hwSM4    = "huawei:kms:cn-north-4:0000000000000000000000000000cafe:key/22222222-2222-4222-8222-222222222222"
	hwRSA    = "huawei:kms:cn-north-4:0000000000000000000000000000cafe:key/33333333-3333-4333-8333-333333333333"
	hwSign   = "huawei:kms:cn-north-4:0000000000000000000000000000cafe:key/44444444-4444-4444-8444-444444444444"
	hwFar    = "huawei:kms:ap-southeast-3:0000000000000000000000000000beef:key/55555555-5555-4555-8555-555555555555"
	hwOthers = "huawei:kms:cn-north-4:0000000000000000000000000000dead:key/66666666-6666-4666-8666-666666666666"
)

func testCMKs() []CMK {
	return []CMK{
		{URI: aliAES, Alias: "main"}, {URI: aliSM4, Spec: "SM4"}, {URI: aliRSA, Spec: "RSA_2048"}, {URI: aliSign, Spec: "RSA_2048", Usage: SignVerify},
		{URI: aliFar}, {URI: aliOthers},
		{URI: hwAES, Alias: "main"}, {URI: hwSM4, Spec: "SM4"}, {URI: hwRSA, Spec: "RSA_2048"}, {URI: hwSign, Spec: "RSA_2048", Usage: SignVerify},
		{URI: hwFar}, {URI: hwOthers},
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func keyID(uri string) string { return uri[strings.LastIndex(uri, "/")+1:] }

// start returns an emulator of the test CMKs that is closed at the end of the test. Its static credentials are for the first account and project.
func start(t *testing.T, o Options) *Emulator {
	t.Helper()
	if o.CMKs == nil {
		o.CMKs = testCMKs()
	}
	if o.Credentials == nil {
		o.Credentials = []Credential{
			{Provider: Alibaba, Scope: account, ID: "LTAItest", Secret: "alibaba secret/+~"},
			{Provider: Huawei, Scope: project, ID: "HPUAtest", Secret: "huawei secret/+~"},
		}
	}
	e, err := New(o)
	must(t, err)
	t.Cleanup(func() { must(t, e.Close()) })
	return e
}

func listen(t *testing.T, e *Emulator, provider, region string) *Endpoint {
	t.Helper()
	p, err := e.Listen(provider, region, "127.0.0.1:0")
	must(t, err)
	return p
}

// transport returns a transport that no proxy setting reaches and that opens a connection for each request.
func transport(t *testing.T) *http.Transport {
	tr := &http.Transport{DisableKeepAlives: true} // no request meets the end of a connection that was idle
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// alibabaClient returns a client of the real SDK.
func alibabaClient(t *testing.T, p *Endpoint, c Credential) *alibabakms.Client {
	t.Helper()
	cfg := sdk.NewConfig().WithScheme("HTTP")
	cfg.Transport = transport(t)
	client, err := alibabakms.NewClientWithOptions(p.region, cfg, alibabacred.NewStsTokenCredential(c.ID, c.Secret, c.Token))
	must(t, err)
	client.Domain = strings.TrimPrefix(p.URL, "http://")
	return client
}

// huaweiClient returns a client of the real SDK for a project.
func huaweiClient(t *testing.T, p *Endpoint, c Credential, project string) *huaweikms.KmsClient {
	t.Helper()
	auth, err := basic.NewCredentialsBuilder().WithAk(c.ID).WithSk(c.Secret).WithSecurityToken(c.Token).WithProjectId(project).SafeBuild()
	must(t, err)
	cfg := config.DefaultHttpConfig().WithUserAgent("kmsfs").WithHttpRoundTripper(transport(t))
	client, err := huaweikms.KmsClientBuilder().WithEndpoint(p.URL).WithCredential(auth).WithHttpConfig(cfg).SafeBuild()
	must(t, err)
	return huaweikms.NewKmsClient(client)
}

// do sends a plain request and returns the status and the body.
func do(t *testing.T, method, url, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	must(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := transport(t).RoundTrip(req)
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(b)
}

func decode(t *testing.T, body string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(body), into); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, o := range map[string]Options{
		"uri":         {CMKs: []CMK{{URI: "aws:kms:x:y:key/z"}}},
		"huawei id":   {CMKs: []CMK{{URI: "huawei:kms:cn-north-4:p:key/not-a-uuid"}}},
		"spec":        {CMKs: []CMK{{URI: aliAES, Spec: "DES"}}},
		"state":       {CMKs: []CMK{{URI: aliAES, State: "lost"}}},
		"usage":       {CMKs: []CMK{{URI: aliAES, Usage: SignVerify}}},
		"twice":       {CMKs: []CMK{{URI: aliAES}, {URI: aliAES}}},
		"fault":       {Faults: []Fault{{Kind: "bad luck"}}},
		"no status":   {Faults: []Fault{{Kind: Status}}},
		"no field":    {Faults: []Fault{{Kind: DropField}}},
		"refuse op":   {Faults: []Fault{{Kind: Refuse, Operation: "Decrypt"}}},
		"fault's cmk": {Faults: []Fault{{Kind: Hang, CMK: aliAES}}},
	} {
		if e, err := New(o); err == nil {
			t.Errorf("%s: accepted", name)
			e.Close()
		}
	}
}

// TestSeed opens with one emulator what another of the same seed has sealed, and not with one of another seed.
func TestSeed(t *testing.T) {
	for _, spec := range []string{"AES_256", "SM4"} {
		cmk := CMK{URI: hwAES, Spec: spec}
		k, err := newKey("one", cmk)
		must(t, err)
		same, err := newKey("one", cmk)
		must(t, err)
		other, err := newKey("two", cmk)
		must(t, err)
		dataKey := bytes.Repeat([]byte{7}, 32)
		blob := sealDataKey(k, dataKey, "context")
		if got, fail := openDataKey(same, blob, 32, "context"); fail != nil || !bytes.Equal(got, dataKey) {
			t.Errorf("%s: the same seed: %x, %v", spec, got, fail)
		}
		if _, fail := openDataKey(other, blob, 32, "context"); fail == nil {
			t.Errorf("%s: another seed opens it", spec)
		}
	}
	k, same, other := rsaKey(derive("one", "", 32), 2048), rsaKey(derive("one", "", 32), 2048), rsaKey(derive("two", "", 32), 2048)
	if !k.Equal(same) || k.Equal(other) {
		t.Error("RSA keys do not follow from the seed")
	}
}

func TestRSASizes(t *testing.T) {
	for _, bits := range []int{2048, 3072, 4096} {
		if k := rsaKey(derive("sizes", "", 32), bits); k.N.BitLen() != bits || k.Validate() != nil {
			t.Errorf("%d: %d bits, %v", bits, k.N.BitLen(), k.Validate())
		}
	}
}

// TestBlobLayout finds the fields of a wrapped data key where public samples have them.
func TestBlobLayout(t *testing.T) {
	k, err := newKey("seed", CMK{URI: hwAES})
	must(t, err)
	for n, aad := range map[int]string{16: "", 32: "", 64: "", 33: "x", 1: "x"} {
		blob := sealDataKey(k, make([]byte, n), aad)
		if aad == "" && len(blob) != 124+n {
			t.Errorf("%d: %d bytes", n, len(blob))
		}
		if id := string(blob[len(blob)-72:][:36]); id != k.id {
			t.Errorf("%d: key ID %q", n, id)
		}
		if _, fail := openDataKey(k, blob, n, aad); fail != nil {
			t.Errorf("%d: %v", n, fail)
		}
		for cut := range blob {
			if _, fail := openDataKey(k, blob[:cut], n, aad); fail == nil {
				t.Errorf("%d: cut to %d, it opens", n, cut)
			}
		}
		for i := range blob {
			blob[i] ^= 1
			if _, fail := openDataKey(k, blob, n, aad); fail == nil {
				t.Errorf("%d: byte %d changed, it opens", n, i)
			}
			blob[i] ^= 1
		}
	}
}
