package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
)

// Params are the constants of a volume. Algorithm and SegmentSize are required.
type Params struct {
	Algorithm      header.Algorithm
	SegmentSize    int                       // bytes, a power of two from 4,096 to 65,536
	PlaintextNames bool                      // store names as they are
	PerFile        bool                      // give every file a data key of its own
	Context        keyring.EncryptionContext // bound into every wrapped data key and every header
	CMKInfo        func() []byte             // returns what [Volume.CMKInfo] keeps, once the CMKs have wrapped the data key; nil for nothing
}

// Create makes a new volume in dir, which must be empty or not exist, with a new data key wrapped by every CMK of k. On an error
// nothing is left behind.
func Create(ctx context.Context, dir string, p Params, k keyring.Keyring) (_ *header.Header, err error) {
	made, err := prepare(dir)
	if err != nil {
		return nil, err
	}
	meta := filepath.Join(dir, MetaDir)
	defer func() {
		if err == nil {
			return
		}
		if made {
			os.RemoveAll(dir)
		} else {
			os.RemoveAll(meta)
		}
	}()

	h := &header.Header{
		Kind:           header.Volume,
		Algorithm:      p.Algorithm,
		SegmentSize:    p.SegmentSize,
		PlaintextNames: p.PlaintextNames,
		PerFile:        p.PerFile,
		FileID:         header.NewID(),
		Context:        p.Context,
	}
	dk, edks, err := keyring.GenerateDataKey(ctx, k, p.Algorithm.KeySize(), p.Context)
	if err != nil {
		return nil, fmt.Errorf("make and wrap the data key: %w", err)
	}
	defer dk.Wipe()
	h.EDKs = edks
	if h.Size, err = header.SizeFor(h); err != nil {
		return nil, err
	}
	raw, err := h.Seal(dk)
	if err != nil {
		return nil, err
	}

	// The header comes last: a directory without one is not a volume.
	if err := os.Mkdir(meta, 0o700); err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(meta, LinksDir), 0o700); err != nil {
		return nil, err
	}
	if p.CMKInfo != nil {
		if info := p.CMKInfo(); len(info) > 0 {
			if err := writeSynced(filepath.Join(meta, cmkInfoFile), sealCMKInfo(dk, h.FileID, info)); err != nil {
				return nil, err
			}
		}
	}
	for _, name := range []string{headerCopy, headerFile} {
		if err := writeSynced(filepath.Join(meta, name), raw); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{meta, dir, filepath.Dir(filepath.Clean(dir))} {
		if err := syncDir(d); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// prepare makes sure that dir is an empty directory; made says that it had to be created.
func prepare(dir string) (made bool, err error) {
	err = os.Mkdir(dir, 0o700)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, os.ErrExist) {
		return false, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.Name() == MetaDir {
			return false, fmt.Errorf("%w: %s is a volume already", ErrNotEmpty, dir)
		}
		if e.Name() == "lost+found" {
			continue // the root of a fresh ext4
		}
		return false, fmt.Errorf("%w: %s", ErrNotEmpty, dir)
	}
	return false, nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
