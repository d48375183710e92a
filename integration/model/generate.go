package model

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

const (
	segment  = 4096 // of the volume, in bytes: offsets near its multiples are interesting
	maxFile  = 40 * segment
	maxNodes = 60
	maxDepth = 3
	// maxPast bounds what the prediction must keep of a file that is not fsynced.
	maxPast = 48
)

// A generator makes up operations that suit the world as it is.
type generator struct {
	rng      *rand.Rand
	kills    bool
	buffered bool // no O_DIRECT
}

// next makes up one operation.
func (g *generator) next(w *world) op {
	for h, open := range w.handles {
		if open != nil && len(open.node.past) > maxPast {
			return op{verb: "fsync", h: h}
		}
	}
	o := op{h: g.handle(w), off: g.offset(), n: g.length(), seed: int64(g.rng.IntN(1 << 30))}
	switch p := g.rng.IntN(1000); {
	case p < 130:
		o.verb, o.flags = "open", g.openFlags()
		o.h = g.rng.IntN(handleCount)
		o.path = g.some(w, file)
	case p < 190:
		o.verb = "close"
	case p < 340:
		o.verb = "write"
		if g.rng.IntN(300) == 0 {
			o.n = int64(g.rng.IntN(1 << 21))
		}
	case p < 440:
		o.verb = "read"
	case p < 470:
		o.verb = "drop"
	case p < 510:
		o.verb, o.flags = "mapwrite", g.one("sync", "lazy")
	case p < 540:
		o.verb = "mapread"
	case p < 580:
		o.verb, o.n = "ftruncate", g.size()
	case p < 600:
		o.verb, o.path, o.n = "truncate", g.some(w, file), g.size()
	case p < 660:
		o.verb, o.flags = "fallocate", g.one("plain", "keep", "punch", "punch", "punch", "zero", "zerokeep")
	case p < 690:
		o.verb, o.g, o.at = "copy", g.handle(w), g.offset()
	case p < 730:
		o.verb, o.path, o.to = "rename", g.some(w, 0), g.some(w, 0)
		o.flags = g.one("plain", "plain", "plain", "noreplace", "exchange")
		if g.rng.IntN(2) == 0 {
			o.to = g.fresh(w)
		}
	case p < 745:
		o.verb, o.path, o.to = "link", g.some(w, file), g.fresh(w)
	case p < 775:
		o.verb, o.path = "unlink", g.some(w, file)
	case p < 785:
		o.verb, o.path, o.seed = "symlink", g.fresh(w), g.targetLength()
	case p < 810:
		o.verb, o.path = "mkdir", g.fresh(w)
	case p < 830:
		o.verb, o.path = "rmdir", g.some(w, directory)
	case p < 860:
		o.verb = g.one("fsync", "fdatasync")
	case p < 870:
		o.verb, o.path = "syncdir", g.some(w, directory)
	case p < 910:
		o.verb, o.path = "stat", g.some(w, 0)
	case p < 935:
		o.verb = "fstat"
	case p < 945:
		o.verb, o.path = "readlink", g.some(w, symlink)
	case p < 965:
		o.verb, o.path = "list", g.some(w, directory)
	case p < 975:
		o.verb, o.path, o.to = "setattr", g.some(w, 0), fmt.Sprint("v", g.rng.IntN(1000))
	case p < 985:
		o.verb, o.path = "getattr", g.some(w, 0)
	case p < 995:
		o.verb, o.path, o.n = "chmod", g.some(w, 0), int64(g.rng.IntN(0o100))<<3|0o600
	case p < 997:
		o.verb = "verify"
	case p == 997:
		o.verb = "remount"
	default:
		o.verb = "stat"
		o.path = g.some(w, file)
		if g.kills {
			o.verb = "kill"
		}
	}
	return o
}

func (g *generator) one(words ...string) string { return words[g.rng.IntN(len(words))] }

// handle picks one that is open, mostly.
func (g *generator) handle(w *world) int {
	var open []int
	for i, h := range w.handles {
		if h != nil {
			open = append(open, i)
		}
	}
	if len(open) == 0 || g.rng.IntN(100) == 0 {
		return g.rng.IntN(handleCount)
	}
	return open[g.rng.IntN(len(open))]
}

func (g *generator) openFlags() string {
	flags := []string{g.one("ro", "rw", "rw", "rw", "wo")}
	if g.rng.IntN(2) == 0 {
		flags = append(flags, "creat")
		if g.rng.IntN(6) == 0 {
			flags = append(flags, "excl")
		}
	}
	if flags[0] != "ro" {
		for _, f := range []struct {
			word  string
			oneIn int
		}{{"trunc", 8}, {"append", 6}, {"direct", 10}, {"sync", 20}} {
			if g.rng.IntN(f.oneIn) == 0 && !(g.buffered && f.word == "direct") {
				flags = append(flags, f.word)
			}
		}
	}
	return strings.Join(flags, ",")
}

// offset is near the boundary of a segment, or anywhere.
func (g *generator) offset() int64 {
	segments := int64(g.rng.IntN(maxFile / segment))
	if g.rng.IntN(3) == 0 {
		segments = int64(g.rng.IntN(4))
	}
	switch g.rng.IntN(4) {
	case 0:
		return segments * segment
	case 1:
		return max(segments*segment+int64(g.rng.IntN(5))-2, 0)
	case 2:
		return segments*segment + int64(g.rng.IntN(segment))
	}
	return int64(g.rng.IntN(100))
}

// length is at least 1.
func (g *generator) length() int64 {
	switch g.rng.IntN(5) {
	case 0:
		return 1 + int64(g.rng.IntN(10))
	case 1:
		return segment
	case 2:
		return max(int64(1+g.rng.IntN(8))*segment+int64(g.rng.IntN(5))-2, 1)
	case 3:
		return 1 + int64(g.rng.IntN(16*segment))
	}
	return 1 + int64(g.rng.IntN(segment))
}

func (g *generator) size() int64 {
	if g.rng.IntN(6) == 0 {
		return 0
	}
	return g.offset()
}

// targetLength of a symbolic link: the boundaries of its stored forms among them.
func (g *generator) targetLength() int64 {
	return []int64{1, 20, 255, 3000, 3039, 3040, 4095}[g.rng.IntN(7)]
}

// some picks a path that is there, mostly of the kind, or else one that is not.
func (g *generator) some(w *world, kind byte) string {
	var all []string
	w.walk(func(path string, n *node) {
		if kind == 0 || n.kind == kind {
			all = append(all, path)
		}
	})
	if len(all) == 0 || g.rng.IntN(12) == 0 {
		return g.fresh(w)
	}
	return all[g.rng.IntN(len(all))]
}

// fresh makes up a path, in a directory that is there; it may be taken already. Names that start with L are long ones.
func (g *generator) fresh(w *world) string {
	dirs := []string{""}
	count := 0
	w.walk(func(path string, n *node) {
		if n.kind == directory && strings.Count(path, "/") < maxDepth-1 {
			dirs = append(dirs, path+"/")
		}
		count++
	})
	names := []string{"a", "b", "c", "d", "e", "f", "La", "Lb"}
	if count > maxNodes {
		names = names[:1]
		dirs = dirs[:1]
	}
	return dirs[g.rng.IntN(len(dirs))] + names[g.rng.IntN(len(names))]
}
