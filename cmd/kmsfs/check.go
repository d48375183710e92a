package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/volume"
)

func keyringCommand() *cli.Command {
	return &cli.Command{
		Name:            "keyring",
		Usage:           "look at CMKs",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Subcommands: []*cli.Command{{
			Name:      "check",
			Usage:     "say what each CMK can do now",
			ArgsUsage: "[CIPHERDIR]",
			Description: "Wraps and unwraps a key that is for nothing else, with each CMK, and lets each CMK that is trusted for CIPHERDIR open it.\n" +
				"Exit codes: 0 every CMK can do everything, 11 some can, 6 none can.\n" +
				"Example: kmsfs keyring check --cmk acs:kms:cn-hangzhou:1000000000000001:key/key-hzz00000000000000000000",
			HideHelpCommand: true,
			OnUsageError:    usageError,
			Flags: []cli.Flag{
				cmkFlag("check `CMK` (repeatable); default: those that are trusted for CIPHERDIR"),
				&cli.BoolFlag{Name: "json", Usage: "print JSON"},
				configFlag(), endpointFlag(),
			},
			Action: doCheck,
		}},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return unknownCommand(c.Command.Subcommands, c.Args().First())
			}
			return usagef("keyring needs a command: kmsfs keyring check CIPHERDIR")
		},
	}
}

// A checked is what a CMK can do, for a volume if there is one.
type checked struct {
	cloud.Report
	Opens *bool `json:"opens,omitempty"` // the volume; nil if there is none
}

func (r checked) ok() bool { return r.OK() && (r.Opens == nil || *r.Opens) }

func doCheck(c *cli.Context) error {
	t, err := configuredTrust(c)
	if err != nil {
		return err
	}
	cmks := t.named
	var v *volume.Volume
	if len(cmks) == 0 || c.Args().Present() {
		args, err := operands(c, "CIPHERDIR")
		if err != nil {
			return err
		}
		if v, err = openVolume(args[0]); err != nil {
			return err
		}
		defer v.Close()
		if cmks, err = t.trustedBy(v.Header().FileID); err != nil {
			return err
		}
		if len(cmks) == 0 {
			return fail(exitCMK, "%s: no CMK is trusted for this volume on this machine\n%w", v.Dir(), wrappedBy(v.Header().EDKs))
		}
	}
	rows := make([]checked, len(cmks))
	failures := make([]error, len(cmks))
	opened := make([]failover.CMK, len(cmks))
	for i, cmk := range cmks {
		opened[i], failures[i] = t.keyrings.open(cmk)
	}
	var group sync.WaitGroup
	for i, cmk := range cmks {
		group.Go(func() {
			if failures[i] != nil {
				rows[i] = checked{Report: cloud.Report{CMK: cmk, Errors: []string{failures[i].Error()}}}
				return
			}
			rows[i].Report = cloud.Check(c.Context, opened[i])
			if v != nil {
				err := opens(c, opened[i], v)
				can := err == nil
				rows[i].Opens = &can
				if err != nil {
					rows[i].Errors = append(rows[i].Errors, err.Error())
				}
			}
		})
	}
	group.Wait()
	if err := c.Context.Err(); err != nil { // which says nothing about the CMKs
		return fmt.Errorf("keyring check: %w", err)
	}
	if c.Bool("json") {
		err = printJSON(c.App.Writer, rows)
	} else {
		err = printChecked(c.App.Writer, rows)
	}
	bad := 0
	for _, r := range rows {
		if !r.ok() {
			bad++
		}
	}
	switch {
	case err != nil || bad == 0:
		return err
	case bad == len(rows):
		return fail(exitCMK, "none of the CMKs can be used")
	}
	return fail(exitSomeCMKs, "%d of %d CMKs cannot be used", bad, len(rows))
}

// opens lets one CMK open a volume, with the data key of new files if that is another one, and says why it does not.
func opens(c *cli.Context, k keyring.Keyring, v *volume.Volume) error {
	headers := []*header.Header{v.Header()}
	if h, _ := v.Current(); h.Kind == header.Current {
		headers = append(headers, h)
	}
	for _, h := range headers {
		dk, err := k.DecryptDataKey(c.Context, h.EDKs, h.Context)
		if errors.Is(err, keyring.ErrNoMatch) {
			return fmt.Errorf("%w: the volume's data key is not wrapped by this CMK", err)
		}
		if err == nil {
			err = h.Verify(dk)
		}
		dk.Wipe()
		if err != nil {
			return err
		}
	}
	return nil
}

func printChecked(out io.Writer, rows []checked) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "CMK\tSTATE\tWRAPS\tUNWRAPS\tOPENS\tBINDS CONTEXT\tLATENCY\tCLOCK")
	word := func(b bool) string {
		if b {
			return "yes"
		}
		return "no"
	}
	for _, r := range rows {
		opens, binds, latency, clock := "-", "-", "-", "-" // not known
		if r.Opens != nil {
			opens = word(*r.Opens)
		}
		if r.Unwraps {
			binds, latency = word(r.BindsContext), r.Latency.Round(time.Millisecond/10).String()
		}
		if r.Unwraps || r.State != "" || r.Skew != 0 {
			clock = fmt.Sprintf("%+v", r.Skew)
		}
		state := r.State
		if r.Deletion != "" {
			state += ", " + r.Deletion
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.CMK, first(state, "-"), word(r.Wraps), word(r.Unwraps), opens, binds, latency, clock)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	var lines []string
	for _, r := range rows {
		for _, e := range r.Errors {
			for line := range strings.SplitSeq(e, "\n") {
				if !slices.Contains(lines, line) {
					lines = append(lines, line)
				}
			}
		}
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	return nil
}
