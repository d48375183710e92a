package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/secrets"
)

// maxSecret is what each secret manager takes, in bytes.
func maxSecret(scheme string) int {
	if scheme == secrets.Alibaba {
		return 30 << 10
	}
	return cloud.MaxSecret
}

func secretCommand() *cli.Command {
	places := []cli.Flag{
		&cli.StringFlag{Name: "region", Usage: "the secret is in `REGION`; default: that of the configuration file"},
		&cli.StringFlag{Name: "project", Usage: "Huawei Cloud: the secret is in the project with this `ID`; default: that of the configuration file"},
		configFlag(), endpointFlag(),
	}
	return &cli.Command{
		Name:            "secret",
		Usage:           "read and create secrets in a cloud's secret manager",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Subcommands: []*cli.Command{{
			Name:      "get",
			Usage:     "print the value of a secret",
			ArgsUsage: "URI",
			Description: "URI is csms://NAME[#FIELD][@VERSION] or alibaba-secret://NAME[#FIELD][@VERSION].\n\n" +
				"Example: kmsfs secret get --region cn-hangzhou 'alibaba-secret://db#password' | app",
			HideHelpCommand: true,
			OnUsageError:    usageError,
			Flags:           append([]cli.Flag{&cli.BoolFlag{Name: "force", Usage: "print it to a terminal, too"}}, places...),
			Action:          doSecretGet,
		}, {
			Name:            "create",
			Usage:           "make a secret of what is in FILE, or on standard input for -",
			ArgsUsage:       "URI FILE",
			Description:     "Example: kmsfs secret create --region cn-hangzhou alibaba-secret://db db.json",
			HideHelpCommand: true,
			OnUsageError:    usageError,
			Flags: append([]cli.Flag{
				&cli.StringFlag{Name: "cmk", Usage: "protect it with `CMK`, of its region; default: the cloud's own choice"},
				&cli.StringFlag{Name: "instance", Usage: "Alibaba Cloud: keep it in the KMS instance with this `ID`"},
			}, places...),
			Action: doSecretCreate,
		}},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return unknownCommand(c.Command.Subcommands, c.Args().First())
			}
			return usagef("secret needs a command: kmsfs secret get URI, or create URI FILE")
		},
	}
}

// secretAt reads the configuration and the command line of a secret command.
func secretAt(c *cli.Context, uri string) (secrets.Ref, *secretStore, error) {
	ref, err := secrets.Parse(uri)
	if err != nil {
		return ref, nil, usagef("%w", err)
	}
	conf, err := loadConfig(c.String("config"))
	if err != nil {
		return ref, nil, err
	}
	if conf, err = conf.resolved(c, nil); err != nil {
		return ref, nil, err
	}
	set := &conf.Huawei
	if ref.Scheme == secrets.Alibaba {
		if set = &conf.Alibaba; c.IsSet("project") {
			return ref, nil, usagef("--project: %s is at Alibaba Cloud, where secrets have none", ref)
		}
	}
	set.Region, set.Project = first(c.String("region"), set.Region), first(c.String("project"), set.Project)
	endpoints, err := allEndpoints(c, nil, conf)
	return ref, newSecretStore(conf, endpoints, silent), conf.hide(err)
}

func doSecretGet(c *cli.Context) error {
	args, err := operands(c, "URI")
	if err != nil {
		return err
	}
	if isTerminal(c.App.Writer) && !c.Bool("force") {
		return usagef("secret get: standard output is a terminal, which others may see and scroll back; use a pipe, or --force")
	}
	ref, store, err := secretAt(c, args[0])
	if err != nil {
		return err
	}
	value, err := store.get(c.Context, ref)
	if err != nil {
		return hinted(err)
	}
	defer value.Wipe()
	_, err = c.App.Writer.Write(value)
	return err
}

func doSecretCreate(c *cli.Context) error {
	args, err := operands(c, "URI", "FILE")
	if err != nil {
		return err
	}
	ref, store, err := secretAt(c, args[0])
	if err != nil {
		return err
	}
	switch {
	case ref.Field != "":
		return usagef("%s: a secret is created as a whole; put a JSON object with the field into the file", ref)
	case ref.Scheme == secrets.CSMS && ref.Version != "":
		return usagef("%s: CSMS chooses the first version by itself", ref)
	case ref.Scheme == secrets.CSMS && c.IsSet("instance"):
		return usagef("--instance: %s is at Huawei Cloud, where secrets have none", ref)
	}
	at, err := store.place(ref)
	if err != nil {
		return err
	}
	n := cloud.NewSecret{Instance: c.String("instance")}
	if uri := c.String("cmk"); c.IsSet("cmk") {
		cmk, err := cloud.ParseCMK(uri)
		if err != nil || cmk.Provider != providerOfSecret(ref.Scheme) || cmk.Region != at.Region {
			return usagef("--cmk %s: not a CMK in the region of %s, %s", uri, ref, at.Region)
		}
		n.KeyID = cmk.KeyID
	}
	most := maxSecret(ref.Scheme)
	if n.Value, err = readInput(c, args[1], most); err != nil {
		return err
	}
	defer clear(n.Value)
	if len(n.Value) == 0 || len(n.Value) > most {
		return usagef("%s is not 1 to %d bytes long, which a secret must be", inputName(args[1]), most)
	}
	if err := store.create(c.Context, ref, n); err != nil {
		return hinted(err)
	}
	fmt.Fprintf(c.App.ErrWriter, "created %s in %s\n", ref, at.Region)
	return nil
}
