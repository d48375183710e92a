package cloud

// States of a CMK, in one spelling for all providers. A state that no provider documents is the provider's own word, quoted.
const (
	StateEnabled         = "enabled"
	StateDisabled        = "disabled"
	StatePendingDeletion = "pending deletion"
	StatePendingImport   = "pending import"
)

// A KeyInfo is what a KMS says about a CMK.
type KeyInfo struct {
	Spec      string `json:"spec"`                // the vendor's name, such as "Aliyun_AES_256" or "RSA_2048"
	State     string `json:"state"`               // one of the States
	Deletion  string `json:"deletion,omitempty"`  // when the CMK will be deleted, RFC 3339
	Version   string `json:"version,omitempty"`   // ID of the version of the key that PublicKey is of, where the provider has such
	PublicKey []byte `json:"publicKey,omitempty"` // PKIX, of an enabled RSA CMK
}
