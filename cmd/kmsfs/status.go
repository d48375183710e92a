package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/control"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:            "status",
		Usage:           "show a mounted volume: its CMKs and how they answer, its journal, its open files",
		ArgsUsage:       "MOUNTPOINT",
		Description:     "Example: kmsfs status /srv/plain",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Flags:           []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}},
		Action:          doStatus,
	}
}

func doStatus(c *cli.Context) error {
	args, err := operands(c, "MOUNTPOINT")
	if err != nil {
		return err
	}
	path, source, err := ownMount(args[0], "")
	if err != nil {
		return err
	}
	v, err := openVolume(source)
	if err != nil {
		return err
	}
	defer v.Close()
	socket, err := socketPath(v)
	if err != nil {
		return err
	}
	var raw json.RawMessage
	err = control.Call(c.Context, socket, "status", nil, nil, &raw)
	switch {
	case errors.Is(err, control.ErrNoDaemon) && isStale(path):
		return fail(exitMountpoint, "%s: its daemon is gone; take the mount away with: kmsfs umount %s", path, path)
	case errors.Is(err, control.ErrNoDaemon):
		return fail(exitOther, "%s: %w; ask as the user who has mounted it", path, err)
	case err != nil:
		return daemonError(err)
	}
	var st mountStatus
	if err := json.Unmarshal(raw, &st); err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, st)
	}
	printStatus(c.App.Writer, &st)
	return nil
}

// daemonError gives what a daemon says the exit code that it says.
func daemonError(err error) error {
	var e *control.Error
	if errors.As(err, &e) {
		return fail(e.Code, "%s", e.Message)
	}
	return err
}

func printStatus(out io.Writer, st *mountStatus) {
	fmt.Fprintf(out, "volume %s\nciphertext %s\nmounted on %s since %s by process %d (kmsfs %s)\n", st.Volume, st.Ciphertext, st.Mountpoint, st.Since.Format(time.RFC3339), st.PID, st.Version)
	switch {
	case !st.Serving:
		fmt.Fprintf(out, "files are refused since the CMKs are: %s\n", oneLine(st.Keys.Refused))
	case st.Keys.TTL != "":
		fmt.Fprintf(out, "the CMKs are asked again every %s\n", st.Keys.TTL)
	}
	switch k := st.DataKey; {
	case k.PerFile:
		fmt.Fprintln(out, "every file has a data key of its own")
	case k.Trouble != "":
		fmt.Fprintf(out, "new files cannot be made: %s\n", oneLine(k.Trouble))
	default:
		fmt.Fprintf(out, "new files get data key %s, generation %d\n", k.ID, k.Generation)
	}
	fmt.Fprintf(out, "%d files open\njournal: %d bytes, %d files waiting\n", st.OpenFiles, st.Journal.Bytes, st.Journal.Waiting)
	for _, trouble := range []string{st.Journal.Failed, st.Journal.Stuck} {
		if trouble != "" {
			fmt.Fprintf(out, "journal: %s\n", oneLine(trouble))
		}
	}
	var failures []string
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nCMK\tLAST\tLATENCY\tSKIPPED\tOK\tFAILED\tCALLS")
	for _, c := range st.CMKs {
		last, latency, skipped, calls := "not asked", "-", "-", 0
		if r := c.Last; r != nil {
			last, latency = r.Call+" ok", r.Latency.Round(time.Millisecond).String()
			if r.Error != "" {
				last, failures = r.Call+" failed", append(failures, oneLine(r.Error))
			}
		}
		if c.Skipped != nil {
			skipped = "until " + c.Skipped.Format(time.TimeOnly)
		}
		for _, n := range c.Calls {
			calls += n
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d\n", c.CMK, last, latency, skipped, c.OK, c.Failed, calls)
	}
	w.Flush()
	for _, f := range failures { // below the table, which they would make as wide as they are long
		fmt.Fprintln(out, f)
	}
}

func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }
