package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/fsck"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/manifest"
	"github.com/kmsfs/kmsfs/signature"
)

func signCommand() *cli.Command {
	return &cli.Command{
		Name:            "sign",
		Usage:           "sign a file, or a manifest of a whole volume, with a signing CMK of a KMS",
		ArgsUsage:       "FILE_OR_CIPHERDIR",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Description: "The signature of FILE is FILE.sig. The manifest of a volume, which must not be mounted, is CIPHERDIR.manifest, mode 0600: it has the plaintext paths.\n" +
			"kmsfs verify finds with it what was changed, rolled back, swapped, added or removed.\n" +
			"Example: kmsfs sign --cmk acs:kms:cn-hangzhou:1000000000000001:key/key-hzz00000000000000sign /srv/cipher",
		Flags: []cli.Flag{
			cmkFlag("sign with `CMK`, an asymmetric one whose usage is to sign and verify"),
			&cli.StringFlag{Name: "out", Usage: "write the signature or the manifest to `FILE`"},
			&cli.BoolFlag{Name: "sealed-paths", Usage: "leave the plaintext paths out of the manifest; no CMK but the signing one is needed then"},
			&cli.StringSliceFlag{Name: "trust", Usage: "trust `CMK` to open the volume for its plaintext paths (repeatable); default: what this machine has noted"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			configFlag(), endpointFlag(),
		},
		Action: doSign,
	}
}

// keyPublicCommand is "kmsfs key public".
func keyPublicCommand() *cli.Command {
	return &cli.Command{
		Name:      "public",
		Usage:     "print the public key of a signing CMK, for kmsfs verify --public-key",
		ArgsUsage: "CMK",
		Description: "The key is printed in PEM, as other programs read it, too.\n" +
			"Example: kmsfs key public acs:kms:cn-hangzhou:1000000000000001:key/key-hzz00000000000000sign > sign.pem",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Flags:           []cli.Flag{configFlag(), endpointFlag()},
		Action: func(c *cli.Context) error {
			args, err := operands(c, "CMK")
			if err != nil {
				return err
			}
			s, err := newSigning(c, args[0])
			if err != nil {
				return err
			}
			signer, err := s.signer(c.Context)
			if err != nil {
				return err
			}
			_, err = c.App.Writer.Write(signer.PublicKey().PEM())
			return err
		},
	}
}

// A signing is a signing CMK, and what is needed to call it.
type signing struct {
	trust
	ring *failover.Keyring // of the one CMK: it makes the calls again that may be made again
	cmk  *cloud.Keyring
}

// newSigning opens the signing CMK with a URI. Nothing is asked yet.
func newSigning(c *cli.Context, uri string) (*signing, error) {
	t, err := configuredTrust(c)
	if err != nil {
		return nil, err
	}
	if err := checkCMKs([]string{uri}); err != nil {
		return nil, err
	}
	k, err := t.keyrings.open(uri)
	if err != nil {
		return nil, fail(exitCMK, "CMK %s: %w", uri, err)
	}
	cmk, ok := k.(*cloud.Keyring)
	if !ok {
		return nil, usagef("CMK %s cannot sign: signatures need an asymmetric CMK that a KMS holds", uri)
	}
	return &signing{t, t.keyrings.join([]failover.CMK{k}), cmk}, nil
}

// signer asks the KMS whether the CMK can sign, and for its public key.
func (s *signing) signer(ctx context.Context) (signer *cloud.Signer, err error) {
	err = s.ring.Call(ctx, "look at the signing CMK", func(ctx context.Context) (err error) {
		signer, err = s.cmk.Signer(ctx)
		return err
	})
	return signer, hinted(err)
}

// sign signs a digest.
func (s *signing) sign(ctx context.Context, signer *cloud.Signer, digest []byte) (sig *signature.Signature, err error) {
	err = s.ring.Call(ctx, "sign", func(ctx context.Context) (err error) {
		sig, err = signer.Sign(ctx, digest)
		return err
	})
	return sig, hinted(err)
}

// signingCMK returns the one CMK of --cmk.
func signingCMK(c *cli.Context, what string) (string, error) {
	switch cmks := c.StringSlice("cmk"); len(cmks) {
	case 0:
		return "", usagef("%s needs a signing CMK: --cmk CMK", what)
	case 1:
		return cmks[0], nil
	default:
		return "", usagef("%s takes one signing CMK, not %s and %s", what, cmks[0], cmks[1])
	}
}

// signed is what sign prints as JSON.
type signed struct {
	Signature string `json:"signature"` // path of what was written
	CMK       string `json:"cmk"`
	Algorithm string `json:"algorithm"`
	Volume    string `json:"volume,omitempty"` // its ID
	SignedAt  string `json:"signed_at,omitempty"`
	Entries   int64  `json:"entries,omitempty"`
	Bytes     int64  `json:"bytes,omitempty"` // of ciphertext that was read
}

func doSign(c *cli.Context) error {
	args, err := operands(c, "FILE_OR_CIPHERDIR")
	if err != nil {
		return err
	}
	uri, err := signingCMK(c, "sign")
	if err != nil {
		return err
	}
	if c.IsSet("out") && c.String("out") == "" {
		return usagef("--out is empty")
	}
	s, err := newSigning(c, uri)
	if err != nil {
		return err
	}
	s.named = c.StringSlice("trust")
	if err := checkCMKs(s.named); err != nil {
		return err
	}
	st, err := os.Stat(args[0])
	if errors.Is(err, os.ErrNotExist) {
		return fail(exitNotVolume, "%w", err)
	} else if err != nil {
		return err
	}
	var done signed
	if st.IsDir() {
		done, err = s.signVolume(c, args[0])
	} else {
		done, err = s.signFile(c, args[0])
	}
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, done)
	}
	what := ""
	if done.Volume != "" {
		what = fmt.Sprintf(": volume %s, %d entries, %s", done.Volume, done.Entries, done.SignedAt)
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s%s\n", done.Signature, what)
	return err
}

