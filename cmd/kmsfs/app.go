package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
)

// version is the program's version; the Makefile may set another.
var version = "0.1.0"

// run is the program: it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if name := filepath.Base(args[0]); name == "mount.kmsfs" || name == "mount.fuse.kmsfs" {
		var err error
		if args, err = helperArgs(args); err != nil {
			return report(stderr, err)
		}
	}
	return report(stderr, newApp(stdout, stderr).RunContext(ctx, args))
}

// newApp returns the command line.
func newApp(stdout, stderr io.Writer) *cli.App {
	return &cli.App{
		Name:                      "kmsfs",
		Usage:                     "a transparent encrypted filesystem whose keys are held by key management services",
		Version:                   version,
		Writer:                    stdout,
		ErrWriter:                 stderr,
		ExitErrHandler:            func(*cli.Context, error) {}, // main exits, so that everything deferred runs
		OnUsageError:              usageError,
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true, // a context may hold commas
		Description: "Example:\n   kmsfs key new ~/cmk\n   kmsfs init --cmk local:$HOME/cmk ~/cipher\n" +
			"   mkdir ~/plain && kmsfs mount ~/cipher ~/plain\n   kmsfs umount ~/plain",
		Commands: []*cli.Command{
			keyCommand(), initCommand(), mountCommand(), umountCommand(), inspectCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usagef("unknown command %q; see kmsfs --help", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
}

func usageError(_ *cli.Context, err error, _ bool) error {
	return usagef("%w", err)
}

// operands returns exactly the named operands of a command. Flags after them would be taken for operands, so they are refused.
func operands(c *cli.Context, names ...string) ([]string, error) {
	args := c.Args().Slice()
	for _, a := range args {
		if strings.HasPrefix(a, "-") && a != "-" {
			return nil, usagef("flag %s stands after %s; put flags first, or write ./%s for a file of that name", a, args[0], a)
		}
	}
	if len(args) != len(names) {
		return nil, usagef("%s needs %s; see kmsfs %s --help", c.Command.Name, strings.Join(names, " "), c.Command.Name)
	}
	return args, nil
}

func usagef(format string, args ...any) error {
	return fmt.Errorf("%w%w", errUsage, fmt.Errorf(format, args...))
}
