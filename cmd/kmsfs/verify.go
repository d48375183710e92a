package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/manifest"
	"github.com/kmsfs/kmsfs/reencrypt"
	"github.com/kmsfs/kmsfs/signature"
	"github.com/kmsfs/kmsfs/volume"
)

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name:            "verify",
		Usage:           "compare a file with its signature, or a volume with its signed manifest",
		ArgsUsage:       "SIGNATURE_OR_MANIFEST FILE_OR_CIPHERDIR",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Description: "The public key comes from the KMS (--cmk: one call) or from a file (--public-key: no network), never from what it verifies. No data key is needed.\n" +
			"Exit codes: 0 all is as it was signed, 4 something is not, 12 the signature does not hold, so that nothing is said about the rest, 7 the volume is in use.\n" +
			"Example: kmsfs verify --public-key sign.pem /srv/cipher.manifest /srv/cipher",
		Flags: []cli.Flag{
			cmkFlag("the signature must be of `CMK`, whose public key its KMS is asked for"),
			&cli.StringFlag{Name: "public-key", Usage: "verify with the public key in `FILE` (PEM), as kmsfs key public prints it"},
			&cli.BoolFlag{Name: "content", Usage: "compare neither modes nor owners nor extended attributes, which a copy may have lost"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			configFlag(), endpointFlag(),
		},
		Action: doVerify,
	}
}

// A verified is what verify prints as JSON.
type verified struct {
	CMK         string `json:"cmk"`        // as the signature says: it holds whatever that is, if the public key comes from a file
	PublicKey   string `json:"public_key"` // SHA-256 of its SubjectPublicKeyInfo
	Algorithm   string `json:"algorithm"`
	OK          bool   `json:"ok"`
	Volume      string `json:"volume,omitempty"` // its ID
	SignedAt    string `json:"signed_at,omitempty"`
	Entries     int64  `json:"entries,omitempty"` // in the manifest
	Bytes       int64  `json:"bytes,omitempty"`   // of ciphertext that was read
	Differences int64  `json:"differences"`

	by string // who signed, for people
}