// signFile writes the signature of a file.
func (s *signing) signFile(c *cli.Context, path string) (done signed, err error) {
	if c.Bool("sealed-paths") || len(s.named) > 0 {
		return done, usagef("%s is a file: --sealed-paths and --trust are for the manifest of a volume", path)
	}
	f, err := openRegular(path)
	if err != nil {
		return done, err
	}
	defer f.Close()
	text, err := noManifest(contextReader{c.Context, f})
	if errors.Is(err, errManifest) {
		return done, usagef("%s is a manifest, which only signing its volume signs: who signs it as a file does not look at the volume", path)
	} else if err != nil {
		return done, err
	}
	out, err := newSigned(first(c.String("out"), path+".sig"), 0o644, signature.Magic)
	if err != nil {
		return done, err
	}
	defer out.discard()
	signer, err := s.signer(c.Context)
	if err != nil {
		return done, err
	}
	h := signer.PublicKey().NewHash()
	if _, err := io.Copy(h, text); err != nil {
		return done, err
	}
	sig, err := s.sign(c.Context, signer, h.Sum(nil))
	if err != nil {
		return done, err
	}
	if _, err := out.Write(sig.Append(nil)); err != nil {
		return done, err
	}
	return signed{Signature: out.name, CMK: sig.CMK, Algorithm: string(sig.Algorithm)}, out.commit()
}

// errManifest says that a text is the beginning of a manifest.
var errManifest = errors.New("a manifest")

// noManifest returns a reader of all of r, unless that begins as a manifest does. What it has looked at is what it gives: a file may change meanwhile.
func noManifest(r io.Reader) (io.Reader, error) {
	text := bufio.NewReaderSize(r, 256<<10)
	start, err := text.Peek(len(manifest.Magic))
	switch {
	case string(start) == manifest.Magic:
		return nil, errManifest
	case err == io.EOF:
		return bytes.NewReader(start), nil
	case err != nil:
		return nil, err
	}
	return text, nil
}

