package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/fsck"
	"github.com/kmsfs/kmsfs/volume"
)

func recoverCommand() *cli.Command {
	return &cli.Command{
		Name:            "recover",
		Usage:           "copy out of a damaged ciphertext file all that still authenticates",
		ArgsUsage:       "SRC DST",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Description: "SRC is a ciphertext file, DST a file that must not exist. Zeros stand for what is lost; the lost ranges are printed.\n" +
			"Exit codes: 0 all of it is sound, 4 something is lost.\n" +
			"Example: kmsfs recover /srv/cipher/WWueS9NF5vl_mfAV5RMkJxM report.pdf",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "volume", Usage: "the volume that SRC belongs to, if SRC is not in it: `CIPHERDIR`"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			trustFlag(), configFlag(), endpointFlag(),
		},
		Action: doRecover,
	}
}

func doRecover(c *cli.Context) (err error) {
	args, err := operands(c, "SRC", "DST")
	if err != nil {
		return err
	}
	src, err := os.OpenFile(args[0], os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	if st, err := src.Stat(); err != nil || !st.Mode().IsRegular() {
		return errors.Join(err, fmt.Errorf("%s is not a regular file", args[0]))
	}
	dir := c.String("volume")
	if dir == "" {
		if dir, err = volumeOf(args[0]); err != nil {
			return err
		}
	}
	v, err := openUnlocked(c, dir, false)
	if err != nil {
		return err
	}
	defer v.Close()

	dst, err := os.OpenFile(args[1], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	r, err := fsck.Recover(c.Context, v, src, dst)
	if err = errors.Join(err, dst.Close()); err != nil {
		os.Remove(args[1])
		return fmt.Errorf("%s: nothing recovered: %w", args[0], err)
	}
	if c.Bool("json") {
		if err := printJSON(c.App.Writer, r); err != nil {
			return err
		}
	} else {
		if r.Header != "" {
			fmt.Fprintf(c.App.Writer, "header: %s\n", r.Header)
		}
		for _, l := range r.Lost {
			if l.Len == 0 {
				fmt.Fprintf(c.App.Writer, "at byte %d (ciphertext %d to %d): %s\n", l.Off, l.SealedOff, l.SealedOff+l.SealedLen-1, l.Cause)
				continue
			}
			fmt.Fprintf(c.App.Writer, "lost: bytes %d to %d (ciphertext %d to %d): %s\n", l.Off, l.Off+l.Len-1, l.SealedOff, l.SealedOff+l.SealedLen-1, l.Cause)
		}
		fmt.Fprintf(c.App.Writer, "%d of %d bytes recovered\n", r.Recovered, r.Size)
	}
	if r.Header != "" || len(r.Lost) > 0 {
		return fail(exitDamaged, "%s is damaged: %d of %d bytes are in %s", args[0], r.Recovered, r.Size, args[1])
	}
	return nil
}

// volumeOf finds the volume that a ciphertext file is in.
func volumeOf(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	for dir := filepath.Dir(abs); ; dir = filepath.Dir(dir) {
		if st, err := os.Lstat(filepath.Join(dir, volume.MetaDir)); err == nil && st.IsDir() {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%w: %s is in no ciphertext directory; say which it belongs to with --volume", volume.ErrNotVolume, path)
		}
	}
}
