package volume

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
)

// cmkInfoFile holds what is known of the CMKs, docs/format.md section 4.7.
const cmkInfoFile = "cmks"

// maxCMKInfo bounds the file, in bytes.
const maxCMKInfo = 64 << 10

// CMKInfo returns what an unlocked volume keeps of its CMKs, nil if that is nothing. It is what a holder of the volume's data key has written; the error wraps
// [ErrDamaged] if it is not, and nothing is lost then that the CMKs would not tell again.
func (v *Volume) CMKInfo() ([]byte, error) {
	raw, err := readSmall(v.meta, cmkInfoFile, maxCMKInfo)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read %s/%s: %w", MetaDir, cmkInfoFile, err)
	}
	if len(raw) < sha256.Size {
		return nil, fmt.Errorf("%w: %s/%s is cut", ErrDamaged, MetaDir, cmkInfoFile)
	}
	info := raw[sha256.Size:]
	if !hmac.Equal(raw, sealCMKInfo(v.keys.known.get(v.keys.volume), v.Header().FileID, info)) {
		return nil, fmt.Errorf("%w: %s/%s does not authenticate", ErrDamaged, MetaDir, cmkInfoFile)
	}
	return info, nil
}

// SetCMKInfo replaces what an unlocked volume keeps of its CMKs.
func (v *Volume) SetCMKInfo(info []byte) error {
	if err := v.replace(cmkInfoFile, sealCMKInfo(v.keys.known.get(v.keys.volume), v.Header().FileID, info)); err != nil {
		return fmt.Errorf("write %s/%s: %w", MetaDir, cmkInfoFile, err)
	}
	return unix.Fsync(v.meta)
}

// sealCMKInfo puts a MAC under a key of the volume's data key before info.
func sealCMKInfo(dk keyring.DataKey, volume header.ID, info []byte) []byte {
	key, err := hkdf.Key(sha256.New, dk, volume[:], "kmsfs v1 cmks", sha256.Size)
	if err != nil {
		panic("volume: internal error: " + err.Error())
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(info)
	return append(mac.Sum(nil), info...)
}
