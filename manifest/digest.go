package manifest

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/names"
	"github.com/kmsfs/kmsfs/volume"
)

// Domains of digests, docs/signing.md.
const (
	domainHeader = "kmsfs manifest 1 header"
	domainFile   = "kmsfs manifest 1 file"
	domainLink   = "kmsfs manifest 1 link"
	domainXattrs = "kmsfs manifest 1 xattrs"
)

// chunkSize is what of a ciphertext file is hashed at once, in bytes. A chunk of zeros is a hole: none is hashed, whether or not the file system
// stores it, so that a copy has the digest of the original.
const chunkSize = 64 << 10

// A digester hashes, with buffers of its own.
type digester struct {
	w     *walker
	chunk []byte
}

func newDigester(w *walker) *digester { return &digester{w, make([]byte, chunkSize)} }

// look finds out what f lacks.
func (w *walker) look(f *found, d *digester) {
	if f.name == "." {
		var st unix.Stat_t
		if f.err = os.NewSyscallError("stat", unix.Fstat(int(f.dir.f.Fd()), &st)); f.err == nil {
			f.stat(&st)
		}
	}
	if f.err != nil {
		return
	}
	if f.Xattrs, f.err = xattrs(f.dir.f, f.name); f.err != nil {
		return
	}
	switch f.Type {
	case File:
		f.err = d.file(f)
	case Link:
		f.Digest, f.err = d.link(f)
	}
}

// file digests a file. The error wraps ErrUnsound if a volume has no such file; what can be told of it is told all the same.
func (d *digester) file(f *found) error {
	file, err := openFile(int(f.dir.f.Fd()), f.name)
	if err != nil {
		return err
	}
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return os.NewSyscallError("stat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%w: it has changed while it was read", ErrUnsound)
	}
	if st.Size == 0 {
		return nil
	}
	size, valid := d.w.layout.PlainSize(st.Size)
	f.Size = size
	key := inode{uint64(st.Dev), st.Ino}
	c, known := d.w.linked(key, st.Nlink)
	if !known {
		if c, err = d.content(file, st.Size); err == nil && !valid {
			err = fmt.Errorf("%w: no file has its size", ErrUnsound)
		}
		if errors.Is(err, ErrUnsound) && d.w.o.Suspect != nil && d.w.o.Suspect(int(file.Fd())) {
			f.Size = 0
			return nil
		}
		if f.ID, f.Digest = c.id, c.digest; err != nil {
			return err
		}
		d.w.link(key, st.Nlink, c)
	}
	f.ID, f.Digest = c.id, c.digest
	return nil
}

// linked returns what is known of a file with several names.
func (w *walker) linked(i inode, links uint64) (c content, ok bool) {
	if links < 2 {
		return c, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok = w.links[i]
	return c, ok
}

// link notes what is known of a file with several names.
func (w *walker) link(i inode, links uint64, c content) {
	if links < 2 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.links) >= maxLinks {
		clear(w.links)
	}
	w.links[i] = c
}

// content digests a file of size bytes of ciphertext.
func (d *digester) content(file cipherdir.File, size int64) (c content, err error) {
	raw := d.chunk[:min(int64(d.w.volume.Size), size)]
	if err := readFull(file, raw, 0); err != nil {
		return c, err
	}
	d.w.bytes.Add(int64(len(raw)))
	h, err := header.Parse(raw)
	if err != nil {
		return c, fmt.Errorf("%w: %w", ErrUnsound, err)
	}
	c.id = h.FileID
	if v := d.w.volume; h.Kind != header.File || h.Size != v.Size || h.Algorithm != v.Algorithm || h.SegmentSize != v.SegmentSize || !h.Context.Equal(v.Context) {
		return c, fmt.Errorf("%w: its header is not of this volume", ErrUnsound)
	}
	sum := sha256.New()
	if err := hashHeader(sum, domainFile, h); err != nil {
		return c, err
	}
	var number [8]byte
	sum.Write(binary.BigEndian.AppendUint64(number[:0], uint64(size)))
	for at, start := int64(h.Size), int64(h.Size); at < size; {
		next, err := file.SeekData(at)
		if err == io.EOF {
			break
		} else if err != nil {
			return c, err
		}
		index := (next - start) / chunkSize
		if at = start + index*chunkSize; at >= size {
			break
		}
		chunk := d.chunk[:min(chunkSize, size-at)]
		if err := readFull(file, chunk, at); err != nil {
			return c, err
		}
		d.w.bytes.Add(int64(len(chunk)))
		if at += chunkSize; !zero(chunk) {
			digest := sha256.Sum256(chunk)
			sum.Write(binary.BigEndian.AppendUint64(number[:0], uint64(index)))
			sum.Write(digest[:])
		}
		if err := d.w.ctx.Err(); err != nil {
			return c, err
		}
	}
	c.digest = Digest(sum.Sum(nil))
	return c, nil
}

