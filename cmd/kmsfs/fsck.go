package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/kmsfs/kmsfs/fsck"
	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/reencrypt"
	"github.com/kmsfs/kmsfs/volume"
)

func fsckCommand() *cli.Command {
	return &cli.Command{
		Name:            "fsck",
		Usage:           "verify every byte of an unmounted volume",
		ArgsUsage:       "CIPHERDIR",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Description: "Example: kmsfs fsck /srv/cipher\n" +
			"Exit codes: 0 all is sound, 4 something is damaged, 10 all that was damaged is repaired, 7 the volume is in use.\n" +
			"What a crash leaves behind and nothing refers to is reported, and does not count.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "repair", Usage: "mend what can be mended without guessing: what is stored twice, or can be derived"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			trustFlag(), configFlag(), endpointFlag(),
		},
		Action: doFsck,
	}
}

// trustFlag is --cmk for the commands that unwrap.
func trustFlag() cli.Flag {
	return cmkFlag("trust `CMK` (repeatable); default: what this machine has noted for the volume")
}

// fsckResult is what fsck prints as JSON.
type fsckResult struct {
	Volume string       `json:"volume"`
	Faults []fsck.Fault `json:"faults"`
	Report fsck.Report  `json:"summary"`
}

func doFsck(c *cli.Context) error {
	args, err := operands(c, "CIPHERDIR")
	if err != nil {
		return err
	}
	v, err := openUnlocked(c, args[0], true)
	if err != nil {
		return err
	}
	defer v.Close()

	j, err := finishWrites(v)
	if err != nil {
		return err
	}
	defer j.Close()

	result := fsckResult{Volume: v.Dir(), Faults: []fsck.Fault{}}
	bar := newBar(c.Context, c.App.ErrWriter, v)
	report, err := fsck.Check(c.Context, v, fsck.Options{
		Repair: c.Bool("repair"),
		Fault: func(f fsck.Fault) {
			if c.Bool("json") {
				result.Faults = append(result.Faults, f)
				return
			}
			bar.clear()
			fmt.Fprintln(c.App.Writer, f)
		},
		Progress: bar.progress(),
		Suspect:  j.Suspect,
	})
	bar.clear()
	if err != nil {
		return fmt.Errorf("fsck of %s: %w", v.Dir(), err)
	}
	result.Report = report
	if c.Bool("json") {
		if err := printJSON(c.App.Writer, result); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(c.App.Writer, "%d directories, %d files, %d symbolic links, %d others, %d bytes: %s, %d repaired, %d leftovers\n",
			report.Directories, report.Files, report.Links, report.Others, report.Bytes, faults(report.Faults), report.Repaired, report.Leftovers)
	}
	switch {
	case report.Faults > report.Repaired:
		hint := ""
		if !c.Bool("repair") {
			hint = "; fsck --repair mends what can be mended, kmsfs recover copies out what is sound"
		}
		return fail(exitDamaged, "%s is damaged: %s%s", v.Dir(), faults(report.Faults-report.Repaired), hint)
	case report.Faults > 0:
		return fail(exitRepaired, "%s was damaged: %s, all repaired", v.Dir(), faults(report.Faults))
	}
	return nil
}

// faults counts in words.
func faults(n int64) string {
	if n == 1 {
		return "1 fault"
	}
	return fmt.Sprintf("%d faults", n)
}

// finishWrites puts in place what a crash has left in the journal or half renamed, as a mount does, and returns the journal opened for reading.
func finishWrites(v *volume.Volume) (*journal.Journal, error) {
	if err := reencrypt.Finish(v); err != nil {
		return nil, err
	}
	quiet := slog.New(slog.DiscardHandler)
	j, err := journal.Open(v.RootFd(), v.MetaFd(), journal.Options{ReadOnly: true, Logger: quiet})
	if !errors.Is(err, journal.ErrReplay) {
		return j, err
	}
	if j, err = journal.Open(v.RootFd(), v.MetaFd(), journal.Options{Logger: quiet}); err != nil {
		return nil, fmt.Errorf("%s: %w", v.Dir(), err)
	}
	if err := j.Close(); err != nil {
		return nil, fmt.Errorf("%s: %w", v.Dir(), err)
	}
	return journal.Open(v.RootFd(), v.MetaFd(), journal.Options{ReadOnly: true, Logger: quiet})
}

// openUnlocked opens a volume and unwraps its data key with the CMKs that are trusted for it; lock keeps others from using it meanwhile.
func openUnlocked(c *cli.Context, dir string, lock bool) (_ *volume.Volume, err error) {
	t, err := configuredTrust(c)
	if err != nil {
		return nil, err
	}
	v, err := openVolume(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			v.Close()
		}
	}()
	if lock {
		if err := lockVolume(c.Context, v); err != nil {
			return nil, err
		}
	}
	k, err := t.unlock(c.Context, v)
	if err == nil {
		warnFailed(c.App.ErrWriter, k)
	}
	return v, err
}

// A bar is a progress bar; nil draws nothing.
type bar struct{ b *progressbar.ProgressBar }

// newBar returns a bar for a check of v if out is a terminal.
func newBar(ctx context.Context, out io.Writer, v *volume.Volume) *bar {
	if !isTerminal(out) {
		return nil
	}
	return barOf(out, max(fsck.Size(ctx, v), 1))
}

// barOf returns a bar for a number of bytes, -1 if that is not known, if out is a terminal.
func barOf(out io.Writer, bytes int64) *bar {
	if !isTerminal(out) {
		return nil
	}
	return &bar{progressbar.NewOptions64(bytes,
		progressbar.OptionSetWriter(out), progressbar.OptionShowBytes(true), progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish())}
}

func isTerminal(out io.Writer) bool {
	if r, ok := out.(*results); ok {
		out = r.Writer
	}
	f, ok := out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progress is what moves the bar, nil if there is none.
func (b *bar) progress() func(fsck.Progress) {
	if b == nil {
		return nil
	}
	return func(p fsck.Progress) {
		b.b.Describe(fmt.Sprintf("%d entries", p.Entries))
		_ = b.b.Set64(min(p.Bytes, b.b.GetMax64()))
	}
}

// add moves the bar by n bytes.
func (b *bar) add(n int) {
	if b != nil {
		_ = b.b.Add(n)
	}
}

// clear takes the bar off the terminal for a line of text.
func (b *bar) clear() {
	if b != nil {
		_ = b.b.Clear()
	}
}
