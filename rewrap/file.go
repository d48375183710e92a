package rewrap

import (
	"errors"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/volume"
)

// errOtherKey says that a file got another data key while its header was looked at.
var errOtherKey = errors.New("its data key changed meanwhile")

// file changes the header of an open file, and reports whether it has one. path is where it was found; "" is for one that is open and may have no name.
func (r *run) file(f *journal.File, path string) bool {
	// Whoever is about to write its first bytes may have made the header before the volume's was changed: an operation under way is waited for.
	first, err := f.Head(1)
	if err == nil && len(first) == 0 || r.ctx.Err() != nil {
		return false
	}
	err = r.rewrite(f)
	for range 4 { // a file that is replaced all the time by one with another key is a straggler
		if !errors.Is(err, errOtherKey) && !errors.Is(err, volume.ErrForgotten) {
			break
		}
		err = r.rewrite(f)
	}
	if err != nil && r.ctx.Err() == nil && !r.j.Suspect(f.Fd()) { // what a crash tore before anybody synced it reads as empty
		if path == "" {
			path = f.Path()
		}
		r.straggler(path, err)
	}
	return true
}

func (r *run) straggler(path string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bad[path] = err.Error()
}

// rewrite changes the header of f. Calls at CMKs, if any, are made beforehand; the header is read again once nobody else can change it.
func (r *run) rewrite(f *journal.File) error {
	n := r.v.Header().Size
	h, err := r.header(f)
	if err == nil && h != nil && r.v.Header().PerFile { // whoever meets the file under another of its names must not have its data key wrapped as well
		turn := &r.turns[int(h.KeyID[0])%len(r.turns)]
		turn.Lock()
		defer turn.Unlock()
		h, err = r.header(f)
	}
	if err != nil || h == nil {
		return err
	}
	target, err := r.edks(h)
	if err != nil || equal(h.EDKs, target) {
		return err
	}
	if r.o.DryRun {
		_, err := r.v.Reseal(h, target)
		r.rewrapped.Add(1)
		return err
	}
	key := h.KeyID
	return f.Patch(n, func(old []byte) ([]byte, error) {
		if len(old) == 0 {
			return nil, nil // cut to nothing meanwhile
		}
		h, err := r.headerNow(old, key)
		if err != nil || equal(h.EDKs, target) {
			return nil, err
		}
		b, err := r.v.Reseal(h, target)
		if err == nil {
			r.rewrapped.Add(1)
		}
		return b, err
	})
}

// header reads and authenticates the header of f, nil if it has none. CMKs are asked for a data key that is not known.
func (r *run) header(f *journal.File) (*header.Header, error) {
	raw, err := f.Head(r.v.Header().Size)
	if err != nil || len(raw) == 0 {
		return nil, err
	}
	return r.v.FileHeader(r.ctx, raw)
}

// headerNow authenticates a header without asking any CMK.
func (r *run) headerNow(raw []byte, key header.ID) (*header.Header, error) {
	h, err := header.Parse(raw)
	if err != nil {
		return nil, err
	}
	if h.KeyID != key {
		return nil, errOtherKey
	}
	return r.v.FileHeader(r.ctx, raw)
}
