package keyring

import "context"

// A Generator is a [Keyring] whose KMS makes a data key and wraps it in one call.
type Generator interface {
	Keyring

	// GenerateDataKey returns a new data key of size bytes and its EDKs, as [Keyring.EncryptDataKey] would return them.
	GenerateDataKey(ctx context.Context, size int, ec EncryptionContext) (DataKey, []EncryptedDataKey, error)
}

// GenerateDataKey returns a new data key of size bytes and its EDKs under every CMK of k. A [Generator] makes the key itself, which
// saves a call; for any other keyring it is made here.
func GenerateDataKey(ctx context.Context, k Keyring, size int, ec EncryptionContext) (DataKey, []EncryptedDataKey, error) {
	if g, ok := k.(Generator); ok {
		return g.GenerateDataKey(ctx, size, ec)
	}
	dk := NewDataKey(size)
	edks, err := k.EncryptDataKey(ctx, dk, ec)
	if err != nil {
		dk.Wipe()
		return nil, nil, err
	}
	return dk, edks, nil
}
