// Command loopback mounts a directory through go-fuse, unencrypted and with all data passing through the process: what an
// encrypting daemon would cost without encryption.
package main

import (
	"log"
	"os"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func main() {
	root, err := fusefs.NewLoopbackRoot(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	lifetime := time.Hour
	srv, err := fusefs.Mount(os.Args[1], root, &fusefs.Options{
		EntryTimeout: &lifetime, AttrTimeout: &lifetime, NegativeTimeout: &lifetime,
		MountOptions: fuse.MountOptions{DirectMount: true, MaxWrite: 1 << 20, DisabledCapabilities: fuse.CAP_PASSTHROUGH, FsName: os.Args[2], Name: "loopback"},
	})
	if err != nil {
		log.Fatal(err)
	}
	srv.Wait()
}
