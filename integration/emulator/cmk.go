package emulator

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"hash"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"
)

// A State is what the owner of a CMK has done to it.
type State string

// The states. The zero value is Enabled.
const (
	Enabled         State = "enabled"
	Disabled        State = "disabled"
	PendingDeletion State = "pending-deletion"
	PendingImport   State = "pending-import"
	Deleted         State = "deleted"
	Denied          State = "denied" // enabled, but the caller may not use it any more
)

// What a CMK is for. The zero value is EncryptDecrypt.
const (
	EncryptDecrypt = "encrypt"
	SignVerify     = "sign"
)

// A CMK is a master key to hold. URI is acs:kms:REGION:ACCOUNT:key/ID or huawei:kms:REGION:PROJECT:key/ID.
type CMK struct {
	URI   string `json:"cmk"`
	Spec  string `json:"spec,omitempty"`  // AES_256 (the default), SM4, RSA_2048, RSA_3072, RSA_4096, EC_P256, EC_P384 or SM2
	Usage string `json:"usage,omitempty"` // EncryptDecrypt (the default), or SignVerify for RSA; keys on curves have no other
	Alias string `json:"alias,omitempty"` // without the alias/ in front
	State State  `json:"state,omitempty"`
}

// A key is a CMK with its material. All but State is constant; State is guarded by Emulator.mu.
type key struct {
	CMK
	provider, region, scope, id string                 // scope is the account, or the project
	version                     string                 // the ID of its only version
	secret                      []byte                 // of a symmetric CMK
	private                     func() *rsa.PrivateKey // of an RSA one; takes seconds the first time
	curve                       crypto.Signer          // of one on a curve
}

var (
	uriPattern    = regexp.MustCompile(`^(acs|huawei):kms:([a-z0-9-]+):([A-Za-z0-9-]+):key/([A-Za-z0-9_-]+)$`)
	huaweiPattern = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
)

func newKey(seed string, cmk CMK) (*key, error) {
	m := uriPattern.FindStringSubmatch(cmk.URI)
	if m == nil {
		return nil, fmt.Errorf("emulator: cmk %q is not acs:kms:REGION:ACCOUNT:key/ID or huawei:kms:REGION:PROJECT:key/ID", cmk.URI)
	}
	k := &key{CMK: cmk, provider: Alibaba, region: m[2], scope: m[3], id: m[4]}
	if m[1] == Huawei {
		k.provider = Huawei
		if !huaweiPattern.MatchString(k.id) {
			return nil, fmt.Errorf("emulator: cmk %s: the key ID is not a UUID in lower case", cmk.URI)
		}
	}
	if k.Spec == "" {
		k.Spec = "AES_256"
	}
	if k.Usage == "" {
		k.Usage = defaultUsage(k.Spec)
	}
	if k.State == "" {
		k.State = Enabled
	}
	if !k.State.valid() {
		return nil, fmt.Errorf("emulator: cmk %s: unknown state %q", cmk.URI, cmk.State)
	}
	version := sha256.Sum256([]byte("version of " + cmk.URI))
	k.version = uuid(version[:])
	bits := 0
	switch k.Spec {
	case "AES_256":
		k.secret = derive(seed, "cmk "+cmk.URI, 32)
	case "SM4":
		k.secret = derive(seed, "cmk "+cmk.URI, sm4.BlockSize)
	case "RSA_2048":
		bits = 2048
	case "RSA_3072":
		bits = 3072
	case "RSA_4096":
		bits = 4096
	default:
		if k.curve = curveKey(k.Spec, derive(seed, "cmk "+cmk.URI, 32)); k.curve == nil {
			return nil, fmt.Errorf("emulator: cmk %s: unknown spec %q", cmk.URI, k.Spec)
		}
	}
	if bits > 0 {
		k.private = sync.OnceValue(func() *rsa.PrivateKey { return rsaKey(derive(seed, "cmk "+cmk.URI, 32), bits) })
	}
	if k.Usage != EncryptDecrypt && (k.Usage != SignVerify || k.secret != nil) || k.Usage == EncryptDecrypt && k.curve != nil {
		return nil, fmt.Errorf("emulator: cmk %s: %s keys have no usage %q", cmk.URI, k.Spec, k.Usage)
	}
	return k, nil
}

func (s State) valid() bool {
	return slices.Contains([]State{Enabled, Disabled, PendingDeletion, PendingImport, Deleted, Denied}, s)
}

// derive returns n bytes for one purpose.
func derive(seed, purpose string, n int) []byte {
	b, err := hkdf.Key(sha256.New, []byte(seed), nil, purpose, n)
	if err != nil {
		panic("emulator: internal error: " + err.Error()) // n is a small constant
	}
	return b
}

// block returns the block cipher of a symmetric CMK.
func (k *key) block() cipher.Block {
	newCipher := aes.NewCipher
	if k.Spec == "SM4" {
		newCipher = sm4.NewCipher
	}
	b, err := newCipher(k.secret)
	if err != nil {
		panic("emulator: internal error: " + err.Error()) // the length is right
	}
	return b
}

// gcm returns an AEAD under a symmetric CMK.
func (k *key) gcm(nonceSize int) cipher.AEAD {
	aead, err := cipher.NewGCMWithNonceSize(k.block(), nonceSize)
	if err != nil {
		panic("emulator: internal error: " + err.Error())
	}
	return aead
}

// digest is what Huawei Cloud's KMS takes over a data key: SHA-256, or SM3 where the CMK is an SM4 key.
func (k *key) digest(data []byte) []byte {
	var h hash.Hash
	if k.Spec == "SM4" {
		h = sm3.New()
	} else {
		h = sha256.New()
	}
	h.Write(data)
	return h.Sum(nil)
}

// key returns the CMK of that URI, or nil.
func (e *Emulator) key(uri string) *key {
	for _, k := range e.keys {
		if k.URI == uri {
			return k
		}
	}
	return nil
}

// find returns the CMK that name (its ID, version, alias/ALIAS or URI) means in a region, or nil. An empty region or scope is any.
func (e *Emulator) find(provider, region, scope, name string) *key {
	for _, k := range e.keys {
		if k.provider != provider || region != "" && k.region != region || scope != "" && k.scope != scope {
			continue
		}
		alias, isAlias := strings.CutPrefix(name, "alias/")
		if name == k.id || name == k.version || name == k.URI || isAlias && alias != "" && alias == k.Alias {
			return k
		}
	}
	return nil
}

// state returns the state of k now.
func (e *Emulator) state(k *key) State {
	e.mu.Lock()
	defer e.mu.Unlock()
	return k.State
}

// SetState changes the state of the CMK of that URI.
func (e *Emulator) SetState(uri string, s State) error {
	k := e.key(uri)
	if k == nil {
		return fmt.Errorf("emulator: no cmk %s", uri)
	}
	if !s.valid() {
		return fmt.Errorf("emulator: unknown state %q", s)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	k.State = s
	return nil
}

// CMKs returns the CMKs as they are now.
func (e *Emulator) CMKs() []CMK {
	e.mu.Lock()
	defer e.mu.Unlock()
	cmks := make([]CMK, len(e.keys))
	for i, k := range e.keys {
		cmks[i] = k.CMK
	}
	return cmks
}
