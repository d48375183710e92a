package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"

	"github.com/kmsfs/kmsfs/header"
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
	out := &results{Writer: stdout}
	err := newApp(out, stderr).RunContext(ctx, args)
	if out.err != nil && !errors.Is(err, out.err) {
		err = errors.Join(err, fmt.Errorf("standard output: %w", out.err))
	}
	return report(stderr, err)
}

// results is standard output. It remembers the first error, for the lines that are printed without a look at it.
type results struct {
	io.Writer
	err error
}

// Write implements [io.Writer].
func (r *results) Write(p []byte) (int, error) {
	n, err := r.Writer.Write(p)
	r.err = first(r.err, err)
	return n, err
}

// newApp returns the command line.
func newApp(stdout, stderr io.Writer) *cli.App {
	return &cli.App{
		Name:                      "kmsfs",
		Usage:                     "a transparent encrypted filesystem whose keys are held by key management services",
		UsageText:                 "kmsfs COMMAND [FLAGS] OPERANDS",
		Version:                   fmt.Sprintf("%s (format %d)", version, header.Version),
		Writer:                    stdout,
		ErrWriter:                 stderr,
		ExitErrHandler:            func(*cli.Context, error) {}, // main exits, so that everything deferred runs
		OnUsageError:              usageError,
		Flags:                     []cli.Flag{cli.HelpFlag},
		HideHelpCommand:           true, // the library's would also sit below every command and take the operand "h" away
		DisableSliceFlagSeparator: true, // a context may hold commas
		Description: `Example:
   kmsfs key new ~/cmk
   kmsfs init --cmk local:$HOME/cmk ~/cipher
   mkdir ~/plain
   kmsfs mount ~/cipher ~/plain
   kmsfs umount ~/plain

Flags stand before operands. "kmsfs help COMMAND" shows a command's flags; exit codes and files are in kmsfs(1).`,
		Commands: []*cli.Command{
			keyCommand(), initCommand(), mountCommand(), umountCommand(), keyringCommand(), inspectCommand(), fsckCommand(), recoverCommand(),
			rewrapCommand(), rotateCommand(), reencryptCommand(), statusCommand(), encryptCommand(), decryptCommand(), dataCommand(), secretCommand(),
			signCommand(), verifyCommand(),
			helpCommand(), versionCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return unknownCommand(c.App.Commands, c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
}

func helpCommand() *cli.Command {
	return &cli.Command{
		Name:            "help",
		Usage:           "show the help of a command",
		ArgsUsage:       "[COMMAND]",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Action: func(c *cli.Context) error {
			commands, args := c.App.Commands, []string{c.App.Name}
			for _, name := range c.Args().Slice() {
				found := findCommand(commands, name)
				if found == nil {
					return unknownCommand(commands, name)
				}
				commands, args = found.Subcommands, append(args, name)
			}
			return newApp(c.App.Writer, c.App.ErrWriter).RunContext(c.Context, append(args, "--help"))
		},
	}
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:            "version",
		Usage:           "print the version",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Action: func(c *cli.Context) error {
			if _, err := operands(c); err != nil {
				return err
			}
			cli.ShowVersion(c)
			return nil
		},
	}
}

func findCommand(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

func unknownCommand(commands []*cli.Command, name string) error {
	var names []string
	for _, c := range commands {
		names = append(names, c.Name)
	}
	return usagef("unknown command %q%s\nhint: kmsfs --help lists the commands", name, didYouMean(name, names))
}

// usageError turns what the library says about a flag into a failure.
func usageError(c *cli.Context, err error, _ bool) error {
	// The standard library's error has no type, and spells flags with one dash.
	text := strings.Replace(err.Error(), " -", " --", 1)
	name, unknown := strings.CutPrefix(text, "flag provided but not defined: --")
	if !unknown {
		return usagef("%s", text)
	}
	var names []string
	for _, f := range append(c.Command.Flags, c.App.Flags...) {
		for _, n := range f.Names() {
			names = append(names, dashed(n))
		}
	}
	command := c.Command.HelpName
	if command == "" {
		command = c.App.Name
	}
	return usagef("%s has no flag %s%s\nhint: see %s --help", command, dashed(name), didYouMean(dashed(name), names), command)
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// didYouMean returns ", did you mean X?" if one of names is close to what was given.
func didYouMean(given string, names []string) string {
	closest, least := "", 3 // more than two changes are another word
	for _, n := range names {
		if d := smetrics.WagnerFischer(given, n, 1, 1, 1); d < least && 2*d < len(n) {
			closest, least = n, d
		}
	}
	if closest == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", closest)
}

// operands returns exactly the named operands of a command. Flags after them would be taken for operands, so they are refused.
func operands(c *cli.Context, names ...string) ([]string, error) {
	args := c.Args().Slice()
	command := strings.TrimSpace(strings.TrimPrefix(c.Command.HelpName, c.App.Name))
	usage := strings.TrimSpace("kmsfs " + command + " [FLAGS] " + strings.Join(names, " "))
	for i, a := range args {
		if strings.HasPrefix(a, "-") && a != "-" {
			where := "is taken for an operand"
			if i > 0 {
				where = "stands after " + args[0]
			}
			return nil, usagef("flag %s %s\nhint: put flags first: %s; for a file of that name write ./%s", a, where, usage, a)
		}
		if a == "" {
			return nil, usagef("operand %d of %s is empty\nhint: %s", i+1, command, usage)
		}
	}
	switch {
	case len(args) < len(names):
		return nil, usagef("%s: %s is missing\nhint: %s", command, names[len(args)], usage)
	case len(args) > len(names):
		return nil, usagef("%s: operand %q is one too many\nhint: %s", command, args[len(names)], usage)
	}
	return args, nil
}

// first returns the first of its arguments that is not zero.
func first[T comparable](values ...T) (zero T) {
	for _, v := range values {
		if v != zero {
			return v
		}
	}
	return zero
}

// printJSON prints v for scripts.
func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
