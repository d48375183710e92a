package keyring

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Multi returns a keyring of several: it encrypts under all of them, and decrypts under the first that can, in order.
func Multi(keyrings ...Keyring) Keyring { return multi(keyrings) }

type multi []Keyring

// EncryptDataKey implements [Keyring].
func (m multi) EncryptDataKey(ctx context.Context, dk DataKey, ec EncryptionContext) ([]EncryptedDataKey, error) {
	var all []EncryptedDataKey
	for _, k := range m {
		edks, err := k.EncryptDataKey(ctx, dk, ec)
		if err != nil {
			return nil, err
		}
		all = append(all, edks...)
	}
	return all, nil
}

// DecryptDataKey implements [Keyring]. If no keyring can, the error joins what each keyring with an EDK among edks said.
func (m multi) DecryptDataKey(ctx context.Context, edks []EncryptedDataKey, ec EncryptionContext) (DataKey, error) {
	var failures []error
	for _, k := range m {
		if err := ctx.Err(); err != nil {
			failures = append(failures, err)
			break
		}
		dk, err := k.DecryptDataKey(ctx, edks, ec)
		if err == nil {
			return dk, nil
		}
		if !errors.Is(err, ErrNoMatch) {
			failures = append(failures, err)
		}
	}
	if len(failures) == 0 {
		return nil, fmt.Errorf("%w: they are from %s", ErrNoMatch, cmks(edks))
	}
	return nil, errors.Join(failures...)
}

// cmks lists the CMKs of edks for a message. Nobody has authenticated them yet, hence the quotes.
func cmks(edks []EncryptedDataKey) string {
	if len(edks) == 0 {
		return "nobody"
	}
	var list []string
	for _, e := range edks {
		list = append(list, strconv.Quote(e.CMK))
	}
	return strings.Join(list, ", ")
}