// signVolume writes the signed manifest of a volume.
func (s *signing) signVolume(c *cli.Context, dir string) (done signed, err error) {
	if c.Bool("sealed-paths") && len(s.named) > 0 {
		return done, usagef("--trust is for plaintext paths, which --sealed-paths leaves out")
	}
	v, err := openVolume(dir)
	if err != nil {
		return done, err
	}
	defer v.Close()
	path, err := resolveParent(first(c.String("out"), v.Dir()+".manifest"))
	if err != nil {
		return done, err
	}
	if within(path, v.Dir()) {
		return done, usagef("the manifest %s would be in the volume; say where else with --out", path)
	}
	if err := lockVolume(c.Context, v); err != nil {
		return done, err
	}
	j, err := finishWrites(v)
	if err != nil {
		return done, err
	}
	defer j.Close()
	out, err := newSigned(path, 0o600, manifest.Magic)
	if err != nil {
		return done, err
	}
	defer out.discard()
	o := manifest.Options{Plain: !c.Bool("sealed-paths"), Suspect: j.Suspect}
	if o.Plain && !v.Header().PlaintextNames {
		k, err := s.unlock(c.Context, v)
		if err != nil {
			return done, fmt.Errorf("%w\nhint: the plaintext paths need the volume's data key: trust one of its CMKs with --trust, or leave them out with --sealed-paths", err)
		}
		warnFailed(c.App.ErrWriter, k)
	}
	signer, err := s.signer(c.Context)
	if err != nil {
		return done, err
	}
	bar := newBar(c.Context, c.App.ErrWriter, v)
	o.Progress = bar.counts()
	h := signer.PublicKey().NewHash()
	summary, err := manifest.Build(c.Context, v, time.Now(), o, io.MultiWriter(out, h), func(path, plain string, err error) {
		bar.clear()
		fmt.Fprintf(c.App.ErrWriter, "kmsfs: %s: %v\n", filepath.Join(v.Dir(), manifest.Quote(path)), err)
	})
	bar.clear()
	if errors.Is(err, manifest.ErrUnsound) {
		return done, fail(exitDamaged, "%s: %w; nobody should vouch for that: kmsfs fsck says more", v.Dir(), err)
	} else if err != nil {
		return done, fmt.Errorf("manifest of %s: %w", v.Dir(), err)
	}
	sig, err := s.sign(c.Context, signer, h.Sum(nil))
	if err != nil {
		return done, err
	}
	if _, err := out.Write(sig.Append(nil)); err != nil {
		return done, err
	}
	done = signed{out.name, sig.CMK, string(sig.Algorithm), summary.Volume.String(), summary.Time.Format(time.RFC3339), summary.Entries, summary.Bytes}
	return done, out.commit()
}

// counts is what moves the bar by numbers, nil if there is none.
func (b *bar) counts() func(entries, bytes int64) {
	progress := b.progress()
	if progress == nil {
		return nil
	}
	return func(entries, bytes int64) { progress(fsck.Progress{Entries: entries, Bytes: bytes}) }
}

// A contextReader reads until its context is done.
type contextReader struct {
	ctx context.Context
	io.Reader
}

// Read implements [io.Reader].
func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

// newSigned begins a file of a signature. What is at path must be nothing, or a file that begins with magic, which is replaced.
func newSigned(path string, mode os.FileMode, magic string) (*output, error) {
	switch old, err := openRegular(path); {
	case err == nil:
		start := make([]byte, len(magic))
		_, err = io.ReadFull(old, start)
		old.Close()
		if err != nil || string(start) != magic {
			return nil, usagef("%s is there, and is none of those that are replaced; say another place with --out", path)
		}
	case !errors.Is(err, os.ErrNotExist):
		return nil, usagef("%w; say another place with --out", err)
	}
	out, err := createFile(path, true)
	if err != nil {
		return nil, err
	}
	if err := out.f.Chmod(mode); err != nil {
		out.discard()
		return nil, err
	}
	return out, nil
}
