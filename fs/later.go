package fs

import (
	"errors"
	"math"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Whoever opens a small file to read what the kernel was given of it gets all he asks for from the page cache. So nothing is opened for him here, and his opener is
// only counted: such an opener is deferred. When the kernel asks for something after all, since it has dropped a page for instance, the ciphertext is opened as
// for any reader, and stays so while there are openers of either sort. Before the file loses a name it is opened, too: it might not be found later.

// deferred is how many openers of n are deferred. n.mu is held.
func (n *node) deferred() int { return int(max(n.given, 1)) - 1 }

// ungiven notes that the kernel is to drop what it was given of n, if it was given anything, so that it is given it again, unless there are deferred openers now.
func (n *node) ungiven() (was bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	was = n.given > 0
	if n.given == 1 {
		n.given = 0
	}
	return was
}

// deferOpen counts a deferred opener of n, who calls releaseDeferred. It reports whether there can be one. The kernel has checked permissions.
//
// There is none where each file has a data key of its own, or where there are more of them than are kept: a data key may be forgotten, and who has opened a file is to read it whatever becomes
// of the CMKs, and of the name. Those who were deferred before need none that is not kept.
func (f *FS) deferOpen(n *node) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.given == 0 || n.given == math.MaxUint8 || n.open != nil || f.vol.Header().PerFile || f.vol.Forgets() || f.nodes.nameless(n) || f.stopped.Load() {
		return false
	}
	n.given++
	return true
}

// releaseDeferred takes back what deferOpen counted.
func (f *FS) releaseDeferred(n *node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.deferred() > 0 { // else the mount is gone
		n.given--
	}
	_ = f.closeUnused(n)
}

// opened returns what an opener of n has open, nil if nobody has; it stays open until the kernel releases it. For a deferred opener it is opened now; an error of
// that, which is logged, is the request's.
func (f *FS) opened(n *node) (*openFile, fuse.Status) {
	if n == nil {
		return nil, fuse.EBADF
	}
	n.mu.Lock()
	o, later := n.open, n.deferred() > 0
	n.mu.Unlock()
	switch {
	case o != nil:
		return o, fuse.OK
	case !later:
		return nil, fuse.EBADF
	}
	o, err := f.obtain(interrupt(nil), n, false) // programs do not expect EINTR here
	if err != nil {
		return nil, f.fail(n, "open", err)
	}
	_ = f.release(n) // whose request this is keeps it open
	return o, fuse.OK
}

// hold opens n, which is about to lose a name, for its deferred openers. What they could not read anyway, since it is damaged or not to be found, need not be held. An error of the storage is
// returned, since it may pass: the name stays. n.mu is held, and renames.
func (f *FS) hold(n *node) error {
	if n.open != nil || n.deferred() == 0 {
		return nil
	}
	o, err := f.openNode(f.openKnown, n, false)
	if err == nil {
		o.shared = true
		n.open = o
		return nil
	}
	var errno unix.Errno
	if errors.As(err, &errno) && errno != unix.ENOENT && errno != unix.ESTALE && !refused(errno) {
		return errno
	}
	return nil
}

// holdAll opens whatever has deferred openers, before a directory is closed to its owner, who may be running this process: nothing below it could be opened later. Root gets everywhere. No lock is
// held.
func (f *FS) holdAll() {
	if f.chown {
		return
	}
	f.nodes.each(func(n *node) {
		if n.kind == unix.DT_REG {
			_, _ = f.opened(n)
		}
	})
}
