package keyring

// A Selector is a [Keyring] of several CMKs, some of which may be asked alone.
type Selector interface {
	Keyring

	// Select returns the keyring of the CMKs with these URIs, in this order. The error wraps [ErrUntrusted] and names those that are not there.
	Select(cmks []string) (Keyring, error)
}

// Select returns the keyring of just those of k's CMKs that have these URIs, in this order. A keyring that is no [Selector] is returned as it is: whoever needs all of the CMKs, and no other, looks at
// the EDKs.
func Select(k Keyring, cmks []string) (Keyring, error) {
	if s, ok := k.(Selector); ok {
		return s.Select(cmks)
	}
	return k, nil
}