func doVerify(c *cli.Context) error {
	args, err := operands(c, "SIGNATURE_OR_MANIFEST", "FILE_OR_CIPHERDIR")
	if err != nil {
		return err
	}
	key, err := newKeySource(c)
	if err != nil {
		return err
	}
	f, err := openRegular(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	sig, body, err := signature.Split(f, st.Size())
	if err != nil {
		return fail(exitUnsigned, "%s: %w", args[0], err)
	}
	what, err := os.Stat(args[1])
	switch {
	case err != nil:
		return fail(exitNotVolume, "%w", err)
	case what.IsDir() && body == 0:
		return usagef("%s is the signature of a file, and %s is a directory", args[0], args[1])
	case !what.IsDir() && body > 0:
		return usagef("%s is the manifest of a volume, and %s is not a directory", args[0], args[1])
	}
	public, err := key(c.Context, sig)
	if err != nil {
		return err
	}
	r := &verified{CMK: sig.CMK, PublicKey: fmt.Sprintf("%x", public.Fingerprint()), Algorithm: string(sig.Algorithm)}
	if r.by = sig.CMK; c.String("public-key") != "" {
		r.by = "the key in " + c.String("public-key")
	}
	if body == 0 {
		return verifyFile(c, r, sig, public, args)
	}
	return verifyVolume(c, r, sig, public, io.NewSectionReader(f, 0, body), args)
}

// newKeySource returns what gives the public key that a signature is verified with: one that the user has named, by its CMK or as a file.
func newKeySource(c *cli.Context) (func(context.Context, *signature.Signature) (*signature.PublicKey, error), error) {
	path := c.String("public-key")
	if path == "" {
		uri, err := signingCMK(c, "verify")
		if err != nil {
			return nil, fmt.Errorf("%w\nhint: or name a file with its public key: --public-key FILE", err)
		}
		s, err := newSigning(c, uri)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, sig *signature.Signature) (key *signature.PublicKey, err error) {
			if sig.CMK != uri {
				return nil, fail(exitUnsigned, "the signature says that it is of %q, not of %s", sig.CMK, uri)
			}
			err = s.ring.Call(ctx, "get the public key", func(ctx context.Context) (err error) {
				key, err = s.cmk.PublicKey(ctx, sig.Version)
				return err
			})
			return key, hinted(err)
		}, nil
	}
	if len(c.StringSlice("cmk")) > 0 {
		return nil, usagef("--cmk and --public-key exclude each other")
	}
	f, err := openRegular(path)
	if err != nil {
		return nil, usagef("--public-key: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<16))
	if err != nil {
		return nil, err
	}
	key, err := signature.ParsePEM(text)
	if err != nil {
		return nil, usagef("--public-key %s: %w", path, err)
	}
	return func(context.Context, *signature.Signature) (*signature.PublicKey, error) { return key, nil }, nil
}

// holds checks a signature over a text.
func holds(ctx context.Context, sig *signature.Signature, key *signature.PublicKey, text io.Reader) error {
	h := key.NewHash()
	if _, err := io.Copy(h, contextReader{ctx, text}); err != nil {
		return err
	}
	return sig.Verify(key, h.Sum(nil))
}

func verifyFile(c *cli.Context, r *verified, sig *signature.Signature, key *signature.PublicKey, args []string) error {
	f, err := openRegular(args[1])
	if err != nil {
		return err
	}
	defer f.Close()
	err = holds(c.Context, sig, key, f)
	changed := errors.Is(err, signature.ErrChanged)
	switch {
	case errors.Is(err, signature.ErrForged), errors.Is(err, signature.ErrOtherKey):
		return fail(exitUnsigned, "%s: %w", args[0], err)
	case err != nil && !changed:
		return err
	}
	if r.OK = !changed; changed {
		r.Differences = 1
	}
	if c.Bool("json") {
		if err := printJSON(c.App.Writer, r); err != nil {
			return err
		}
	}
	if changed {
		return fail(exitDamaged, "%s is not what was signed", args[1])
	}
	if !c.Bool("json") {
		fmt.Fprintf(c.App.Writer, "%s is as it was signed by %s\n", args[1], r.by)
	}
	return nil
}

func verifyVolume(c *cli.Context, r *verified, sig *signature.Signature, key *signature.PublicKey, text *io.SectionReader, args []string) error {
	unsigned := func(err error) error { return fail(exitUnsigned, "%s: %w", args[0], err) }
	switch err := holds(c.Context, sig, key, text); {
	case errors.Is(err, signature.ErrChanged), errors.Is(err, signature.ErrForged), errors.Is(err, signature.ErrOtherKey):
		return unsigned(err)
	case err != nil:
		return err
	}
	v, j, err := lockedVolume(c, args[1])
	if err != nil {
		return err
	}
	defer v.Close()
	defer j.Close()
	// The text is read again. It must still be what was signed.
	if _, err := text.Seek(0, io.SeekStart); err != nil {
		return err
	}
	again := key.NewHash()
	in, err := manifest.NewReader(io.TeeReader(text, again))
	if err != nil {
		return unsigned(err)
	}
	out := newDifferences(c, v)
	bar := newBar(c.Context, c.App.ErrWriter, v)
	summary, n, err := manifest.Compare(c.Context, v, in, manifest.CompareOptions{Content: c.Bool("content"), Progress: bar.counts(), Suspect: j.Suspect}, func(d manifest.Difference) {
		bar.clear()
		out.tell(d)
	})
	bar.clear()
	switch {
	case errors.Is(err, manifest.ErrFormat):
		return unsigned(err)
	case errors.Is(err, manifest.ErrOtherVolume):
		return fail(exitDamaged, "%s: %w: that is %s", args[0], err, v.Dir())
	case err != nil:
		return fmt.Errorf("compare %s with %s: %w", v.Dir(), args[0], err)
	case sig.Verify(key, again.Sum(nil)) != nil:
		return unsigned(errors.New("it has changed while it was read"))
	}
	r.OK, r.Differences = n == 0, n
	r.Volume, r.SignedAt, r.Entries, r.Bytes = summary.Volume.String(), summary.Time.Format(time.RFC3339), summary.Entries, summary.Bytes
	if err := out.end(r); err != nil {
		return err
	}
	if n > 0 {
		return fail(exitDamaged, "%s is not what was signed on %s: %s", v.Dir(), r.SignedAt, counted(n))
	}
	return nil
}

func counted(n int64) string {
	if n == 1 {
		return "1 difference"
	}
	return fmt.Sprintf("%d differences", n)
}

// A difference is what verify prints of one as JSON.
type difference struct {
	Kind       manifest.Kind `json:"kind"`
	Ciphertext string        `json:"ciphertext"`          // absolute path
	Plaintext  string        `json:"plaintext,omitempty"` // path within the volume, as the manifest tells
	From       string        `json:"from,omitempty"`      // of what was swapped or moved: the ciphertext path that the manifest has it at
	Cause      string        `json:"cause,omitempty"`
}

// differences prints differences as they come: there may be as many as entries.
type differences struct {
	out  io.Writer
	json bool
	dir  string
	any  bool
	err  error
}

func newDifferences(c *cli.Context, v *volume.Volume) *differences {
	return &differences{out: c.App.Writer, json: c.Bool("json"), dir: v.Dir()}
}

func (p *differences) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.out, format, args...)
	}
}

