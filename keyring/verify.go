package keyring

import "context"

// DecryptVerified unwraps the first of edks that k can and verify accepts. A CMK may give back another key than it wrapped: then each of the EDKs is
// asked for alone, since one of the others may be right.
func DecryptVerified(ctx context.Context, k Keyring, edks []EncryptedDataKey, ec EncryptionContext, verify func(DataKey) error) (DataKey, error) {
	dk, err := k.DecryptDataKey(ctx, edks, ec)
	if err != nil {
		return nil, err
	}
	wrong := verify(dk)
	if wrong == nil {
		return dk, nil
	}
	dk.Wipe()
	if len(edks) == 1 {
		return nil, wrong
	}
	for i := range edks {
		dk, err := k.DecryptDataKey(ctx, edks[i:i+1], ec)
		if err != nil {
			continue
		}
		if verify(dk) == nil {
			return dk, nil
		}
		dk.Wipe()
	}
	return nil, wrong
}
