package emulator

import (
	"crypto/rand"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// metadata speaks the metadata services of instances of both clouds: a session token, and credentials that expire.
type metadata struct{ *Emulator }

// The operations, for counts and faults.
const (
	metadataToken       = "MetadataToken"
	metadataCredentials = "MetadataCredentials"
)

const maxTokenLife = 21600 // seconds, both clouds

func (m metadata) parse(c *call, r *http.Request) {
	c.operation = metadataCredentials
	if strings.HasSuffix(r.URL.Path, "/api/token") {
		c.operation = metadataToken
	}
}

func (m metadata) report(_ *call, f failure) any { return f.message + "\n" }

func (m metadata) answer(c *call, r *http.Request) (any, *failure) {
	tokenHeader, lifeHeader := "X-Aliyun-Ecs-Metadata-Token", "X-Aliyun-Ecs-Metadata-Token-Ttl-Seconds"
	if c.provider == Huawei {
		tokenHeader, lifeHeader = "X-Metadata-Token", "X-Metadata-Token-Ttl-Seconds"
	}
	if c.operation == metadataToken {
		if r.Method != http.MethodPut {
			return nil, &failure{405, "", "method not allowed"}
		}
		life, err := strconv.Atoi(r.Header.Get(lifeHeader))
		if err != nil || life < 1 || life > maxTokenLife {
			return nil, &failure{400, "", "bad " + lifeHeader}
		}
		return m.newToken(c, time.Duration(life)*time.Second), nil
	}
	if r.Method != http.MethodGet {
		return nil, &failure{405, "", "method not allowed"}
	}
	if token := r.Header.Get(tokenHeader); token != "" && !m.tokenValid(c, token) { // without one it is the service's first version
		return nil, &failure{401, "", "bad " + tokenHeader}
	}
	role, listed := strings.CutPrefix(r.URL.Path, "/latest/meta-data/ram/security-credentials/")
	switch {
	case listed && role == "":
		return m.role, nil
	case listed && role == m.role:
		cred := m.IssueCredential(Alibaba)
		return map[string]any{
			"Code": "Success", "AccessKeyId": cred.ID, "AccessKeySecret": cred.Secret, "SecurityToken": cred.Token,
			"Expiration": cred.Expires.UTC().Format(alibabaTime), "LastUpdated": c.now.UTC().Format(alibabaTime),
		}, nil
	case r.URL.Path == "/openstack/latest/securitykey":
		cred := m.IssueCredential(Huawei)
		return map[string]any{"credential": map[string]any{
			"access": cred.ID, "secret": cred.Secret, "securitytoken": cred.Token, "expires_at": cred.Expires.UTC().Format("2006-01-02T15:04:05.000000Z"),
		}}, nil
	}
	return nil, &failure{404, "", "not found"}
}

func (m metadata) newToken(c *call, life time.Duration) string {
	token := rand.Text()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[c.provider+" "+token] = c.now.Add(life)
	return token
}

func (m metadata) tokenValid(c *call, token string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return c.now.Before(m.tokens[c.provider+" "+token])
}
