package fs

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/keyring/local"
	"github.com/kmsfs/kmsfs/volume"
)

// unmounted returns a file system on a new volume that serves whoever calls its methods.
func unmounted(b testing.TB) *FS {
	b.Helper()
	return unmountedUnder(b, newCMK(b))
}

func newCMK(b testing.TB) *local.Keyring {
	b.Helper()
	k, err := local.Generate(filepath.Join(b.TempDir(), "cmk"))
	if err != nil {
		b.Fatal(err)
	}
	return k
}

func newVolume(b testing.TB, k *local.Keyring, perFile bool) *volume.Volume {
	b.Helper()
	dir := filepath.Join(b.TempDir(), "cipher")
	if _, err := volume.Create(b.Context(), dir, volume.Params{Algorithm: header.AES256GCM, SegmentSize: 4096, PerFile: perFile}, k); err != nil {
		b.Fatal(err)
	}
	v, err := volume.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	if err := v.Unlock(b.Context(), k); err != nil {
		b.Fatal(err)
	}
	return v
}

func unmountedUnder(b testing.TB, k *local.Keyring) *FS {
	b.Helper()
	v := newVolume(b, k, false)
	layout, err := v.Layout()
	if err != nil {
		b.Fatal(err)
	}
	f := &FS{vol: v, names: v.Names(), layout: layout, chown: os.Geteuid() == 0, log: slog.Default()}
	f.buffers.New = func() any { return new([bufferSize]byte) }
	if err := f.openRoot(); err != nil {
		b.Fatal(err)
	}
	if f.journal, err = journal.Open(v.RootFd(), v.MetaFd(), journal.Options{}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		f.close()
		v.Close()
	})
	return f
}

type client struct {
	*FS
	b testing.TB
}

func (c client) ok(s fuse.Status) {
	if !s.Ok() {
		c.b.Helper()
		c.b.Fatal(s)
	}
}

func (c client) create(name string) uint64 {
	root := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
	var entry fuse.EntryOut
	c.ok(c.Lookup(nil, &root, name, &entry))
	var out fuse.CreateOut
	c.ok(c.Create(nil, &fuse.CreateIn{InHeader: root, Mode: 0o100644, Flags: 2}, name, &out))
	return out.NodeId
}

func (c client) write(id uint64, p []byte, off int64) {
	_, s := c.Write(nil, &fuse.WriteIn{InHeader: fuse.InHeader{NodeId: id}, Offset: uint64(off), Size: uint32(len(p))}, p)
	c.ok(s)
}

func (c client) small(name string, p []byte) uint64 {
	id := c.create(name)
	in := fuse.InHeader{NodeId: id}
	_, _ = c.GetXAttr(nil, &in, capabilityName, nil)
	c.write(id, p, 0)
	c.ok(c.Flush(nil, &fuse.FlushIn{InHeader: in}))
	c.Release(nil, &fuse.ReleaseIn{InHeader: in})
	var out fuse.AttrOut
	c.ok(c.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}}, &out))
	return id
}

func (c client) remove(name string) {
	c.ok(c.Unlink(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, name))
	var out fuse.AttrOut
	c.ok(c.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}}, &out))
}

// measure reports allocations, and the processor time of an operation: elapsed time says little on a busy machine.
func measure(b *testing.B) (done func()) {
	b.ReportAllocs()
	used := func() int64 {
		var u unix.Rusage
		_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}

func BenchmarkRequests(b *testing.B) {
	p := make([]byte, 1<<20)
	b.Run("Create", func(b *testing.B) {
		c := client{unmounted(b), b}
		defer measure(b)()
		i := 0
		for b.Loop() {
			i++
			c.small(fmt.Sprint("file", i), p[:300])
		}
	})
	for _, size := range []int{300, 8 << 10, 60 << 10} {
		b.Run(fmt.Sprintf("OpenRead%d", size), func(b *testing.B) {
			c := client{unmounted(b), b}
			id := c.small("file", p[:size])
			b.SetBytes(int64(size))
			defer measure(b)()
			for b.Loop() {
				c.ok(c.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: id}, Flags: unix.O_DIRECT}, new(fuse.OpenOut)))
				_, s := c.Read(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: id}, Size: uint32(size)}, p)
				c.ok(s)
				c.Release(nil, &fuse.ReleaseIn{InHeader: fuse.InHeader{NodeId: id}})
			}
		})
	}
	b.Run("CreateUnlink", func(b *testing.B) {
		c := client{unmounted(b), b}
		defer measure(b)()
		i := 0
		for b.Loop() {
			i++
			name := fmt.Sprint("file", i)
			id := c.small(name, p[:300])
			c.remove(name)
			c.Forget(id, 1)
		}
	})
	b.Run("MkdirRmdir", func(b *testing.B) {
		c := client{unmounted(b), b}
		root := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
		defer measure(b)()
		i := 0
		for b.Loop() {
			i++
			name := fmt.Sprint("dir", i)
			var out fuse.EntryOut
			c.ok(c.Mkdir(nil, &fuse.MkdirIn{InHeader: root, Mode: 0o755}, name, &out))
			c.ok(c.Rmdir(nil, &root, name))
			c.Forget(out.NodeId, 1)
		}
	})
	for _, size := range []int{4096, 128 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("Append%d", size), func(b *testing.B) {
			c := client{unmounted(b), b}
			id := c.create("file")
			b.SetBytes(int64(size))
			defer measure(b)()
			off := int64(0)
			for b.Loop() {
				if off == 256<<20 {
					c.ok(c.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: fuse.InHeader{NodeId: id}, Valid: fuse.FATTR_SIZE}}, new(fuse.AttrOut)))
					off = 0
				}
				c.write(id, p[:size], off)
				off += int64(size)
			}
		})
	}
	b.Run("Rewrite4096", func(b *testing.B) {
		c := client{unmounted(b), b}
		id := c.create("file")
		for i := range int64(16) {
			c.write(id, p, i<<20)
		}
		c.ok(c.Fsync(nil, &fuse.FsyncIn{InHeader: fuse.InHeader{NodeId: id}}))
		b.SetBytes(4096)
		defer measure(b)()
		x := uint64(1)
		for b.Loop() {
			x = x*6364136223846793005 + 1442695040888963407
			c.write(id, p[:4096], int64(x>>52)*4096)
		}
	})
	b.Run("Read1M", func(b *testing.B) {
		c := client{unmounted(b), b}
		id := c.create("file")
		for i := range int64(16) {
			c.write(id, p, i<<20)
		}
		b.SetBytes(1 << 20)
		defer measure(b)()
		off := uint64(0)
		for b.Loop() {
			_, s := c.Read(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: id}, Offset: off, Size: 1 << 20}, p)
			c.ok(s)
			off = (off + 1<<20) % (16 << 20)
		}
	})
}
