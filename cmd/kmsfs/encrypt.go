package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/cipherdir"
	"github.com/kmsfs/kmsfs/filecrypt"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/sdkformat"
	"github.com/kmsfs/kmsfs/volume"
)

// ownFormat is the value of --format for that of a volume's files.
const ownFormat = "kmsfs"

func encryptCommand() *cli.Command {
	return &cli.Command{
		Name:            "encrypt",
		Usage:           "encrypt a file without a mount",
		ArgsUsage:       "IN OUT",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Description: "IN and OUT are files; - is standard input or output. OUT must not exist, and appears when it is complete.\n" +
			"Examples: kmsfs encrypt --cmk local:/etc/kmsfs/cmk report.pdf report.pdf.kmsfs\n" +
			"          tar c dir | kmsfs encrypt --cmk local:/etc/kmsfs/cmk - - | ssh host 'cat > dir.tar.kmsfs'\n" +
			"          kmsfs encrypt --format alibaba --cmk acs:kms:cn-hangzhou:1000000000000001:key/key-hzz00000000000000000000 a a.sdk",
		Flags: []cli.Flag{
			cmkFlag("wrap the data key under `CMK` (repeatable: any one decrypts)"),
			contextFlag("bind `KEY=VALUE` into every wrapped key (repeatable)"),
			&cli.StringFlag{Name: "algorithm", Usage: "seal with `A`: aes-256-gcm, aes-128-gcm or sm4-128-gcm", DefaultText: "aes-256-gcm"},
			&cli.StringFlag{Name: "format", Usage: "write `F`: kmsfs, or what the clouds' encryption SDKs read: alibaba, alibaba-stream, huawei, huawei-stream", DefaultText: "kmsfs"},
			&cli.IntFlag{Name: "segment-size", Usage: "kmsfs: seal `BYTES` at a time, a power of two from 4096 to 65536", DefaultText: "4096, or that of the volume that OUT is in"},
			&cli.IntFlag{Name: "header-size", Usage: "kmsfs: make the header `BYTES` long, as inspect shows it of a volume", DefaultText: "that of the volume that OUT is in, or of a new one"},
			forceFlag(), configFlag(), endpointFlag(),
		},
		Action: doEncrypt,
	}
}

func forceFlag() cli.Flag {
	return &cli.BoolFlag{Name: "force", Usage: "replace OUT if it exists"}
}

// An encryption is what the command line asks encrypt for.
type encryption struct {
	volume.Params
	headerSize int
	format     sdkformat.Format // 0 for kmsfs's own
	cmks       []string
	keyrings   *keyrings
}

func doEncrypt(c *cli.Context) error {
	args, err := operands(c, "IN", "OUT")
	if err != nil {
		return err
	}
	e, err := newEncryption(c)
	if err != nil {
		return err
	}
	if args[1] == "-" && isTerminal(os.Stdout) {
		return usagef("encrypt: ciphertext is not for a terminal\nhint: redirect it, or name a file OUT")
	}
	return transfer(c, args, e.prepare)
}

// newEncryption collects and checks the command line and the configuration.
func newEncryption(c *cli.Context) (*encryption, error) {
	conf, err := loadConfig(c.String("config"))
	if err != nil {
		return nil, err
	}
	e := &encryption{headerSize: c.Int("header-size")}
	if e.Params, err = params(c, conf); err != nil {
		return nil, err
	}
	if e.format, err = parseFormat(first(c.String("format"), ownFormat)); err != nil {
		return nil, err
	}
	t, err := newTrust(c, mountOptions{}, conf)
	if err != nil {
		return nil, err
	}
	e.keyrings, e.cmks = t.keyrings, t.named
	if len(e.cmks) == 0 {
		e.cmks = t.config
	}
	switch size := e.headerSize; {
	case len(e.cmks) == 0:
		return nil, usagef("encrypt needs at least one --cmk; create a local one with: kmsfs key new FILE")
	case len(e.cmks) > header.MaxEDKs:
		return nil, usagef("--cmk: %d CMKs; at most %d", len(e.cmks), header.MaxEDKs)
	case e.format != 0 && (c.IsSet("segment-size") || c.IsSet("header-size")):
		return nil, usagef("--segment-size and --header-size are for --format kmsfs")
	case c.IsSet("header-size") && (size < 512 || size > header.MaxSize || size%512 != 0):
		return nil, usagef("--header-size %d is not a multiple of 512 from 512 to %d", size, header.MaxSize)
	}
	if e.format != 0 {
		for _, cmk := range e.cmks {
			if !strings.HasPrefix(cmk, schemeOf(e.format)+":") {
				return nil, usagef("--format %v needs CMKs %s:kms:…, and not %s", e.format, schemeOf(e.format), cmk)
			}
		}
	}
	return e, nil
}

