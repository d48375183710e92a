package fs

import (
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxListings is how many listings are kept between requests, each with a descriptor and a buffer.
	maxListings = 64
	// listingSize is how much of a directory is kept at once, in bytes: more than what the answer to 32 KiB of most programs takes.
	listingSize = 64 << 10
	// maxDirent is the size of the largest entry that getdents64 returns, in bytes.
	maxDirent = 280
)

// A listing is how far somebody has listed a directory.
type listing struct {
	node *node
	id   [16]byte // of the directory
	last uint64   // offset behind the entry that was returned last; belongs to the request that uses the listing, while it is kept to listings.mu

	// mu is held by the request that uses the listing, or by who reads ahead, over system calls. No request waits for another by it, since whoever uses a
	// listing has taken it out of listings.lru, and who reads ahead takes no other lock. It guards what follows.
	mu    sync.Mutex
	fd    int                // -1 when the end was reached
	buf   *[listingSize]byte // entries as getdents64 returned them; nil when the end was reached
	rest  []byte             // what of buf is not consumed yet
	names []string           // what the first entries of rest are called; "" has yet to be opened
	space []string           // where names are
	end   bool               // nothing follows rest, or
	err   error              // this
	ahead int                // how many bytes of entries are read ahead, as many as the last answer took; 0 unless the listing is long
}

// listings keeps those that are likely to be gone on with, the one used last in front. Kernels from 5.1 on open directories without asking, so there is
// nothing to know them by but the directory and the offset. Who is not found here, because others have listed many
// directories since, or because the directory has changed, seeks.
type listings struct {
	mu  sync.Mutex // nobody waits for a listing's while holding it
	lru []*listing // guarded by mu

	buffers sync.Pool // of *[listingSize]byte: most directories are listed in one request
}

// take returns a listing of d that goes on at an offset, for the caller alone until it is given to keep or done.
func (c *listings) take(d *dir, off uint64) (*listing, error) {
	if off != 0 { // from the start, a directory is always read anew
		if l := c.kept(d.node, off); l != nil {
			l.mu.Lock()
			return l, nil
		}
	}
	fd, err := openDot(d.fd)
	if err != nil {
		return nil, err
	}
	if off != 0 {
		if _, err := unix.Seek(fd, int64(off), 0); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	buf, ok := c.buffers.Get().(*[listingSize]byte)
	if !ok {
		buf = new([listingSize]byte)
	}
	l := &listing{node: d.node, id: d.id, last: off, fd: fd, buf: buf}
	l.mu.Lock()
	return l, nil
}

// kept returns the listing of n that has come to an offset, and was used last of those that have; nil if none is kept.
func (c *listings) kept(n *node, off uint64) *listing {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.lru, func(l *listing) bool { return l.node == n && l.last == off })
	if i < 0 {
		return nil
	}
	l := c.lru[i]
	c.lru = slices.Delete(c.lru, i, i+1)
	return l
}

// keep takes back a listing that somebody may go on with.
func (c *listings) keep(l *listing) {
	l.mu.Unlock()
	c.mu.Lock()
	var old *listing
	if last := len(c.lru) - 1; last >= maxListings-1 {
		old = c.lru[last]
		c.lru = slices.Delete(c.lru, last, last+1)
	}
	c.lru = slices.Insert(c.lru, 0, l)
	c.mu.Unlock()
	if old != nil {
		old.mu.Lock() // it may be read ahead
		c.done(old)
	}
}

// done takes back a listing that nobody goes on with.
func (c *listings) done(l *listing) {
	c.close(l)
	l.mu.Unlock()
}

// drop ends the listings of a directory that are kept, all there are if n is nil. When it returns, none of them is being read ahead.
func (c *listings) drop(n *node) {
	c.mu.Lock()
	var old []*listing
	c.lru = slices.DeleteFunc(c.lru, func(l *listing) bool {
		gone := n == nil || l.node == n
		if gone {
			old = append(old, l)
		}
		return gone
	})
	c.mu.Unlock()
	for _, l := range old {
		l.mu.Lock()
		c.done(l)
	}
}

// giveListed notes that the kernel is given entries of the directory n, which it may keep, and go on with for as long as somebody has not listed all of n.
func (n *node) giveListed() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.given = 1
}

// changedIn is called when entries of d have changed, before the kernel hears of it. Whoever begins to list d afterwards is to find the change, but may go on where somebody is now
// who began before: with what that one has read ahead, and, since the kernel keeps what it has listed before it has all of it, with what is kept there. Whether somebody has begun is
// not to be told from the listings that are kept here, so the kernel drops what it was given since it did so last.
func (f *FS) changedIn(d *dir) {
	f.listings.drop(d.node)
	if d.node.ungiven() {
		_ = f.kernel.Invalidate(d.node.id, 0, 0)
	}
}

// close gives back what l holds.
func (c *listings) close(l *listing) {
	if l.fd >= 0 {
		unix.Close(l.fd)
		c.buffers.Put(l.buf)
		l.fd, l.buf, l.rest, l.names, l.space = -1, nil, nil, nil, nil
	}
}

// long returns the listing of the node called id that was used last, for readAhead; nil if it has enough, if it is in use again, or if there is none.
func (c *listings) long(id uint64) *listing {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.lru, func(l *listing) bool { return l.node.id == id })
	if i < 0 || !c.lru[i].mu.TryLock() {
		return nil
	}
	l := c.lru[i]
	if l.fd < 0 || l.end || l.ahead <= len(l.rest) {
		l.mu.Unlock()
		return nil
	}
	return l
}

// readAhead prepares what is asked next of a listing that long has returned: entries are read and names opened while the kernel and the program take the answer before.
// Names that take more than their entry, or do not authenticate, are left to the request. So are errors: it may do better, with more room.
func (f *FS) readAhead(l *listing) {
	defer l.mu.Unlock()
	l.read(l.ahead)
	if l.err != nil {
		l.end, l.err = false, nil
	}
	if f.plain {
		return
	}
	known := len(l.names)
	l.names = append(l.space[:0], l.names...)
	text := string(l.rest) // one for all sealed names
	for rest := l.rest; len(rest) > 0; known-- {
		e, size := parseDirent(rest)
		at := len(text) - len(rest) + direntName
		rest = rest[size:]
		if known > 0 {
			continue
		}
		name, err := f.names.Open(l.id, text[at:at+len(e.disk)])
		if err != nil {
			name = ""
		}
		l.names = append(l.names, name)
	}
	l.space = l.names
}

// read reads more entries, until there are size bytes of them, about.
func (l *listing) read(size int) {
	n := copy(l.buf[:], l.rest)
	more := 0
	err := again(func() (err error) {
		more, err = unix.Getdents(l.fd, l.buf[n:min(max(n, size)+maxDirent, listingSize)])
		return err
	})
	if err != nil {
		more = 0
	}
	l.rest, l.end, l.err = l.buf[:n+more], more == 0, err
}

// next returns the next entry, and its name if that is known. Unless there is one, l is at its end.
func (l *listing) next() (e dirent, size int, name string, ok bool) {
	if len(l.rest) == 0 && !l.end {
		l.read(listingSize)
	}
	if len(l.rest) == 0 {
		return dirent{}, 0, "", false
	}
	e, size = parseDirent(l.rest)
	if len(l.names) > 0 {
		name = l.names[0]
	}
	return e, size, name, true
}

// skip goes on behind the next entry, which has so many bytes.
func (l *listing) skip(size int) {
	l.rest = l.rest[size:]
	if len(l.names) > 0 {
		l.names = l.names[1:]
	}
}