// zero reports whether b is all zeros.
func zero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}

// hashHeader hashes what a rewrap leaves alone of a header.
func hashHeader(sum hash.Hash, domain string, h *header.Header) error {
	lasting, err := h.AppendLasting(nil)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnsound, err)
	}
	sum.Write([]byte(domain))
	hashField(sum, lasting)
	return nil
}

// hashField hashes bytes after their number.
func hashField(sum hash.Hash, b []byte) {
	sum.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
	sum.Write(b)
}

// headerFiles are the two files that hold the volume header, docs/format.md section 2.
func headerFiles() []string {
	return []string{volume.MetaDir + "/volume", volume.MetaDir + "/volume.copy"}
}

// volumeDigest digests the volume header in one of its files.
func volumeDigest(v *volume.Volume, path string) (Digest, error) {
	f, err := openFile(v.RootFd(), path)
	if err != nil {
		return Digest{}, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, header.MaxSize+1))
	if err != nil {
		return Digest{}, err
	}
	h, err := header.Parse(raw)
	if err != nil {
		return Digest{}, fmt.Errorf("%w: %w", ErrUnsound, err)
	}
	sum := sha256.New()
	err = hashHeader(sum, domainHeader, h)
	return Digest(sum.Sum(nil)), err
}

// link digests the target of a link, and the file that a long one is kept in.
func (d *digester) link(f *found) (Digest, error) {
	target, err := readlink(int(f.dir.f.Fd()), f.name)
	if err != nil {
		return Digest{}, err
	}
	sum := sha256.New()
	sum.Write([]byte(domainLink))
	hashField(sum, []byte(target))
	if id, long := names.ParseLongTarget(target); long {
		blob, err := d.blob(header.ID(id).String())
		if err != nil {
			return Digest{}, fmt.Errorf("%w: its long target: %w", ErrUnsound, err)
		}
		hashField(sum, blob)
	}
	return Digest(sum.Sum(nil)), nil
}

// blob reads a long target.
func (d *digester) blob(id string) ([]byte, error) {
	dir, err := volume.OpenLinks(d.w.meta)
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	defer unix.Close(dir)
	f, err := openFile(dir, id)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > chunkSize {
		return nil, fmt.Errorf("%w: no long target", ErrUnsound)
	}
	blob := d.chunk[:st.Size()]
	return blob, readFull(f, blob, 0)
}

// xattrs digests the extended attributes of an entry that are the plaintext's, and its ACLs.
func xattrs(dir *os.File, name string) (Digest, error) {
	path := cipherdir.Path(dir, name)
	raw, err := attribute(func(dst []byte) (int, error) { return unix.Llistxattr(path, dst) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return Digest{}, nil
	} else if err != nil {
		return Digest{}, err
	}
	list := strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00")
	list = slices.DeleteFunc(list, func(x string) bool {
		_, ours := names.IsXattr(x)
		return !ours && x != "system.posix_acl_access" && x != "system.posix_acl_default"
	})
	if len(list) == 0 {
		return Digest{}, nil
	}
	slices.Sort(list)
	sum := sha256.New()
	sum.Write([]byte(domainXattrs))
	for _, x := range list {
		value, err := attribute(func(dst []byte) (int, error) { return unix.Lgetxattr(path, x, dst) })
		if err != nil {
			return Digest{}, err
		}
		hashField(sum, []byte(x))
		hashField(sum, value)
	}
	return Digest(sum.Sum(nil)), nil
}
