package powercut

import "math"

// nothing is the object that a name is bound to while it does not exist.
const nothing = -1

// A span is the part of the record that an operation ran in: it cannot have had an effect on what was recorded before begin, and
// was over when end came.
type span struct {
	Seq, Begin, End int
	Clock           int64 // no modification time that it set to the present is earlier, in nanoseconds
}

// begun reports whether the operation can have left something at a cut.
func (s span) begun(cut int) bool { return s.Begin < cut }

// done reports whether the operation had returned when power failed.
func (s span) done(cut int) bool { return s.End <= cut }

// A kind is what an object is.
type kind int

const (
	file kind = iota
	directory
	symlink
)

// A change is a write, a truncation, a setting of times or a sync of a file.
type change struct {
	span
	what   changeKind
	off    int64
	data   []byte // of a write; of a sync, all of the file
	length int64  // of the file, afterwards
	mtime  int64  // likewise, in nanoseconds
}

type changeKind int

const (
	wrote changeKind = iota
	truncated
	touched
	synced
)

// A binding is what a name meant from an operation on.
type binding struct {
	span
	object int
}

// A slot is a name in a directory.
type slot struct {
	dir  int
	name string
}

// An object is a file, directory or symlink that the program made.
type object struct {
	kind    kind
	target  string   // of a symlink
	changes []change // of a file
	syncs   []span   // of a directory
	removed bool
	removal span // of its only name
}

// A history is all that a program did, and so what it may expect.
type history struct {
	objects []*object // the first is the root directory
	names   map[slot][]binding
	kept    map[slot][]span // promises for one name alone: Seq is the operation whose binding holds, End when it was promised
}

func newHistory() *history {
	return &history{objects: []*object{{kind: directory}}, names: map[slot][]binding{}, kept: map[slot][]span{}}
}

// promise is the sequence number of the last operation on a name that was promised before the cut.
func (h *history) promise(s slot, cut int) int {
	seq := math.MinInt
	for _, list := range [][]span{h.objects[s.dir].syncs, h.kept[s]} {
		for _, p := range list {
			if p.done(cut) {
				seq = max(seq, p.Seq)
			}
		}
	}
	return seq
}

// may lists what a name can be bound to after the cut; sure reports that this is promised.
func (h *history) may(s slot, cut int) (objects []int, sure bool) {
	promised := h.promise(s, cut)
	objects = []int{nothing}
	for _, b := range h.names[s] {
		switch {
		case b.Seq <= promised:
			objects = []int{b.object}
		case b.begun(cut):
			objects = append(objects, b.object)
		}
	}
	return objects, len(objects) == 1 && promised >= 0
}

// lasting lists the objects that must be found under some name after the cut: those promised and not removed since.
func (h *history) lasting(cut int) map[int]slot {
	must := map[int]slot{}
	for s, list := range h.names {
		promised := h.promise(s, cut)
		for i, b := range list {
			if b.object != nothing && b.Seq <= promised && (i+1 == len(list) || list[i+1].Seq > promised) &&
				!(h.objects[b.object].removed && h.objects[b.object].removal.begun(cut)) {
				must[b.object] = s
			}
		}
	}
	return must
}

// An outlook is what a file may hold after a cut.
type outlook struct {
	promised []byte   // as of the last sync
	synced   bool     // there was one
	mtime    int64    // as of then
	later    []change // that may have happened, wholly or in part
	min, max int64    // its length
}

func (o *object) outlook(cut int) (l outlook) {
	last := -1
	for i, c := range o.changes {
		if c.what == synced && c.done(cut) {
			last, l.promised, l.synced, l.mtime = i, c.data, true, c.mtime
		}
	}
	l.min = int64(len(l.promised))
	l.max = l.min
	for _, c := range o.changes[last+1:] {
		if c.what == synced || !c.begun(cut) {
			continue
		}
		l.later = append(l.later, c)
		l.max = max(l.max, c.length)
		if c.what == truncated {
			l.min = min(l.min, c.length)
		}
	}
	return l
}

// dated reports whether a modification time is the one promised, or of a later change.
func (l *outlook) dated(mtime int64) bool {
	if !l.synced || mtime == l.mtime {
		return true
	}
	for _, c := range l.later {
		if mtime == c.mtime || c.what != touched && c.Clock <= mtime && mtime <= c.mtime {
			return true
		}
	}
	return false
}

// A verdict says what is right to find at an offset.
type verdict int

const (
	good    verdict = iota
	strange         // neither promised nor ever written there
	lost            // promised, and not what was promised or written later
)

// judge judges the byte found at an offset within the file.
func (l *outlook) judge(off int64, got byte) verdict {
	promised := off < int64(len(l.promised))
	if promised && got == l.promised[off] || !promised && got == 0 {
		return good
	}
	for _, c := range l.later {
		if c.what == wrote && c.off <= off && off < c.off+int64(len(c.data)) && c.data[off-c.off] == got {
			return good
		}
		if c.what == truncated && c.length <= off && got == 0 {
			return good
		}
	}
	if promised {
		return lost
	}
	return strange
}
