// Command loopback mounts a directory through go-fuse, unencrypted, with all data passing through the process, hour-long lifetimes and a
// kept page cache: about what an encrypting daemon can reach.
package main

import (
	"context"
	"log"
	"os"
	"syscall"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// A node keeps the page cache when a file is opened again.
type node struct{ *fusefs.LoopbackNode }

func (n *node) Open(ctx context.Context, flags uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	fh, fuseFlags, errno := n.LoopbackNode.Open(ctx, flags)
	return fh, fuseFlags | fuse.FOPEN_KEEP_CACHE, errno
}

func (n *node) WrapChild(_ context.Context, ops fusefs.InodeEmbedder) fusefs.InodeEmbedder {
	return &node{ops.(*fusefs.LoopbackNode)}
}

func main() {
	root, err := fusefs.NewLoopbackRoot(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	lifetime := time.Hour
	srv, err := fusefs.Mount(os.Args[1], &node{root.(*fusefs.LoopbackNode)}, &fusefs.Options{
		EntryTimeout: &lifetime, AttrTimeout: &lifetime, NegativeTimeout: &lifetime,
		MountOptions: fuse.MountOptions{DirectMount: true, MaxWrite: 1 << 20, DisabledCapabilities: fuse.CAP_PASSTHROUGH, FsName: os.Args[2], Name: "loopback"},
	})
	if err != nil {
		log.Fatal(err)
	}
	srv.Wait()
}
