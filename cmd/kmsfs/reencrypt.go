package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/reencrypt"
	"github.com/kmsfs/kmsfs/volume"
)

func reencryptCommand() *cli.Command {
	return &cli.Command{
		Name:            "reencrypt",
		Usage:           "rewrite the files of an unmounted volume that have an older data key than new files get",
		ArgsUsage:       "CIPHERDIR",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Description: "Example: kmsfs reencrypt /srv/cipher\n" +
			"Every file stays whole whatever happens; cut off and run again, it goes on. The ciphertext that is replaced stays readable under the older data key,\n" +
			"wherever it is kept: in backups, snapshots, replicas, and in blocks of the disk that are free now.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be rewritten, but change nothing"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			trustFlag(), configFlag(), endpointFlag(),
		},
		Action: doReencrypt,
	}
}

// A reencryptResult is what a re-encryption did.
type reencryptResult struct {
	reencrypt.Report
	DryRun bool `json:"dry_run"`
}

func doReencrypt(c *cli.Context) error {
	args, err := operands(c, "CIPHERDIR")
	if err != nil {
		return err
	}
	v, err := openUnlocked(c, args[0], true)
	if err != nil {
		return err
	}
	defer v.Close()
	if v.Header().PerFile {
		return fail(exitUsage, "re-encrypt %s: %w, which is as good as any other", v.Dir(), volume.ErrPerFile)
	}
	dry := c.Bool("dry-run")
	j, err := openJournal(v, dry)
	if err != nil {
		return err
	}
	report, err := reencryptFiles(c, v, j, reencrypt.Options{DryRun: dry})
	if err := errors.Join(currentHint(err), j.Close()); err != nil {
		return fmt.Errorf("re-encrypt %s: %w", v.Dir(), err)
	}
	if c.Bool("json") {
		if err := printJSON(c.App.Writer, reencryptResult{report, dry}); err != nil {
			return err
		}
	} else {
		printReencrypted(c.App.Writer, v, report, dry)
	}
	return stragglers(v, report)
}

// openJournal opens the journal of a volume that a command is going to change, after what crashes have left was put in place. A dry run does not do that.
func openJournal(v *volume.Volume, dry bool) (*journal.Journal, error) {
	if !dry {
		if err := reencrypt.Recover(v); err != nil {
			return nil, err
		}
	}
	j, err := journal.Open(v.RootFd(), v.MetaFd(), journal.Options{ReadOnly: dry, Logger: slog.New(slog.DiscardHandler)})
	if dry && errors.Is(err, journal.ErrReplay) {
		return nil, fail(exitIO, "the volume was not unmounted cleanly; mount it once, or leave out --dry-run")
	}
	return j, err
}

// reencryptFiles re-encrypts the files of an unlocked volume that nobody else uses, and shows on a terminal how far it is.
func reencryptFiles(c *cli.Context, v *volume.Volume, j *journal.Journal, o reencrypt.Options) (reencrypt.Report, error) {
	if isTerminal(c.App.ErrWriter) {
		bar := progressbar.NewOptions64(1, progressbar.OptionSetWriter(c.App.ErrWriter), progressbar.OptionSetDescription("re-encrypt"), progressbar.OptionShowBytes(true),
			progressbar.OptionSetPredictTime(true), progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish())
		defer func() { _ = bar.Clear() }()
		o.Progress = func(p reencrypt.Progress) {
			bar.ChangeMax64(max(p.Total, p.Done, 1))
			_ = bar.Set64(p.Done)
		}
	}
	report, err := reencrypt.Run(c.Context, v, j, o)
	if err == nil && !o.DryRun {
		if err := noteBegun(v, 0); err != nil {
			fmt.Fprintf(c.App.ErrWriter, "kmsfs: warning: that the files are re-encrypted was not noted on this machine, so that the next kmsfs rotate --re-encrypt makes no data key: %v\n", err)
		}
	}
	return report, err
}

// printReencrypted says what a re-encryption did.
func printReencrypted(out io.Writer, v *volume.Volume, r reencrypt.Report, dry bool) {
	for _, s := range r.Stragglers {
		fmt.Fprintf(out, "%s: not re-encrypted: %s\n", filepath.Join(v.Dir(), s.Ciphertext), oneLine(s.Cause))
	}
	did := "re-encrypted"
	if dry {
		did = "would re-encrypt"
	}
	fmt.Fprintf(out, "%s %d of %d files, %d bytes\n", did, r.Reencrypted, r.Files, r.Bytes)
}

// stragglers is the failure of a re-encryption that left files as they were.
func stragglers(v *volume.Volume, r reencrypt.Report) error {
	if len(r.Stragglers) == 0 {
		return nil
	}
	return fail(exitDamaged, "%s: %d files keep the data key they had\nhint: kmsfs fsck says what is damaged; kmsfs reencrypt goes on with them, without another data key", v.Dir(), len(r.Stragglers))
}