func (p *differences) tell(d manifest.Difference) {
	if !p.json {
		sealed := manifest.Quote(filepath.Join(p.dir, d.Path))
		where, cause := sealed, ""
		if d.Plain != "" {
			where = fmt.Sprintf("%s (%s)", manifest.Quote(d.Plain), sealed)
		}
		if d.Cause != "" {
			cause = ": " + d.Cause
		}
		p.printf("%s: %s%s\n", where, d.Kind, cause)
		return
	}
	row := difference{d.Kind, filepath.Join(p.dir, d.Path), d.Plain, d.From, d.Cause}
	b, err := json.Marshal(row)
	if err != nil {
		panic("internal error: " + err.Error()) // it has strings only
	}
	if p.any {
		p.printf(",\n    %s", b)
	} else {
		p.printf("{\n  \"differences\": [\n    %s", b)
	}
	p.any = true
}

// end prints the summary.
func (p *differences) end(r *verified) error {
	if !p.json {
		if r.OK {
			p.printf("%s is as it was signed on %s by %s: %d entries\n", p.dir, r.SignedAt, r.by, r.Entries)
		}
		return p.err
	}
	b, err := json.MarshalIndent(r, "  ", "  ")
	if err != nil {
		panic("internal error: " + err.Error())
	}
	if p.any {
		p.printf("\n  ],\n")
	} else {
		p.printf("{\n  \"differences\": [],\n")
	}
	p.printf("  \"summary\": %s\n}\n", b)
	return p.err
}

// lockedVolume opens a volume that must not change meanwhile, and its journal. A copy of one that was live holds writes in its journal, which only
// a mount puts in place, and so do names that a re-encryption has left apart: what is planted there would show after the verification.
func lockedVolume(c *cli.Context, dir string) (v *volume.Volume, j *journal.Journal, err error) {
	if v, err = openVolume(dir); err != nil {
		return nil, nil, err
	}
	if err = lockVolume(c.Context, v); err == nil {
		if err = noneApart(v); err == nil {
			j, err = openIdle(v)
		}
	}
	if err != nil {
		v.Close()
		return nil, nil, err
	}
	return v, j, nil
}

// noneApart refuses a volume whose next mount would change names.
func noneApart(v *volume.Volume) error {
	if pending, err := reencrypt.Pending(v); err != nil || !pending {
		return err
	}
	return fail(exitInUse, "%s: a re-encryption was cut off, and .kmsfs/reencrypt has names that are still to be changed\nhint: mount it and unmount it", v.Dir())
}

// openIdle opens the journal of a volume, and refuses one with writes that are not in place.
func openIdle(v *volume.Volume) (*journal.Journal, error) {
	j, err := journal.Open(v.RootFd(), v.MetaFd(), journal.Options{ReadOnly: true, Logger: slog.New(slog.DiscardHandler)})
	if err == nil {
		return j, nil
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) && slices.Contains(storageErrors(), errno) {
		return nil, err
	}
	return nil, fail(exitInUse, "%s: %w\nhint: this is a copy of a mounted volume, or what a crash has left: mount it and unmount it, or copy it while it is not mounted", v.Dir(), err)
}
