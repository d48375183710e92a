package emulator

import (
	"encoding/base64"
	"encoding/hex"
	"maps"
	"slices"
)

// Plaintexts returns every plaintext, such as a data key, that a call brought or an answer was made of, as bytes, in hexadecimal and in Base64: what a
// program must not write anywhere, and must not send in a URL.
func (e *Emulator) Plaintexts() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []string
	for _, plain := range slices.Sorted(maps.Keys(e.plaintexts)) {
		all = append(all, plain, hex.EncodeToString([]byte(plain)), base64.StdEncoding.EncodeToString([]byte(plain)))
	}
	return all
}

// saw remembers a plaintext, and what it says if it is text in hexadecimal, as data keys are under an RSA CMK of Huawei Cloud.
func (e *Emulator) saw(plain []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.plaintexts[string(plain)] = true
	if b, err := hex.DecodeString(string(plain)); err == nil {
		e.plaintexts[string(b)] = true
	}
}

// Credentials returns every credential, those that have been issued included.
func (e *Emulator) Credentials() []Credential {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.credentials)
}
