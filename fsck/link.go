package fsck

import (
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/names"
	"github.com/kmsfs/kmsfs/volume"
)

// maxBlob bounds a long target's file: the longest target has 4,095 bytes.
const maxBlob = 4096 + names.TargetOverhead

// link checks the target of a symbolic link.
func (c *checker) link(dir *os.File, disk string, at place) {
	target, err := readlink(dir, disk)
	if err != nil {
		c.unreadable(at, err)
		return
	}
	id, long := names.ParseLongTarget(target)
	if !long {
		if _, err := c.names.OpenTarget(target); err != nil {
			c.lostTarget(at, "target does not authenticate: changed, or from another volume")
		}
		return
	}
	c.mu.Lock()
	c.targets[id] = true
	c.mu.Unlock()
	file := filepath.Join(volume.MetaDir, volume.LinksDir, hex.EncodeToString(id[:]))
	blob, err := c.blob(id)
	if err == nil {
		_, err = c.names.OpenLongTarget(blob)
	}
	if err != nil {
		c.lostTarget(at, "its long target, "+file+": "+missing(err))
	}
}

// lostTarget reports a link whose target is lost. It may have been one of the long targets that no link seems to have: what is stored of it is not to be removed.
func (c *checker) lostTarget(at place, cause string) {
	c.fault(at.fault(LinkTarget, cause), nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = true
}

// blob reads a long target.
func (c *checker) blob(id header.ID) ([]byte, error) {
	dir, err := volume.OpenLinks(c.v.MetaFd())
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	f, err := cipherdir.OpenFile(dir, id.String(), unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxBlob))
}

// longTargets looks for long targets that no link refers to.
func (c *checker) longTargets() {
	at := place{sealed: filepath.Join(c.v.Dir(), volume.MetaDir, volume.LinksDir)}
	dir, err := cipherdir.OpenDir(c.v.MetaFd(), volume.LinksDir)
	if errors.Is(err, unix.ENOENT) {
		return
	} else if err != nil {
		c.unreadable(at, err)
		return
	}
	defer dir.Close()
	c.mu.Lock()
	blind, lost := c.blind || c.ctx.Err() != nil, c.lost
	c.mu.Unlock()
	if blind {
		return
	}
	err = cipherdir.Each(dir, func(e os.DirEntry) error {
		name := e.Name()
		var id header.ID
		if n, err := hex.Decode(id[:], []byte(name)); len(name) != 2*len(id) || err != nil || n != len(id) || c.targets[id] {
			return nil
		}
		f := place{sealed: filepath.Join(at.sealed, name)}.fault(Leftover, "no symbolic link has this long target: a crash came between, or the link was removed from outside")
		f.Harmless = true
		if lost {
			f.Cause += ", or it is that of a link whose target is lost"
			c.fault(f, nil)
			return nil
		}
		c.fault(f, func() error { return unix.Unlinkat(int(dir.Fd()), name, 0) })
		return nil
	})
	if err != nil {
		c.unreadable(at, err)
	}
}

// attributes checks the extended attributes of an entry.
func (c *checker) attributes(dir *os.File, disk string, at place) {
	path := cipherdir.Path(dir, disk)
	raw, err := cipherdir.Whole(func(dst []byte) (int, error) { return unix.Llistxattr(path, dst) })
	if err != nil {
		if err != unix.EOPNOTSUPP && err != unix.ENOENT {
			c.unreadable(at, err)
		}
		return
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00") {
		if _, ours := names.IsXattr(name); !ours {
			continue
		}
		value, err := cipherdir.Whole(func(dst []byte) (int, error) { return unix.Lgetxattr(path, name, dst) })
		if err != nil {
			if err != unix.ENODATA {
				c.unreadable(at, err)
			}
			continue
		}
		full, err := c.names.OpenXattrName(name, value)
		if err != nil {
			c.fault(at.fault(Attribute, "attribute "+name+": name does not authenticate: changed, or from another volume"), nil)
			continue
		}
		x, _ := c.names.XattrName(full)
		if _, err := c.names.OpenXattr(x, value); err != nil {
			c.fault(at.fault(Attribute, "attribute "+full+", stored as "+name+": value does not authenticate: changed, or another attribute's"), nil)
		}
	}
}
