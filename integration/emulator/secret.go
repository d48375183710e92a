package emulator

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"
)

// A secret is one that a secret manager holds.
type secret struct {
	state    State
	versions []version // the last one is current
	created  time.Time
}

// A version of a secret never changes.
type version struct {
	id    string
	value []byte
}

// secretKey names a secret. The project is Huawei Cloud's; Alibaba Cloud's secrets are any account's.
type secretKey struct{ provider, region, project, name string }

// maxSecret is the longest secret in bytes, as each cloud documents it.
func maxSecret(provider string) int {
	if provider == Huawei {
		return 32 << 10
	}
	return 30 << 10
}

// PutSecret adds a version to a secret, which is made if there is none, and returns the version's ID. The project is for Huawei Cloud.
func (e *Emulator) PutSecret(provider, region, project, name string, value []byte) string {
	e.sawSecret(value)
	e.mu.Lock()
	defer e.mu.Unlock()
	k := secretKey{provider, region, project, name}
	s := e.secrets[k]
	if s == nil {
		s = &secret{state: Enabled, created: e.now()}
		e.secrets[k] = s
	}
	id := fmt.Sprintf("v%d", len(s.versions)+1)
	s.versions = append(s.versions, version{id, slices.Clone(value)})
	return id
}

// SetSecretState changes the state of a secret.
func (e *Emulator) SetSecretState(provider, region, project, name string, state State) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.secrets[secretKey{provider, region, project, name}]
	if s == nil || !state.valid() {
		return fmt.Errorf("emulator: no secret %s, or no state %q", name, state)
	}
	s.state = state
	return nil
}

// createSecret makes a secret, unless there is one of the name.
func (e *Emulator) createSecret(k secretKey, v version) bool {
	e.sawSecret(v.value)
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.secrets[k]; s != nil && s.state != Deleted {
		return false
	}
	e.secrets[k] = &secret{state: Enabled, versions: []version{v}, created: e.now()}
	return true
}

// secret returns the state of a secret and its version of that ID or, counted from the current one, the n-th before; nil if there is no such version.
func (e *Emulator) secret(k secretKey, id string, before int) (State, *version) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.secrets[k]
	if s == nil {
		return Deleted, nil
	}
	if id != "" {
		i := slices.IndexFunc(s.versions, func(v version) bool { return v.id == id })
		if i < 0 {
			return s.state, nil
		}
		return s.state, &s.versions[i]
	}
	if before >= len(s.versions) {
		return s.state, nil
	}
	return s.state, &s.versions[len(s.versions)-1-before]
}

// stages returns the labels of a version: that of the current one, that of the one before, or none.
func (e *Emulator) stages(k secretKey, id, current, previous string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	versions := e.secrets[k].versions
	switch n := len(versions); {
	case versions[n-1].id == id:
		return []string{current}
	case n > 1 && versions[n-2].id == id:
		return []string{previous}
	}
	return []string{}
}

// sawSecret remembers the value of a secret and, of a JSON object, the fields of some length.
func (e *Emulator) sawSecret(value []byte) {
	e.saw(value)
	var fields map[string]any
	if json.Unmarshal(value, &fields) != nil {
		return
	}
	for _, v := range fields {
		if text, ok := v.(string); ok && len(text) > 8 {
			e.saw([]byte(text))
		}
	}
}

// text reports whether a value is text, as opposed to binary.
func (v version) text() bool { return utf8.Valid(v.value) }
