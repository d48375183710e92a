package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/filecrypt"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/sdkformat"
)

func decryptCommand() *cli.Command {
	return &cli.Command{
		Name:            "decrypt",
		Usage:           "decrypt a file without a mount",
		ArgsUsage:       "IN OUT",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Description: "IN is a ciphertext file of any volume, what encrypt has made, or a message of the clouds' encryption SDKs; - is standard input.\n" +
			"OUT is a file that must not exist and appears when all of IN is authenticated, or - for standard output: what is written there is\n" +
			"authenticated, but only exit code 0 says that it is all.\n" +
			"Example: kmsfs decrypt --cmk local:/etc/kmsfs/cmk report.pdf.kmsfs report.pdf",
		Flags: []cli.Flag{
			cmkFlag("trust `CMK` (repeatable); default: what this machine has noted for the volume that IN is in, and the configuration file"),
			contextFlag("refuse IN unless its encryption context has `KEY=VALUE` (repeatable)"),
			&cli.StringFlag{Name: "format", Usage: "read `F`: kmsfs, alibaba, alibaba-stream, huawei or huawei-stream", DefaultText: "found out"},
			&cli.BoolFlag{Name: "allow-unauthenticated", Usage: "decrypt messages of CBC and CTR, too, which whoever could write them may have changed"},
			&cli.StringFlag{Name: "raw-key", Usage: "open messages of raw keyrings of Huawei Cloud's SDK with the master key in `FILE`: hex digits, or PKCS #8 in PEM"},
			forceFlag(), configFlag(), endpointFlag(),
		},
		Action: doDecrypt,
	}
}

// A decryption is what the command line asks decrypt for.
type decryption struct {
	trust
	format          string // empty to find out
	context         map[string]string
	unauthenticated bool
	raw             *sdkformat.RawKey // nil for none
}

func doDecrypt(c *cli.Context) error {
	args, err := operands(c, "IN", "OUT")
	if err != nil {
		return err
	}
	d, err := newDecryption(c)
	if err != nil {
		return err
	}
	return transfer(c, args, d.prepare)
}

// newDecryption collects and checks the command line and the configuration.
func newDecryption(c *cli.Context) (*decryption, error) {
	conf, err := loadConfig(c.String("config"))
	if err != nil {
		return nil, err
	}
	d := &decryption{format: c.String("format"), unauthenticated: c.Bool("allow-unauthenticated")}
	if c.IsSet("format") {
		if _, err := parseFormat(d.format); err != nil {
			return nil, err
		}
	}
	if d.context, err = contextOf(c); err != nil {
		return nil, err
	}
	if path := c.String("raw-key"); path != "" {
		if d.raw, err = readRawKey(path); err != nil {
			return nil, err
		}
	}
	d.trust, err = newTrust(c, mountOptions{}, conf)
	return d, err
}

// maxRawKey bounds the size of a file with a raw key, in bytes.
const maxRawKey = 64 << 10

