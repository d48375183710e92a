package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/local"
	"github.com/kmsfs/kmsfs/volume"
)

func keyCommand() *cli.Command {
	return &cli.Command{
		Name:            "key",
		Usage:           "manage local CMK files, and fetch public keys",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Subcommands: []*cli.Command{{
			Name:            "new",
			Usage:           "create a local CMK in FILE, mode 0600",
			ArgsUsage:       "FILE",
			Description:     "Example: kmsfs key new /etc/kmsfs/cmk",
			HideHelpCommand: true,
			OnUsageError:    usageError,
			Action: func(c *cli.Context) error {
				args, err := operands(c, "FILE")
				if err != nil {
					return err
				}
				k, err := local.Generate(args[0])
				if errors.Is(err, os.ErrExist) {
					return fmt.Errorf("%w; a CMK is never overwritten", err)
				} else if err != nil {
					return err
				}
				fmt.Fprintln(c.App.Writer, k.CMK())
				return nil
			},
		}, keyPublicCommand()},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return unknownCommand(c.Command.Subcommands, c.Args().First())
			}
			return usagef("key needs a command: kmsfs key new FILE, or kmsfs key public CMK")
		},
	}
}

func initCommand() *cli.Command {
	return &cli.Command{
		Name:            "init",
		Usage:           "create a volume",
		ArgsUsage:       "CIPHERDIR",
		Description:     "Example: kmsfs init --cmk local:/etc/kmsfs/a --cmk local:/media/usb/b /srv/cipher",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Flags: []cli.Flag{
			cmkFlag("wrap the data key under `CMK` (repeatable: any one opens the volume)"),
			contextFlag("bind `KEY=VALUE` into every wrapped key (repeatable)"),
			&cli.StringFlag{Name: "algorithm", Usage: "seal with `A`: aes-256-gcm, aes-128-gcm or sm4-128-gcm", DefaultText: "aes-256-gcm"},
			&cli.IntFlag{Name: "segment-size", Usage: "seal `BYTES` at a time, a power of two from 4096 to 65536", DefaultText: "4096"},
			&cli.BoolFlag{Name: "plaintext-names", Usage: "store names as they are"},
			&cli.StringFlag{Name: "data-key", Usage: "`volume`: files share one; per-file: each has its own, which costs calls at the CMKs", DefaultText: "volume"},
			configFlag(), endpointFlag(),
		},
		Action: doInit,
	}
}

func doInit(c *cli.Context) error {
	args, err := operands(c, "CIPHERDIR")
	if err != nil {
		return err
	}
	t, err := configuredTrust(c)
	if err != nil {
		return err
	}
	p, err := params(c, t.settings)
	if err != nil {
		return t.settings.hide(err)
	}
	cmks := t.named
	if len(cmks) == 0 {
		cmks = t.config
	}
	if len(cmks) == 0 {
		return usagef("init needs at least one --cmk; create a local one with: kmsfs key new FILE")
	}
	if len(cmks) > header.MaxEDKs {
		return usagef("--cmk: %d CMKs; at most %d", len(cmks), header.MaxEDKs)
	}
	k, err := t.keyrings.all(cmks)
	if err != nil {
		return err
	}
	p.CMKInfo = func() []byte { return t.keyrings.info(cmks) }
	h, err := volume.Create(c.Context, args[0], p, k)
	if err != nil {
		return fmt.Errorf("init %s: %w", args[0], hinted(err))
	}
	if t.keyrings.onlyRSA(cmks) {
		fmt.Fprintln(c.App.ErrWriter, "kmsfs: warning: every CMK is an RSA one: whoever has their public keys can make EDKs, so that a header proves less about who wrote it; docs/kms.md says what follows")
	}
	for _, w := range t.keyrings.unbound(c.Context, cmks, h) {
		fmt.Fprintf(c.App.ErrWriter, "kmsfs: warning: %s\n", w)
	}
	if err := writeRecord(h.FileID, cmks); err != nil {
		fmt.Fprintf(c.App.ErrWriter, "kmsfs: warning: no record of the volume was written (%v); mount it with --cmk\n", err)
	}
	if p.PerFile {
		fmt.Fprintln(c.App.Writer, t.keyrings.costPerFile(cmks))
	}
	abs, _ := filepath.Abs(args[0])
	fmt.Fprintf(c.App.Writer, "created volume %s in %s\nmount it with: kmsfs mount %s MOUNTPOINT\n", h.FileID, abs, args[0])
	return nil
}

// params collects and checks what the command line and, where it is silent, the configuration file say about a new volume.
func params(c *cli.Context, conf config) (p volume.Params, err error) {
	p = volume.Params{
		Algorithm:      header.AES256GCM,
		SegmentSize:    first(conf.SegmentSize, 4096),
		PlaintextNames: conf.PlaintextNames,
		Context:        keyring.EncryptionContext(conf.Context),
	}
	name := conf.Algorithm
	if c.IsSet("algorithm") {
		name = c.String("algorithm")
	}
	if name != "" || c.IsSet("algorithm") {
		if p.Algorithm, err = header.ParseAlgorithm(name); err != nil {
			return p, usagef("--algorithm: %w", err)
		}
	}
	if c.IsSet("segment-size") {
		p.SegmentSize = c.Int("segment-size")
	}
	if s := p.SegmentSize; s < 4096 || s > 65536 || s&(s-1) != 0 {
		return p, usagef("--segment-size %d is not a power of two from 4096 to 65536", s)
	}
	if c.IsSet("plaintext-names") {
		p.PlaintextNames = c.Bool("plaintext-names")
	}
	dataKey := conf.DataKey
	if c.IsSet("data-key") {
		dataKey = c.String("data-key")
	}
	switch dataKey {
	case "per-file":
		p.PerFile = true
	case "volume":
	default:
		if dataKey != "" || c.IsSet("data-key") {
			return p, usagef("--data-key %q is neither volume nor per-file", dataKey)
		}
	}
	if c.IsSet("context") {
		if p.Context, err = contextOf(c); err != nil {
			return p, err
		}
	}
	if _, err := p.Context.AppendTo(nil); err != nil {
		return p, usagef("--context: %w", err)
	}
	return p, nil
}

// contextFlag is --context, whose values may begin and end with spaces.
func contextFlag(usage string) cli.Flag {
	return &cli.StringSliceFlag{Name: "context", Usage: usage, KeepSpace: true}
}

// contextOf reads --context.
func contextOf(c *cli.Context) (keyring.EncryptionContext, error) {
	ec := make(keyring.EncryptionContext)
	for _, kv := range c.StringSlice("context") {
		k, v, ok := strings.Cut(kv, "=")
		if _, dup := ec[k]; !ok || k == "" || dup {
			return nil, usagef("--context %q is not KEY=VALUE, or its key is given twice", kv)
		}
		ec[k] = v
	}
	return ec, nil
}
