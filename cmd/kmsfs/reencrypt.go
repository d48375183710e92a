package main

import (
	"errors"
	"fmt"
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
	harden()
	v, err := openUnlocked(c, args[0], true)
	if err != nil {
		return err
	}
	defer v.Close()
	dry := c.Bool("dry-run")
	j, err := openJournal(v, dry)
	if err != nil {
		return err
	}
	result, err := reencryptFiles(c, v, j, dry)
	if errors.Is(err, volume.ErrPerFile) {
		err = fail(exitUsage, "%w, which is as good as any other", err)
	}
	if err := errors.Join(currentHint(err), j.Close()); err != nil {
		return fmt.Errorf("re-encrypt %s: %w", v.Dir(), err)
	}
	return printReencrypt(c, v, result)
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
func reencryptFiles(c *cli.Context, v *volume.Volume, j *journal.Journal, dry bool) (reencryptResult, error) {
	o := reencrypt.Options{DryRun: dry}
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
	return reencryptResult{report, dry}, err
}

// printReencrypt prints what a re-encryption did. Files that were left as they were are a failure.
func printReencrypt(c *cli.Context, v *volume.Volume, r reencryptResult) error {
	if c.Bool("json") {
		if err := printJSON(c.App.Writer, r); err != nil {
			return err
		}
	} else {
		for _, s := range r.Stragglers {
			fmt.Fprintf(c.App.Writer, "%s: not re-encrypted: %s\n", filepath.Join(v.Dir(), s.Ciphertext), oneLine(s.Cause))
		}
		did := "re-encrypted"
		if r.DryRun {
			did = "would re-encrypt"
		}
		fmt.Fprintf(c.App.Writer, "%s %d of %d files, %d bytes\n", did, r.Reencrypted, r.Files, r.Bytes)
	}
	if len(r.Stragglers) > 0 {
		return fail(exitDamaged, "%s: %d files keep the data key they had\nhint: kmsfs fsck says what is damaged; run again, this goes on with the others", v.Dir(), len(r.Stragglers))
	}
	return nil
}