// readRawKey reads the master key of a raw keyring, which must not be open to others.
func readRawKey(path string) (*sdkformat.RawKey, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, fail(exitCMK, "--raw-key: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fail(exitCMK, "--raw-key %s has mode %04o: others can read or change it; run: chmod 600 %s", path, st.Mode().Perm(), path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxRawKey))
	defer clear(text)
	if err != nil {
		return nil, err
	}
	k, err := sdkformat.ParseRawKey(text)
	if err != nil {
		return nil, fail(exitCMK, "--raw-key %s: %w", path, err)
	}
	return k, nil
}

// prepare finds out what in is and unwraps its data key, and returns what decrypts it.
func (d *decryption) prepare(c *cli.Context, in *input, _ string) (open func(*output) error, err error) {
	prefix, err := in.peek()
	if err != nil {
		return nil, err
	}
	switch {
	case len(prefix) == 0 && (d.format == "" || d.format == ownFormat):
		// The ciphertext of nothing is nothing, docs/format.md section 3.
		return func(*output) error { return nil }, d.checkContext(nil)
	case d.format == ownFormat || d.format == "" && header.Begins(prefix):
		return d.prepareOwn(c, in, prefix)
	}
	return d.prepareMessage(c, in, prefix)
}

// checkContext refuses an encryption context that lacks what the command line demands. Nobody has authenticated it yet; if it is another one, the
// header does not authenticate.
func (d *decryption) checkContext(ec keyring.EncryptionContext) error {
	for k, v := range d.context {
		if got, ok := ec[k]; !ok || got != v {
			return fmt.Errorf("its encryption context has no %s=%s", k, v)
		}
	}
	return nil
}

// prepareOwn unlocks a file of kmsfs's own format, and returns what decrypts it.
func (d *decryption) prepareOwn(c *cli.Context, in *input, prefix []byte) (func(*output) error, error) {
	h, err := header.Parse(prefix)
	if err != nil {
		return nil, err
	}
	if err := d.checkContext(h.Context); err != nil {
		return nil, err
	}
	cmks, err := d.trustedFor(in)
	if err != nil {
		return nil, err
	}
	k, failures := d.keyrings.any(cmks)
	f, err := filecrypt.Unlock(c.Context, h, k)
	if err := d.explain(c, err, k, failures, cmksOf(h.EDKs)); err != nil {
		return nil, err
	}
	return func(out *output) error {
		in.bar = out.progress(c, in.size)
		v := blockcrypt.Visitor{
			Data: func(_ int64, p []byte) error {
				_, err := out.Write(p)
				return err
			},
			Hole: func(_, n int64) error { return out.skip(n) },
		}
		if in.size >= 0 {
			return f.DecryptSparse(in, in.size, v)
		}
		if _, err := in.r.Discard(h.Size); err != nil {
			return err
		}
		return f.Decrypt(in, v)
	}, nil
}

// prepareMessage unlocks a message of an encryption SDK, and returns what decrypts it.
func (d *decryption) prepareMessage(c *cli.Context, in *input, prefix []byte) (func(*output) error, error) {
	m, err := d.parse(in, prefix)
	if err != nil {
		return nil, err
	}
	if !m.Authenticated() && !d.unauthenticated {
		return nil, fmt.Errorf("%w (%v): whoever could write it may have chosen what it decrypts to\nhint: --allow-unauthenticated decrypts it all the same", sdkformat.ErrUnauthenticated, m)
	}
	if err := d.checkContext(m.Context); err != nil {
		return nil, err
	}
	dk, err := d.unwrap(c, m, in)
	if err != nil {
		return nil, err
	}
	return func(out *output) error {
		defer dk.Wipe()
		return openMessage(c, m, in, out, dk)
	}, nil
}

// unwrap returns the data key of a message, whose header it verifies.
func (d *decryption) unwrap(c *cli.Context, m *sdkformat.Message, in *input) (keyring.DataKey, error) {
	var failures []error
	if d.raw != nil {
		dk, err := d.raw.Unwrap(m)
		if err == nil {
			return dk, nil
		}
		failures = append(failures, errors.New("the key of --raw-key opens none of its wrapped keys"))
	} else if m.Raw() {
		failures = append(failures, errors.New("a raw keyring has wrapped its data key; name its master key with --raw-key FILE"))
	}
	cmks, err := d.trustedFor(in)
	if err != nil {
		return nil, err
	}
	cmks = slices.DeleteFunc(slices.Clone(cmks), func(cmk string) bool { return !strings.HasPrefix(cmk, schemeOf(m.Format)+":") })
	k, more := d.keyrings.sdk(cmks, m.KeySize(), m.Context)
	dk, err := keyring.DecryptVerified(c.Context, k, m.EDKs(cmks), nil, m.Verify)
	return dk, d.explain(c, err, k, append(failures, more...), m.Names())
}

// parse reads the message that begins with prefix.
func (d *decryption) parse(in *input, prefix []byte) (*sdkformat.Message, error) {
	if d.format == "" {
		size := in.size
		if size < 0 && len(prefix) < sdkformat.MaxPrefix {
			size = int64(len(prefix)) // that is all
		}
		m, err := sdkformat.Detect(prefix, size)
		if errors.Is(err, sdkformat.ErrFormat) {
			err = fmt.Errorf("%w; it is no ciphertext of kmsfs either", err)
		}
		return m, err
	}
	f, err := parseFormat(d.format)
	if err != nil {
		return nil, err
	}
	return sdkformat.Parse(f, prefix)
}

// openMessage decrypts a message that was verified.
func openMessage(c *cli.Context, m *sdkformat.Message, in *input, out *output, dk keyring.DataKey) error {
	if m.Segmented() {
		in.bar = out.progress(c, in.size)
		if _, err := in.r.Discard(m.Prefix()); err != nil {
			return err
		}
		if m.Authenticated() {
			return m.OpenSegments(out, in, dk)
		}
		return m.OpenSegmentsUnauthenticated(out, in, dk)
	}
	// One tag at the end is over all of it, so it is read twice. A stream is kept meanwhile, as it is: encrypted.
	src, size := io.ReaderAt(in), in.size
	if size < 0 {
		spool, err := spoolFile(out.spoolDir())
		if err != nil {
			return err
		}
		defer spool.Close()
		if size, err = io.Copy(spool, in); err != nil {
			return err
		}
		src = spool
	} else {
		in.bar = out.progress(c, 2*size)
	}
	if m.Authenticated() {
		return m.Open(out, src, size, dk)
	}
	return m.OpenUnauthenticated(out, src, size, dk)
}

// trustedFor returns the CMKs that are trusted for a file: as for the volume that it is in, if it is in one.
func (d *decryption) trustedFor(in *input) ([]string, error) {
	if in.f != os.Stdin && len(d.named) == 0 {
		if dir, err := volumeOf(in.name); err == nil {
			v, err := openVolume(dir)
			if err != nil {
				return nil, err
			}
			defer v.Close()
			return d.trustedBy(v.Header().FileID)
		}
	}
	return d.trustedBy(header.ID{}) // which no volume has, and so no record
}

// explain says what an unwrap failed with, given what is wrong with other CMKs, and the names of those that the file has.
func (d *decryption) explain(c *cli.Context, err error, k *failover.Keyring, failures []error, names []string) error {
	if err == nil {
		warnFailed(c.App.ErrWriter, k)
		return nil
	}
	if code := exitCode(err); code != exitCMK {
		return err
	}
	if errors.Is(err, keyring.ErrNoMatch) { // says no more than the hint
		err = errors.New("no CMK that may open it is trusted on this machine")
	}
	failures = append(failures, err)
	if others := slices.DeleteFunc(names, func(cmk string) bool { return hasCMK(k, cmk) }); len(others) > 0 {
		failures = append(failures, opensHint("it", others))
	}
	return fail(exitCMK, "%w", errors.Join(failures...))
}
