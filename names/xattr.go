package names

import (
	"crypto/rand"
	"strings"
)

// Where the namespaces are stored, docs/format.md section 9.
const (
	userPrefix    = "user.kmsfs."
	trustedPrefix = "trusted.kmsfs."
	hashMark      = "#"
)

// An Xattr is how an extended attribute's name is stored.
type Xattr struct {
	Disk   string // the stored name
	full   string
	hashed bool // Disk is a digest: the value tells the name
}

// Stores reports whether the namespace of the attribute called full is stored.
func Stores(full string) bool {
	namespace, rest, _ := strings.Cut(full, ".")
	return rest != "" && len(full) <= maxName && (namespace == "user" || namespace == "trusted" || namespace == "security")
}

// XattrName returns how the attribute called full is stored; ok is false unless [Stores] holds for it.
func (k *Keys) XattrName(full string) (x Xattr, ok bool) {
	if !Stores(full) {
		return x, false
	}
	prefix := trustedPrefix
	if strings.HasPrefix(full, "user.") {
		prefix = userPrefix
	}
	e := strict.EncodeToString(k.xattrs().seal(nil, []byte(full), []byte("name")))
	x = Xattr{Disk: prefix + e, full: full}
	if len(x.Disk) > maxName {
		x.Disk, x.hashed = prefix+hashMark+digest([]byte(e)), true
	}
	return x, true
}

// IsXattr reports whether a stored attribute name is one of ours; hashed says that its value is needed to tell the name.
func IsXattr(disk string) (hashed, ok bool) {
	rest, ok := cutXattr(disk)
	return strings.HasPrefix(rest, hashMark), ok
}

func cutXattr(disk string) (rest string, ok bool) {
	if rest, ok = strings.CutPrefix(disk, userPrefix); !ok {
		rest, ok = strings.CutPrefix(disk, trustedPrefix)
	}
	return rest, ok
}

// OpenXattrName opens a stored attribute name. The value is needed, and authenticated, only if the name is hashed.
func (k *Keys) OpenXattrName(disk string, value []byte) (string, error) {
	rest, ok := cutXattr(disk)
	if !ok {
		return "", ErrAuth
	}
	var full string
	if strings.HasPrefix(rest, hashMark) {
		b, err := openRandom(k.xattrs, []byte("value"), nil, value)
		if err != nil || len(b) < 1 || len(b) < 1+int(b[0]) {
			return "", ErrAuth
		}
		full = string(b[1 : 1+int(b[0])])
	} else {
		c, err := decode(nil, rest)
		if err != nil {
			return "", err
		}
		b, err := k.xattrs().open(nil, c, []byte("name"))
		if err != nil {
			return "", err
		}
		full = string(b)
	}
	if x, ok := k.XattrName(full); !ok || x.Disk != disk {
		return "", ErrAuth
	}
	return full, nil
}

// SealXattr seals the value of an attribute.
func (k *Keys) SealXattr(x Xattr, value []byte) []byte {
	if x.hashed {
		named := append([]byte{byte(len(x.full))}, x.full...)
		return sealRandom(k.xattrs, []byte("value"), nil, append(named, value...))
	}
	return sealRandom(k.xattrs, []byte("value"), []byte(x.full), value)
}

// OpenXattr opens the stored value of an attribute.
func (k *Keys) OpenXattr(x Xattr, sealed []byte) ([]byte, error) {
	if !x.hashed {
		return openRandom(k.xattrs, []byte("value"), []byte(x.full), sealed)
	}
	b, err := openRandom(k.xattrs, []byte("value"), nil, sealed)
	if err != nil {
		return nil, err
	}
	value, ok := strings.CutPrefix(string(b), string([]byte{byte(len(x.full))})+x.full)
	if !ok {
		return nil, ErrAuth
	}
	return []byte(value), nil
}

// sealRandom returns r ‖ SIV(before ‖ r ‖ after, plain) with a random r, so that equal values look different.
func sealRandom(key hidden, before, after, plain []byte) []byte {
	r := make([]byte, randomSize, TargetOverhead+len(plain))
	rand.Read(r)
	return key().seal(r, plain, randomAD(before, r, after))
}

func openRandom(key hidden, before, after, sealed []byte) ([]byte, error) {
	if len(sealed) < TargetOverhead {
		return nil, ErrAuth
	}
	r := sealed[:randomSize]
	return key().open(nil, sealed[randomSize:], randomAD(before, r, after))
}

func randomAD(before, r, after []byte) []byte {
	ad := make([]byte, 0, len(before)+len(r)+len(after))
	return append(append(append(ad, before...), r...), after...)
}
