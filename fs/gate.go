package fs

import (
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/journal"
)

// Stop refuses, with EACCES, every request for the content of a file until Resume. What the kernel has cached of it is dropped, as far as it lets go: pages that a program
// has mapped and locked, or reads that are under way, may stay. Names, attributes and symbolic links are served on, and so is the sync of what was written before.
func (s *Server) Stop() {
	s.fs.stopped.Store(true)
	s.fs.nodes.each(func(n *node) {
		if n.kind == unix.DT_REG {
			n.ungiven()
			_ = s.fs.kernel.Invalidate(n.id, 0, 0) // it may have been forgotten meanwhile
		}
	})
}

// Resume ends what Stop began.
func (s *Server) Resume() { s.fs.stopped.Store(false) }

// A Status is the state of a mount.
type Status struct {
	Stopped bool           `json:"stopped"`    // contents are refused, see Server.Stop
	Open    int            `json:"open_files"` // files that programs have open
	Journal journal.Status `json:"journal"`
}

// Status returns the state of the mount.
func (s *Server) Status() Status {
	st := Status{Stopped: s.fs.stopped.Load(), Journal: s.fs.journal.Status()}
	s.fs.nodes.each(func(n *node) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.open != nil || n.deferred() > 0 {
			st.Open++
		}
	})
	return st
}
