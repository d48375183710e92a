package manifest

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kmsfs/kmsfs/header"
)

// Magic is the first line of a manifest.
const Magic = "kmsfs-manifest-1\n"

// maxLine bounds a line, in bytes. A path has less than half of it.
const (
	maxLine = 1 << 20
	maxPath = maxLine/2 - 512
)

const (
	timeFormat = "2006-01-02T15:04:05Z"
	typesKnown = "bcdflps"
)

// quote writes a path in printable ASCII without spaces: other bytes and the backslash are \ and two hex digits.
func quote(dst []byte, path string) []byte {
	for i := range len(path) {
		if c := path[i]; c > ' ' && c <= '~' && c != '\\' {
			dst = append(dst, c)
		} else {
			dst = append(dst, '\\')
			dst = hex.AppendEncode(dst, []byte{c})
		}
	}
	return dst
}

// Quote returns a path as manifests write it, which is safe to print.
func Quote(path string) string { return string(quote(nil, path)) }

// unquote is the inverse of quote; what else it accepts, comparing with quote refuses.
func unquote(s string) (string, bool) {
	if !strings.Contains(s, `\`) {
		return s, true
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b = append(b, s[i])
			continue
		}
		if i+3 > len(s) {
			return "", false
		}
		c, err := hex.DecodeString(s[i+1 : i+3])
		if err != nil {
			return "", false
		}
		b = append(b, c[0])
		i += 2
	}
	return string(b), true
}

// append appends the first lines.
func (h Head) append(dst []byte) []byte {
	paths := "sealed"
	if h.Plain {
		paths = "plain"
	}
	return fmt.Appendf(dst, "%svolume %s\nheader %x\ntime %s\npaths %s\n", Magic, h.Volume, h.Header, h.Time.UTC().Format(timeFormat), paths)
}

// append appends an entry's line, of which there is one spelling.
func (e *Entry) append(dst []byte, plain bool) []byte {
	dst = fmt.Appendf(dst, "%c %04o %d %d ", e.Type, e.Mode, e.UID, e.GID)
	dst = appendDigest(dst, e.Xattrs)
	switch e.Type {
	case File:
		dst = strconv.AppendInt(append(dst, ' '), e.Size, 10)
		dst = append(dst, ' ')
		if e.ID == (header.ID{}) {
			dst = append(dst, '-')
		} else {
			dst = hex.AppendEncode(dst, e.ID[:])
		}
		fallthrough
	case Link:
		dst = appendDigest(append(dst, ' '), e.Digest)
	case BlockDevice, CharDevice:
		dst = fmt.Appendf(dst, " %d:%d", e.Major, e.Minor)
	}
	dst = append(dst, ' ')
	if e.Path == "" {
		dst = append(dst, '.')
	}
	dst = quote(dst, e.Path)
	if plain {
		dst = append(dst, ' ')
		if e.Plain == "" {
			dst = append(dst, '-')
		}
		dst = quote(dst, e.Plain)
	}
	return append(dst, '\n')
}

func appendDigest(dst []byte, d Digest) []byte {
	if d == (Digest{}) {
		return append(dst, '-')
	}
	return hex.AppendEncode(dst, d[:])
}

// parseEntry is the inverse of append, for lines without their end.
func parseEntry(line []byte, plain bool) (*Entry, error) {
	f := strings.Split(string(line), " ")
	p := fields{rest: f}
	e := &Entry{}
	if t := p.next(); len(t) == 1 && strings.Contains(typesKnown, t) {
		e.Type = Type(t[0])
	} else {
		return nil, fmt.Errorf("%w: unknown type %.8q", ErrFormat, t)
	}
	e.Mode = uint32(p.number(8, 12))
	e.UID, e.GID = uint32(p.number(10, 32)), uint32(p.number(10, 32))
	e.Xattrs = p.digest()
	switch e.Type {
	case File:
		e.Size = int64(p.number(10, 63))
		p.hex(e.ID[:])
		e.Digest = p.digest()
	case Link:
		e.Digest = p.digest()
	case BlockDevice, CharDevice:
		major, minor, _ := strings.Cut(p.next(), ":")
		e.Major, e.Minor = uint32(p.parse(major, 10, 32)), uint32(p.parse(minor, 10, 32))
	}
	e.Path = p.path(".", "")
	if plain {
		e.Plain = p.path("-", "/")
	}
	// One spelling of each entry, and no fields too many: what is read must be what would be written.
	if p.bad || !slices.Equal(e.append(nil, plain), append(line, '\n')) {
		return nil, fmt.Errorf("%w: bad line of an entry", ErrFormat)
	}
	return e, nil
}

// fields reads the fields of a line, and notes if one is bad.
type fields struct {
	rest []string
	bad  bool
}

func (p *fields) next() string {
	if len(p.rest) == 0 {
		p.bad = true
		return ""
	}
	s := p.rest[0]
	p.rest = p.rest[1:]
	return s
}

func (p *fields) number(base, bits int) uint64 { return p.parse(p.next(), base, bits) }

func (p *fields) parse(s string, base, bits int) uint64 {
	n, err := strconv.ParseUint(s, base, bits)
	p.bad = p.bad || err != nil
	return n
}

func (p *fields) digest() (d Digest) {
	p.hex(d[:])
	return d
}

// hex reads exactly as many bytes as dst has, or a hyphen for none.
func (p *fields) hex(dst []byte) {
	s := p.next()
	if s == "-" {
		return
	}
	if len(s) != 2*len(dst) {
		p.bad = true
		return
	}
	_, err := hex.Decode(dst, []byte(s))
	p.bad = p.bad || err != nil
}

// path reads a path that begins with prefix, or none for the empty one. Its names are such as directories have.
func (p *fields) path(none, prefix string) string {
	s := p.next()
	if s == none {
		return ""
	}
	path, ok := unquote(s)
	rest, prefixed := strings.CutPrefix(path, prefix)
	if !ok || !prefixed || len(path) > maxPath {
		p.bad = true
		return ""
	}
	if prefix != "" && rest == "" {
		return path // the root
	}
	for name := range strings.SplitSeq(rest, "/") {
		if name == "" || name == "." || name == ".." || len(name) > 255 || strings.Contains(name, "\x00") {
			p.bad = true
		}
	}
	return path
}

// A Reader reads a manifest.
type Reader struct {
	in      *bufio.Reader
	head    Head
	last    string // path of the entry before
	entries int64
}

// NewReader reads the head of a manifest. The error wraps [ErrFormat], or is that of in.
func NewReader(in io.Reader) (*Reader, error) {
	r := &Reader{in: bufio.NewReaderSize(in, 64<<10)}
	values := make([]string, 0, 4)
	for i, name := range []string{strings.TrimSuffix(Magic, "\n"), "volume ", "header ", "time ", "paths "} {
		line, err := r.line()
		if err != nil {
			return nil, err
		}
		value, ok := strings.CutPrefix(string(line), name)
		switch {
		case !ok || i == 0 && value != "":
			return nil, fmt.Errorf("%w: line %d does not begin with %s", ErrFormat, i+1, name)
		case i > 0:
			values = append(values, value)
		}
	}
	p := fields{rest: values}
	p.hex(r.head.Volume[:])
	r.head.Header = p.digest()
	var err error
	r.head.Time, err = time.Parse(timeFormat, p.next())
	r.head.Plain = p.next() == "plain"
	again := r.head.append(nil)
	if want := fmt.Sprintf("%svolume %s\nheader %s\ntime %s\npaths %s\n", Magic, values[0], values[1], values[2], values[3]); err != nil || p.bad || string(again) != want {
		return nil, fmt.Errorf("%w: bad head", ErrFormat)
	}
	return r, nil
}

// Head returns what the manifest is of.
func (r *Reader) Head() Head { return r.head }

// Next returns the next entry, and [io.EOF] after the last one: the text ends there, and nothing is missing. Other errors are those of [NewReader].
func (r *Reader) Next() (*Entry, error) {
	line, err := r.line()
	if err != nil {
		return nil, err
	}
	if string(line) == fmt.Sprintf("end %d", r.entries) {
		if _, err := r.in.ReadByte(); err != io.EOF {
			return nil, fmt.Errorf("%w: something follows its end", ErrFormat)
		}
		return nil, io.EOF
	}
	e, err := parseEntry(line, r.head.Plain)
	if err != nil {
		return nil, fmt.Errorf("%w, entry %d", err, r.entries+1)
	}
	if r.entries > 0 && !before(r.last, e.Path) || r.entries == 0 && e.Path != "" {
		return nil, fmt.Errorf("%w: entry %d is out of order", ErrFormat, r.entries+1)
	}
	r.entries, r.last = r.entries+1, e.Path
	return e, nil
}

// line returns the next line without its end.
func (r *Reader) line() ([]byte, error) {
	var line []byte
	for {
		part, err := r.in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case err == io.EOF:
			return nil, fmt.Errorf("%w: it is cut", ErrFormat)
		case err != bufio.ErrBufferFull:
			return nil, err
		case len(line) > maxLine:
			return nil, fmt.Errorf("%w: a line of more than %d bytes", ErrFormat, maxLine)
		}
	}
}
