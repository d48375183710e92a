package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/sdkformat"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:            "inspect",
		Usage:           "show the header of a ciphertext file or a message of an encryption SDK, or the facts of a volume; needs no key",
		ArgsUsage:       "FILE_OR_CIPHERDIR",
		Description:     "Example: kmsfs inspect --json /srv/cipher",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Flags:           []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}},
		Action:          doInspect,
	}
}

// facts is what inspect prints; scripts rely on the names of the JSON. Sizes are in bytes. Nothing is authenticated.
type facts struct {
	Path           string            `json:"path"`
	Kind           string            `json:"kind"`             // volume, file, message or empty
	Format         string            `json:"format,omitempty"` // of a message, as --format of decrypt has it
	FormatVersion  int               `json:"format_version,omitempty"`
	ID             string            `json:"id,omitempty"`
	Algorithm      string            `json:"algorithm,omitempty"`
	SegmentSize    int               `json:"segment_size,omitempty"`
	PlaintextNames bool              `json:"plaintext_names"`
	HeaderSize     int               `json:"header_size,omitempty"`
	HeaderUsed     int               `json:"header_used,omitempty"`
	KeyID          string            `json:"data_key_id,omitempty"`
	Context        map[string]string `json:"context,omitempty"`
	EDKs           []edkFacts        `json:"edks,omitempty"`
	PerFile        bool              `json:"data_key_per_file,omitempty"`
	Generation     uint64            `json:"generation,omitempty"` // of the data key of new files; of a volume header, the least that it may be
	Current        *currentFacts     `json:"current,omitempty"`    // of a volume whose data key was rotated
	Warning        string            `json:"warning,omitempty"`
	File           *fileFacts        `json:"file,omitempty"`
}

type edkFacts struct {
	CMK     string `json:"cmk"`
	Wrapped int    `json:"wrapped_size"`
}

// currentFacts are about the data key of new files.
type currentFacts struct {
	Generation uint64     `json:"generation"`
	KeyID      string     `json:"data_key_id"`
	EDKs       []edkFacts `json:"edks"`
}

// fileFacts are the sizes of a ciphertext file, which add up: size = header_size + hole_root_size + hole_map_size + seal_overhead + plaintext_size.
type fileFacts struct {
	Size          int64 `json:"size"`
	PlaintextSize int64 `json:"plaintext_size"`
	HoleRoot      int64 `json:"hole_root_size"`
	Segments      int64 `json:"segments"`
	SealOverhead  int64 `json:"seal_overhead"`
	MapSlots      int64 `json:"hole_map_slots"`
	MapSize       int64 `json:"hole_map_size"`
	ValidSize     bool  `json:"valid_size"`
}

func doInspect(c *cli.Context) error {
	args, err := operands(c, "FILE_OR_CIPHERDIR")
	if err != nil {
		return err
	}
	st, err := os.Stat(args[0])
	if errors.Is(err, os.ErrNotExist) {
		return fail(exitNotVolume, "%w", err)
	} else if err != nil {
		return err
	}
	var f facts
	if st.IsDir() {
		f, err = inspectVolume(args[0])
	} else {
		f, err = inspectFile(args[0], st)
	}
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, f)
	}
	f.print(c.App.Writer)
	return nil
}

func inspectVolume(dir string) (facts, error) {
	v, err := openVolume(dir)
	if err != nil {
		return facts{}, err
	}
	defer v.Close()
	f, err := headerFacts(v.Header())
	f.Path, f.Kind, f.Warning = v.Dir(), "volume", v.Warning()
	current, _ := v.Current() // what is wrong cannot be told without a key
	if current.Kind == header.Current {
		f.Current = &currentFacts{current.Generation, current.KeyID.String(), edksOf(current)}
	} else if f.Generation > 0 && f.Warning == "" {
		f.Warning = "the data key of new files is lost: neither .kmsfs/current nor its copy is there and whole"
	}
	return f, err
}

