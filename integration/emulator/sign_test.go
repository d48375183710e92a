package emulator

import (
	"crypto/sha256"
	"testing"

	"github.com/aliyun/alibaba-cloud-sdk-go/services/kms"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/services/kms/v2/model"
)

// TestAlibabaCurves signs and verifies with keys on curves, which do nothing else, and by no other algorithm.
func TestAlibabaCurves(t *testing.T) {
	const p256, sm2 = "acs:kms:cn-hangzhou:1000000000000001:key/key-p256", "acs:kms:cn-hangzhou:1000000000000001:key/key-sm2"
	e := start(t, Options{CMKs: []CMK{{URI: p256, Spec: "EC_P256"}, {URI: sm2, Spec: "SM2"}}})
	client := alibabaClient(t, listen(t, e, Alibaba, hangzhou), e.Credential(Alibaba))
	digest := sha256.Sum256([]byte("a manifest"))
	for uri, c := range map[string]struct{ spec, algorithm, other string }{p256: {"EC_P256", "ECDSA_SHA_256", "SM2DSA"}, sm2: {"EC_SM2", "SM2DSA", "RSA_PSS_SHA_256"}} {
		described, err := client.DescribeKey(describeRequest(uri))
		must(t, err)
		if m := described.KeyMetadata; m.KeySpec != c.spec || m.KeyUsage != "SIGN/VERIFY" || m.PrimaryKeyVersion == "" {
			t.Errorf("%s: %+v", uri, m)
		}
		version := described.KeyMetadata.PrimaryKeyVersion
		sign := kms.CreateAsymmetricSignRequest()
		sign.KeyId, sign.KeyVersionId, sign.Algorithm, sign.Digest = uri, version, c.algorithm, b64(digest[:])
		signed, err := client.AsymmetricSign(sign)
		must(t, err)
		verify := kms.CreateAsymmetricVerifyRequest()
		verify.KeyId, verify.KeyVersionId, verify.Algorithm, verify.Digest, verify.Value = uri, version, c.algorithm, b64(digest[:]), signed.Value
		for _, want := range []bool{true, false} {
			verified, err := client.AsymmetricVerify(verify)
			must(t, err)
			if verified.Value != want {
				t.Errorf("%s: verified: %v, want %v", uri, verified.Value, want)
			}
			verify.Digest = b64(make([]byte, 32))
		}
		sign.Algorithm = c.other
		_, err = client.AsymmetricSign(sign)
		wantAlibaba(t, err, 400, "InvalidParameter")
		sign.Algorithm, sign.Digest = c.algorithm, b64(digest[:31])
		_, err = client.AsymmetricSign(sign)
		wantAlibaba(t, err, 400, "InvalidParameter")
		generate := kms.CreateGenerateDataKeyRequest()
		generate.KeyId = uri
		_, err = client.GenerateDataKey(generate)
		wantAlibaba(t, err, 409, "Rejected.UnsupportedOperation")
	}
}

// TestHuaweiCurves is TestAlibabaCurves for the other cloud.
func TestHuaweiCurves(t *testing.T) {
	const p256, p384, sm2 = "huawei:kms:cn-north-4:" + project + ":key/00000000-0000-4000-8000-000000000256",
		"huawei:kms:cn-north-4:" + project + ":key/00000000-0000-4000-8000-000000000384", "huawei:kms:cn-north-4:" + project + ":key/00000000-0000-4000-8000-000000000002"
	e := start(t, Options{CMKs: []CMK{{URI: p256, Spec: "EC_P256"}, {URI: p384, Spec: "EC_P384"}, {URI: sm2, Spec: "SM2"}}})
	client := huaweiClient(t, listen(t, e, Huawei, beijing), e.Credential(Huawei), project)
	for uri, c := range map[string]struct {
		size             int
		algorithm, other string
	}{p256: {32, "ECDSA_SHA_256", "ECDSA_SHA_384"}, p384: {48, "ECDSA_SHA_384", "SM2DSA_SM3"}, sm2: {32, "SM2DSA_SM3", "RSASSA_PSS_SHA_256"}} {
		digest := make([]byte, c.size)
		digest[0] = 1
		sign := &model.SignRequestBody{KeyId: keyID(uri), Message: b64(digest), MessageType: ptr(model.GetSignRequestBodyMessageTypeEnum().DIGEST)}
		must(t, sign.SigningAlgorithm.UnmarshalJSON([]byte(`"`+c.algorithm+`"`)))
		signed, err := client.Sign(&model.SignRequest{Body: sign})
		must(t, err)
		for first, want := range map[byte]string{1: "true", 2: "false"} {
			digest[0] = first
			verify := &model.VerifyRequestBody{KeyId: keyID(uri), Message: b64(digest), Signature: *signed.Signature}
			must(t, verify.SigningAlgorithm.UnmarshalJSON([]byte(`"`+c.algorithm+`"`)))
			verified, err := client.ValidateSignature(&model.ValidateSignatureRequest{Body: verify})
			must(t, err)
			if *verified.SignatureValid != want {
				t.Errorf("%s: %s, want %s", uri, *verified.SignatureValid, want)
			}
		}
		must(t, sign.SigningAlgorithm.UnmarshalJSON([]byte(`"`+c.other+`"`)))
		_, err = client.Sign(&model.SignRequest{Body: sign})
		wantHuawei(t, err, 400, "KMS.0205")
		_, err = createDataKey(client, uri, "")
		wantHuawei(t, err, 400, "KMS.0205")
	}
}

// TestCurveUsage refuses to encrypt with keys on curves.
func TestCurveUsage(t *testing.T) {
	for _, spec := range []string{"EC_P256", "EC_P384", "SM2"} {
		if _, err := New(Options{CMKs: []CMK{{URI: aliAES, Spec: spec, Usage: EncryptDecrypt}}}); err == nil {
			t.Errorf("%s encrypts", spec)
		}
	}
}
