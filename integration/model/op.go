package model

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
)

// An op is one operation. Which fields count is in [operands].
type op struct {
	verb     string
	path, to string
	h, g     int   // handles
	off, n   int64 // bytes
	at       int64 // a second offset
	flags    string
	seed     int64 // of what is written
}

// operands says what follows a verb on its line: paths (p, t), handles (h, g), offsets (o, a), a length (n), a seed (s), words (f).
func operands(verb string) string {
	switch verb {
	case "open": // f: ro, rw or wo, and creat, excl, trunc, append, direct, sync, joined by commas
		return "hpf"
	case "close", "fsync", "fdatasync", "fstat", "drop": // drop: from the page cache
		return "h"
	case "read", "mapread":
		return "hon"
	case "write":
		return "hons"
	case "mapwrite": // f: sync or lazy
		return "honsf"
	case "ftruncate":
		return "hn"
	case "truncate":
		return "pn"
	case "fallocate": // f: plain, keep, punch, zero, zerokeep
		return "honf"
	case "copy": // from h at o to g at a
		return "hoagn"
	case "rename": // f: plain, noreplace, exchange
		return "ptf"
	case "link", "setattr":
		return "pt"
	case "symlink": // s: length of the target
		return "ps"
	case "unlink", "mkdir", "rmdir", "stat", "readlink", "list", "syncdir", "getattr":
		return "p"
	case "chmod":
		return "pn"
	case "verify", "remount", "kill":
		return ""
	}
	return "?"
}

// String is the line of the operation.
func (o op) String() string {
	line := []string{o.verb}
	for _, c := range operands(o.verb) {
		switch c {
		case 'p':
			line = append(line, o.path)
		case 't':
			line = append(line, o.to)
		case 'h':
			line = append(line, strconv.Itoa(o.h))
		case 'g':
			line = append(line, strconv.Itoa(o.g))
		case 'o':
			line = append(line, strconv.FormatInt(o.off, 10))
		case 'a':
			line = append(line, strconv.FormatInt(o.at, 10))
		case 'n':
			line = append(line, strconv.FormatInt(o.n, 10))
		case 's':
			line = append(line, strconv.FormatInt(o.seed, 10))
		case 'f':
			line = append(line, o.flags)
		}
	}
	return strings.Join(line, " ")
}

// parse reads the line of an operation.
func parse(line string) (o op, err error) {
	words := strings.Fields(line)
	o.verb = words[0]
	kinds := operands(o.verb)
	if len(words)-1 != len(kinds) || kinds == "?" {
		return o, fmt.Errorf("model: bad operation %q", line)
	}
	number := func(word string) int64 {
		n, e := strconv.ParseInt(word, 10, 64)
		if e != nil {
			err = fmt.Errorf("model: bad number in %q", line)
		}
		return n
	}
	slot := func(word string) int {
		n := number(word)
		if n < 0 || n >= handleCount {
			err = fmt.Errorf("model: bad handle in %q", line)
			return 0
		}
		return int(n)
	}
	for i, c := range kinds {
		word := words[i+1]
		switch c {
		case 'p':
			o.path = word
		case 't':
			o.to = word
		case 'h':
			o.h = slot(word)
		case 'g':
			o.g = slot(word)
		case 'o':
			o.off = number(word)
		case 'a':
			o.at = number(word)
		case 'n':
			o.n = number(word)
		case 's':
			o.seed = number(word)
		case 'f':
			o.flags = word
		}
	}
	return o, err
}

// A Script is a sequence of operations. As text, it has one to a line; empty lines and what follows a # do not count.
type Script []op

// Parse reads a script.
func Parse(r io.Reader) (s Script, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if strings.TrimSpace(line) == "" {
			continue
		}
		o, err := parse(line)
		if err != nil {
			return nil, err
		}
		s = append(s, o)
	}
	return s, lines.Err()
}

// String is the script as text.
func (s Script) String() string {
	var b strings.Builder
	for _, o := range s {
		fmt.Fprintln(&b, o)
	}
	return b.String()
}

// content is the n bytes that a write with a seed writes.
func content(seed, n int64) []byte {
	rng := rand.NewPCG(uint64(seed), 1)
	p := make([]byte, n+8)
	for i := int64(0); i < n; i += 8 {
		v := rng.Uint64() | 0x0101010101010101 // no zeros: they would pass for holes
		for j := range int64(8) {
			p[i+j] = byte(v >> (8 * j))
		}
	}
	return p[:n]
}