func inspectFile(path string, st os.FileInfo) (facts, error) {
	if !st.Mode().IsRegular() {
		return facts{}, fmt.Errorf("%s: %w: neither a file nor a directory", path, header.ErrFormat)
	}
	abs, err := filepath.Abs(path)
	if err != nil || st.Size() == 0 {
		return facts{Path: abs, Kind: "empty", File: &fileFacts{ValidSize: true}}, err
	}
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return facts{}, err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, max(header.MaxSize, sdkformat.MaxPrefix)))
	if err != nil {
		return facts{}, err
	}
	if !header.Begins(raw) {
		if m, err := sdkformat.Detect(raw, st.Size()); err == nil {
			return messageFacts(abs, m), nil
		} else if errors.Is(err, sdkformat.ErrAuth) {
			return facts{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	h, err := header.Parse(raw[:min(len(raw), header.MaxSize)])
	if err != nil {
		return facts{}, fmt.Errorf("%s: %w", path, err)
	}
	f, err := headerFacts(h)
	f.Path, f.Kind = abs, "file"
	switch {
	case h.Kind == header.Volume:
		f.Kind = "volume header"
	case h.Kind == header.Current:
		f.Kind = "current data key"
	}
	if h.Kind != header.File || err != nil {
		return f, err
	}
	l, err := blockcrypt.NewLayout(h.SegmentSize, h.Size)
	if err != nil {
		return f, err
	}
	plain, ok := l.PlainSize(st.Size())
	n := l.Segments(plain)
	f.File = &fileFacts{
		Size: st.Size(), PlaintextSize: plain, HoleRoot: l.Prologue() - int64(h.Size),
		Segments: n, SealOverhead: n * blockcrypt.Overhead,
		MapSlots: l.Maps(plain), MapSize: l.Maps(plain) * int64(h.SegmentSize+blockcrypt.Overhead), ValidSize: ok,
	}
	return f, nil
}

func headerFacts(h *header.Header) (facts, error) {
	used, err := h.Used()
	f := facts{
		FormatVersion: h.FormatVersion(), ID: h.FileID.String(), Algorithm: h.Algorithm.String(), SegmentSize: h.SegmentSize,
		PlaintextNames: h.PlaintextNames, HeaderSize: h.Size, HeaderUsed: used, KeyID: h.KeyID.String(), Context: h.Context,
		PerFile: h.PerFile, Generation: h.Generation, EDKs: edksOf(h),
	}
	return f, err
}

// messageFacts are about a message of an encryption SDK.
func messageFacts(path string, m *sdkformat.Message) facts {
	f := facts{Path: path, Kind: "message", Format: m.Format.String(), Algorithm: m.CipherName(), HeaderSize: m.Prefix(), HeaderUsed: m.Prefix(), Context: m.Context}
	for i, name := range m.Names() {
		f.EDKs = append(f.EDKs, edkFacts{name, len(m.Keys[i].Wrapped)})
	}
	if !m.Authenticated() {
		f.Warning = "the algorithm does not authenticate the content"
	}
	return f
}

func edksOf(h *header.Header) (list []edkFacts) {
	for _, e := range h.EDKs {
		list = append(list, edkFacts{e.CMK, len(e.Wrapped)})
	}
	return list
}

// harmless quotes text that could move a terminal's cursor: nobody has authenticated it.
func harmless(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` {
		return q
	}
	return s
}

func (f facts) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	defer w.Flush()
	row := func(name string, value any) { fmt.Fprintf(w, "%s\t%v\n", name, value) }
	row("path", f.Path)
	row("kind", f.Kind)
	if f.Kind == "empty" {
		row("size", "0 bytes: an empty file has no header yet")
		return
	}
	if f.Kind == "message" {
		row("format", f.Format)
		row("algorithm", f.Algorithm)
	} else {
		row("format version", f.FormatVersion)
		row("id", f.ID)
		row("algorithm", f.Algorithm)
		row("segment size", f.SegmentSize)
		if f.Kind != "file" {
			row("plaintext names", f.PlaintextNames)
		}
		row("data key id", f.KeyID)
	}
	for _, k := range slices.Sorted(maps.Keys(f.Context)) {
		row("context", harmless(k)+"="+harmless(f.Context[k]))
	}
	for _, e := range f.EDKs {
		row("wrapped by", fmt.Sprintf("%s (%d bytes)", harmless(e.CMK), e.Wrapped))
	}
	if f.PerFile {
		row("new files", "each gets a data key of its own")
	}
	if k := f.Current; k != nil {
		row("new files", fmt.Sprintf("data key %s, generation %d", k.KeyID, k.Generation))
		for _, e := range k.EDKs {
			row("  wrapped by", fmt.Sprintf("%s (%d bytes)", harmless(e.CMK), e.Wrapped))
		}
	} else if f.Generation > 0 {
		row("generation", f.Generation)
	}
	row("header", fmt.Sprintf("%d bytes, %d of them used", f.HeaderSize, f.HeaderUsed))
	if s := f.File; s != nil {
		if !s.ValidSize {
			row("WARNING", fmt.Sprintf("no file is %d bytes long: it was cut or extended", s.Size))
			return
		}
		row("plaintext", fmt.Sprintf("%d bytes in %d segments", s.PlaintextSize, s.Segments))
		row("size", fmt.Sprintf("%d = %d header + %d hole root + %d hole maps + %d sealing + %d plaintext",
			s.Size, f.HeaderSize, s.HoleRoot, s.MapSize, s.SealOverhead, s.PlaintextSize))
	}
	if f.Warning != "" {
		row("WARNING", f.Warning)
	}
}
