// Package local is a keyring on a CMK that is kept in a file.
//
// The file is one line, "kmsfs-local-cmk-1 <id> <key>", that only its owner may read (docs/format.md section 4.5). Headers
// name the CMK by the random ID in it, never by its path.
package local

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kmsfs/kmsfs/keyring"
)

const (
	magic    = "kmsfs-local-cmk-1"
	idSize   = 16
	keySize  = 32
	saltSize = 32

	nonceSize, tagSize = 12, 16 // of AES-256-GCM

	maxFile = 256 // bytes; the line has 116

	// What a key that is derived from the CMK is for.
	wrapLabel = "kmsfs local v1 wrap"
	dataLabel = "kmsfs local v1 data"
)

// Errors that callers branch on.
var (
	// ErrMode says that others than its owner may read the CMK file.
	ErrMode = errors.New("local: CMK file is open to others")
	// ErrFormat says that a file is not a local CMK file.
	ErrFormat = errors.New("local: not a local CMK file")
)

// A Keyring is one local CMK. It prints as the CMK's URI.
type Keyring struct {
	id  [idSize]byte
	key func() []byte // a function, so that no verb prints the key of a Keyring inside another value
}

var _ keyring.Keyring = (*Keyring)(nil)

// Generate makes a new CMK and writes it to path, which must not exist. Once it returns, the file is durable.
func Generate(path string) (_ *Keyring, err error) {
	key := make([]byte, keySize)
	rand.Read(key)
	k := &Keyring{key: func() []byte { return key }}
	rand.Read(k.id[:])
	line := append(make([]byte, 0, maxFile), magic+" "...)
	line = hex.AppendEncode(line, k.id[:])
	line = hex.AppendEncode(append(line, ' '), key)
	line = append(line, '\n')
	defer clear(line)

	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	_, err = f.Write(line)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if err = errors.Join(d.Sync(), d.Close()); err != nil {
		return nil, err
	}
	return k, nil
}

// Open reads the CMK file at path. The error wraps [ErrFormat] if it is something else, and [ErrMode] if it is one whose mode is not 0600 or
// stricter.
func Open(path string) (*Keyring, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // or a FIFO would block
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrFormat, path)
	case st.Size() > maxFile:
		return nil, fmt.Errorf("%w: %s is %d bytes long", ErrFormat, path, st.Size())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	defer clear(b)
	if err != nil {
		return nil, err
	}
	k, ok := parse(b)
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrFormat, path)
	}
	if mode := st.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o; run: chmod 600 %s", ErrMode, path, mode, path)
	}
	return k, nil
}

// parse reads the one line of a CMK file; its end may be missing.
func parse(line []byte) (k *Keyring, ok bool) {
	fields := bytes.Split(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
	if len(fields) != 3 || string(fields[0]) != magic ||
		len(fields[1]) != hex.EncodedLen(idSize) || len(fields[2]) != hex.EncodedLen(keySize) {
		return nil, false
	}
	key := make([]byte, keySize)
	k = &Keyring{key: func() []byte { return key }}
	_, err1 := hex.Decode(k.id[:], fields[1])
	_, err2 := hex.Decode(key, fields[2])
	return k, err1 == nil && err2 == nil
}

// CMK returns the URI of the CMK as headers store it.
func (k Keyring) CMK() string { return "local:" + hex.EncodeToString(k.id[:]) }

// String returns the URI of the CMK.
func (k Keyring) String() string { return k.CMK() }

// Format hides the key from every verb.
func (k Keyring) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.CMK()) }

// EncryptDataKey implements [keyring.Keyring].
func (k *Keyring) EncryptDataKey(ctx context.Context, dk keyring.DataKey, ec keyring.EncryptionContext) ([]keyring.EncryptedDataKey, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	aad, err := k.aad(ec)
	if err != nil {
		return nil, err
	}
	wrapped := make([]byte, saltSize, saltSize+len(dk)+tagSize)
	rand.Read(wrapped)
	wrapped = k.aead(wrapLabel, wrapped).Seal(wrapped, make([]byte, nonceSize), dk, aad)
	return []keyring.EncryptedDataKey{{CMK: k.CMK(), Wrapped: wrapped}}, nil
}

// DecryptDataKey implements [keyring.Keyring].
func (k *Keyring) DecryptDataKey(ctx context.Context, edks []keyring.EncryptedDataKey, ec keyring.EncryptionContext) (keyring.DataKey, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	aad, err := k.aad(ec)
	if err != nil {
		return nil, err
	}
	cmk := k.CMK()
	failure := fmt.Errorf("%w: %s", keyring.ErrNoMatch, cmk)
	for _, e := range edks {
		if e.CMK != cmk {
			continue
		}
		if len(e.Wrapped) >= saltSize {
			salt, sealed := e.Wrapped[:saltSize], e.Wrapped[saltSize:]
			if dk, err := k.aead(wrapLabel, salt).Open(nil, make([]byte, nonceSize), sealed, aad); err == nil {
				return dk, nil
			}
		}
		failure = fmt.Errorf("%w: %s did not wrap this data key under this encryption context", keyring.ErrDenied, cmk)
	}
	return nil, failure
}

// aead is the cipher for one wrapped key or one piece of data: its key comes from a random salt and is used once, so its nonce may be zero.
func (k *Keyring) aead(label string, salt []byte) cipher.AEAD {
	key, err := hkdf.Key(sha256.New, k.key(), salt, label, 32)
	if err != nil {
		panic("local: internal error: " + err.Error())
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("local: internal error: " + err.Error())
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("local: internal error: " + err.Error())
	}
	return aead
}

func (k *Keyring) aad(ec keyring.EncryptionContext) ([]byte, error) {
	digest, err := ec.Digest()
	if err != nil {
		return nil, err
	}
	return append(append([]byte("kmsfs local v1"), k.id[:]...), digest[:]...), nil
}