// fit gives a file that is made in a volume the segment size and the header length that it must have there, unless the command line says otherwise, and
// warns if it does not fit all the same. Nothing of the volume header is authenticated: the worst that a forged one does is a file that does not open there.
func (e *encryption) fit(c *cli.Context, name string) {
	dir, err := volumeOf(name)
	if err != nil {
		return
	}
	v, err := volume.Open(dir)
	if err != nil {
		return
	}
	defer v.Close()
	h := v.Header()
	if !c.IsSet("header-size") {
		e.headerSize = h.Size
	}
	if !c.IsSet("segment-size") {
		e.SegmentSize = h.SegmentSize
	}
	why := ""
	switch {
	case !h.PlaintextNames:
		why = "has sealed names"
	case h.Algorithm != e.Algorithm:
		why = "is of algorithm " + h.Algorithm.String()
	case !h.Context.Equal(e.Context):
		why = "has another encryption context"
	case h.SegmentSize != e.SegmentSize || h.Size != e.headerSize:
		why = "has another segment size or header length"
	case mountpointOf(v.Dir()) != "":
		why = "is mounted"
	default:
		return
	}
	fmt.Fprintf(c.App.ErrWriter, "kmsfs: warning: %s will not show as a file of the volume %s, which %s\n", name, v.Dir(), why)
}

// parseFormat reads the value of --format; 0 is kmsfs's own.
func parseFormat(name string) (sdkformat.Format, error) {
	names := []string{ownFormat}
	for _, f := range sdkformat.Formats() {
		names = append(names, f.String())
	}
	i := slices.Index(names, name)
	if i < 0 {
		return 0, usagef("--format %q is none of %s%s", name, strings.Join(names, ", "), didYouMean(name, names))
	}
	return sdkformat.Format(i), nil
}

// schemeOf is how URIs of CMKs begin that a format's messages are for.
func schemeOf(f sdkformat.Format) string {
	if f.OfAlibaba() {
		return cloud.Alibaba
	}
	return cloud.Huawei
}

// prepare makes and wraps a data key, and returns what encrypts in with it.
func (e *encryption) prepare(c *cli.Context, in *input, name string) (seal func(*output) error, err error) {
	if e.format == 0 {
		if name != "-" {
			e.fit(c, name)
		}
		return e.prepareOwn(c, in)
	}
	k, failures := e.keyrings.sdk(e.cmks, e.Algorithm.KeySize(), e.Context)
	if len(failures) > 0 {
		return nil, fail(exitCMK, "%w", errors.Join(failures...))
	}
	// The SDKs bound contexts otherwise than the keyring: k has the context.
	dk, edks, err := keyring.GenerateDataKey(c.Context, k, e.Algorithm.KeySize(), nil)
	if err != nil {
		return nil, err
	}
	m, err := sdkformat.New(e.format, sdkformat.Cipher(e.Algorithm), e.Context, edks, dk)
	if err != nil {
		return nil, err
	}
	return func(out *output) error {
		defer dk.Wipe()
		in.bar = barOf(c.App.ErrWriter, in.size)
		if !m.NeedsLength() || in.size >= 0 {
			return m.Seal(out, in, in.size, dk, nil)
		}
		spool, err := spoolFile(out.spoolDir())
		if err != nil {
			return err
		}
		defer spool.Close()
		return m.Seal(out, in, -1, dk, spool)
	}, nil
}

func (e *encryption) prepareOwn(c *cli.Context, in *input) (seal func(*output) error, err error) {
	var k *failover.Keyring
	if k, err = e.keyrings.all(e.cmks); err != nil {
		return nil, err
	}
	f, err := filecrypt.New(c.Context, filecrypt.Params{
		Algorithm: e.Algorithm, SegmentSize: e.SegmentSize, HeaderSize: e.headerSize, Context: e.Context,
	}, k)
	if err != nil {
		return nil, err
	}
	return func(out *output) error {
		in.bar = barOf(c.App.ErrWriter, in.size)
		if in.size < 0 || out.isStream() {
			return f.Encrypt(out, in)
		}
		return f.EncryptSparse(cipherdir.File{File: out.f}, in, in.size)
	}, nil
}
