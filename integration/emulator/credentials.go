package emulator

import (
	"crypto/rand"
	"encoding/hex"
	"time"
)

// A Credential may sign calls.
type Credential struct {
	Provider string
	Scope    string // the account or project whose CMKs it may use; empty is all
	ID       string // the access key
	Secret   string
	Token    string    // of a temporary one
	Expires  time.Time // zero is never
}

// environ returns the variables in which the cloud's own tools look for a credential.
func (c Credential) environ() []string {
	names := [3]string{"ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN"}
	if c.Provider == Huawei {
		names = [3]string{"HUAWEICLOUD_SDK_AK", "HUAWEICLOUD_SDK_SK", "HUAWEICLOUD_SDK_SECURITY_TOKEN"}
	}
	env := []string{names[0] + "=" + c.ID, names[1] + "=" + c.Secret}
	if c.Token != "" {
		env = append(env, names[2]+"="+c.Token)
	}
	return env
}

// derivedCredential returns the static credential that follows from the seed.
func (e *Emulator) derivedCredential(provider string) Credential {
	prefix := "LTAI"
	if provider == Huawei {
		prefix = "HPUA"
	}
	return Credential{
		Provider: provider,
		ID:       prefix + hex.EncodeToString(derive(e.seed, "access key of "+provider, 8)),
		Secret:   hex.EncodeToString(derive(e.seed, "secret key of "+provider, 20)),
	}
}

// Credential returns the first credential of a cloud.
func (e *Emulator) Credential(provider string) Credential {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.credentials {
		if c.Provider == provider {
			return c
		}
	}
	return Credential{}
}

// IssueCredential returns a new temporary credential, as the metadata services do.
func (e *Emulator) IssueCredential(provider string) Credential {
	prefix := "STS."
	if provider == Huawei {
		prefix = "HST3"
	}
	c := Credential{Provider: provider, ID: prefix + rand.Text()[:16], Secret: rand.Text(), Token: rand.Text() + rand.Text(), Expires: e.now().Add(e.life)}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.credentials = append(e.credentials, c)
	return c
}

// ExpireCredentials ends the life of every temporary credential of a cloud; an empty provider is both clouds.
func (e *Emulator) ExpireCredentials(provider string) {
	past := e.now().Add(-time.Second)
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, c := range e.credentials {
		if c.Token != "" && (provider == "" || c.Provider == provider) && c.Expires.After(past) {
			e.credentials[i].Expires = past
		}
	}
}

// credential returns the credential of that access key.
func (e *Emulator) credential(provider, id string) (Credential, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.credentials {
		if c.Provider == provider && c.ID == id {
			return c, true
		}
	}
	return Credential{}, false
}

// expired reports whether the credential is too old at a time.
func (c Credential) expired(now time.Time) bool { return !c.Expires.IsZero() && !now.Before(c.Expires) }
