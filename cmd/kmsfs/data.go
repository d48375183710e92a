package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/failover"
)

// A dataCMK is a CMK that encrypts small data by itself, without a data key.
type dataCMK interface {
	CMK() string
	EncryptData(ctx context.Context, plain []byte, ec keyring.EncryptionContext) ([]byte, error)
	DecryptData(ctx context.Context, sealed []byte, ec keyring.EncryptionContext) ([]byte, error)
}

func dataCommand() *cli.Command {
	command := func(name, usage, cmk, context, example string, action cli.ActionFunc) *cli.Command {
		return &cli.Command{
			Name:            name,
			Usage:           usage,
			ArgsUsage:       "IN OUT",
			Description:     "IN and OUT are files, or - for standard input and output. OUT must not exist.\n\nExample: " + example,
			HideHelpCommand: true,
			OnUsageError:    usageError,
			Flags: []cli.Flag{
				cmkFlag(cmk),
				contextFlag(context),
				forceFlag(), configFlag(), endpointFlag(),
			},
			Action: action,
		}
	}
	return &cli.Command{
		Name:            "data",
		Usage:           "encrypt and decrypt small data, such as a password, directly under a CMK",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Subcommands: []*cli.Command{
			command("encrypt", fmt.Sprintf("encrypt up to %d bytes", keyring.MaxData), "encrypt under `CMK`", "bind `KEY=VALUE` to the data, in clear (repeatable)",
				"kmsfs data encrypt --cmk local:/etc/kmsfs/cmk password /etc/app/password.kmsfs", doDataEncrypt),
			command("decrypt", "decrypt what encrypt has made", "trust `CMK` (repeatable); default: those of the configuration file",
				"refuse data that another context than `KEY=VALUE` is bound to (repeatable)",
				"kmsfs data decrypt --cmk local:/etc/kmsfs/cmk /etc/app/password.kmsfs -", doDataDecrypt),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return unknownCommand(c.Command.Subcommands, c.Args().First())
			}
			return usagef("data needs a command: kmsfs data encrypt IN OUT, or decrypt")
		},
	}
}

// dataTrust checks the command line of a data command, and reads its configuration.
func dataTrust(c *cli.Context) (args []string, t trust, ec keyring.EncryptionContext, err error) {
	if args, err = operands(c, "IN", "OUT"); err != nil {
		return nil, t, nil, err
	}
	if ec, err = contextOf(c); err != nil {
		return nil, t, nil, err
	}
	if _, err := ec.AppendTo(nil); err != nil {
		return nil, t, nil, usagef("--context: %w", err)
	}
	if err := checkOutput(c, args[1]); err != nil {
		return nil, t, nil, err
	}
	t, err = configuredTrust(c)
	return args, t, ec, err
}

func doDataEncrypt(c *cli.Context) error {
	args, t, ec, err := dataTrust(c)
	if err != nil {
		return err
	}
	cmks := t.named
	if len(cmks) == 0 {
		cmks = t.config
	}
	if len(cmks) != 1 {
		return usagef("data encrypt needs one --cmk, not %d; data is encrypted under one CMK only", len(cmks))
	}
	k, err := t.openData(cmks[0])
	if err != nil {
		return err
	}
	plain, err := readInput(c, args[0], keyring.MaxData)
	if err != nil {
		return err
	}
	defer clear(plain)
	switch {
	case len(plain) == 0:
		return usagef("%s is empty: there is nothing to encrypt", inputName(args[0]))
	case len(plain) > keyring.MaxData:
		return usagef("%s is longer than the %d bytes that a CMK encrypts by itself\nhint: kmsfs encrypt takes files of any length", inputName(args[0]), keyring.MaxData)
	}
	e := envelope{Version: 1, CMK: k.CMK(), Context: ec}
	err = failover.Retry(c.Context, func(ctx context.Context) (err error) {
		e.Data, err = k.EncryptData(ctx, plain, ec)
		return err
	})
	if err != nil {
		return fmt.Errorf("encrypt %s: %w", inputName(args[0]), symmetricHint(hinted(err)))
	}
	text, err := e.marshal()
	if err != nil {
		return err
	}
	return writeOutput(c, args[1], text)
}

// symmetricHint says what else may be wrong with a CMK that does not encrypt.
func symmetricHint(err error) error {
	if e := new(cloud.Error); errors.As(err, &e) && (e.Kind == cloud.Refused || e.Kind == cloud.KeyNotFound) {
		return fmt.Errorf("%w\nhint: the CMK must be a symmetric one, for encryption", err)
	}
	return err
}

func doDataDecrypt(c *cli.Context) error {
	args, t, ec, err := dataTrust(c)
	if err != nil {
		return err
	}
	text, err := readInput(c, args[0], maxEnvelope)
	if err != nil {
		return err
	}
	e, err := parseEnvelope(text)
	if err != nil {
		return fail(exitNotVolume, "%s: %w", inputName(args[0]), err)
	}
	if c.IsSet("context") && !e.Context.Equal(ec) {
		return fail(exitCMK, "%s: another context than that of --context is bound to it", inputName(args[0]))
	}
	k, err := t.dataCMKOf(e, inputName(args[0]))
	if err != nil {
		return err
	}
	var plain []byte
	err = failover.Retry(c.Context, func(ctx context.Context) (err error) {
		plain, err = k.DecryptData(ctx, e.Data, e.Context)
		return err
	})
	if failed := new(cloud.Error); errors.As(err, &failed) && failed.Kind == cloud.NotWrapped {
		return fail(exitCMK, "decrypt %s: the data or its context is not what the CMK has encrypted: %w", inputName(args[0]), err)
	}
	if err != nil {
		return fmt.Errorf("decrypt %s: %w", inputName(args[0]), hinted(err))
	}
	defer clear(plain)
	return writeOutput(c, args[1], plain)
}

// openData opens a CMK for data.
func (t trust) openData(cmk string) (dataCMK, error) {
	k, err := t.keyrings.open(cmk)
	if err != nil {
		return nil, fail(exitCMK, "CMK %s: %w", cmk, err)
	}
	d, ok := k.(dataCMK)
	if !ok {
		return nil, fail(exitCMK, "CMK %s encrypts data keys only", cmk)
	}
	return d, nil
}

// dataCMKOf opens the CMK of an envelope, if it is trusted: nobody has authenticated the envelope, and no other CMK is asked.
func (t trust) dataCMKOf(e envelope, in string) (dataCMK, error) {
	trusted := t.named
	if len(trusted) == 0 {
		credentials, err := credentialCMKs()
		if err != nil {
			return nil, err
		}
		trusted = slices.Concat(t.config, credentials)
	}
	var failures []error
	for _, cmk := range trusted {
		local := strings.HasPrefix(cmk, "local:") // by the path of its file
		if !local && cmk != e.CMK || local && !strings.HasPrefix(e.CMK, "local:") {
			continue
		}
		k, err := t.openData(cmk)
		if err != nil {
			failures = append(failures, err)
		} else if k.CMK() == e.CMK {
			return k, nil
		}
	}
	failures = append(failures, fmt.Errorf("%s says that CMK %q has encrypted it, which is not trusted\nhint: if you trust it, add it with --cmk (a local one by the path of its file: --cmk local:/path)", in, e.CMK))
	return nil, fail(exitCMK, "%w", errors.Join(failures...))
}
