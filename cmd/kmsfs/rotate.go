package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/control"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/volume"
)

func rotateCommand() *cli.Command {
	return &cli.Command{
		Name:            "rotate",
		Usage:           "give a volume another data key for new files; mounted or not",
		ArgsUsage:       "CIPHERDIR",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Description: "Example: kmsfs rotate /srv/cipher\n" +
			"The CMKs that wrap the volume's data key make and wrap the new one; nothing is changed if one of them fails. Files that are there keep their data keys, and can be read as before.\n" +
			"Cut off and run again, it makes another one. With --re-encrypt, the volume unmounted, it then rewrites those files under the new data key; cut off and run again, that goes on where it was.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "re-encrypt", Usage: "then rewrite all files under the new data key, as kmsfs reencrypt does; the volume must not be mounted"},
			&cli.BoolFlag{Name: "dry-run", Usage: "have a data key made and wrapped, but change nothing"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			trustFlag(), configFlag(), endpointFlag(),
		},
		Action: doRotate,
	}
}

// A rotateRequest is what a rotation is to do, as the daemon is told.
type rotateRequest struct {
	Endpoints []string `json:"endpoints,omitempty"` // that the daemon may not know
	DryRun    bool     `json:"dry_run,omitempty"`
}

// A rotateResult is what a rotation did or, of a dry run, would do.
type rotateResult struct {
	Generation uint64   `json:"generation"`  // of the data key of new files
	KeyID      string   `json:"data_key_id"` // of new files; of a dry run, of a key that was thrown away
	CMKs       []string `json:"cmks"`        // that have wrapped it; the first has made it
	DryRun     bool     `json:"dry_run"`
	Live       bool     `json:"live"` // by the daemon that has the volume mounted
	Warnings   []string `json:"warnings"`
}

func doRotate(c *cli.Context) error {
	args, err := operands(c, "CIPHERDIR")
	if err != nil {
		return err
	}
	t, err := configuredTrust(c)
	if err != nil {
		return err
	}
	req := rotateRequest{DryRun: c.Bool("dry-run")}
	req.Endpoints = t.endpointList()
	v, err := openVolume(args[0])
	if err != nil {
		return err
	}
	defer v.Close()
	if c.Bool("re-encrypt") {
		return doRotateAll(c, v, t, req)
	}
	var result rotateResult
	err = anywhere(c.Context, v, func() error {
		socket, err := socketPath(v)
		if err == nil {
			err = daemonError(control.Call(c.Context, socket, "rotate", req, nil, &result))
		}
		result.Live = true
		return err
	}, func() error {
		if _, err := t.unlock(c.Context, v); err != nil {
			return err
		}
		result, err = rotate(c.Context, &rewrapJob{v: v, trust: t}, req)
		return err
	})
	if err != nil {
		return fmt.Errorf("rotate %s: %w", v.Dir(), err)
	}
	result.warn(c.App.ErrWriter)
	if c.Bool("json") {
		return printJSON(c.App.Writer, result)
	}
	fmt.Fprintf(c.App.Writer, "%s; other files keep theirs\n", result)
	return nil
}

// String says what a rotation did.
func (r rotateResult) String() string {
	did := "new files get data key"
	if r.DryRun {
		did = "new files would get a data key like"
	}
	return fmt.Sprintf("%s %s, generation %d, wrapped by %s", did, r.KeyID, r.Generation, strings.Join(r.CMKs, ", "))
}

func (r rotateResult) warn(stderr io.Writer) {
	for _, w := range r.Warnings {
		fmt.Fprintf(stderr, "kmsfs: warning: %s\n", w)
	}
}

// rotate gives an unlocked volume another data key for new files, made and wrapped by the CMKs that job finds trusted.
func rotate(ctx context.Context, job *rewrapJob, req rotateRequest) (result rotateResult, err error) {
	next, err := nextKey(ctx, job, req)
	if err != nil {
		return result, err
	}
	result = resultOf(next, req)
	if req.DryRun {
		return result, nil
	}
	return result, result.begin(job.v, next)
}

// nextKey has the CMKs that job finds trusted make and wrap a data key for new files. Nothing is changed.
func nextKey(ctx context.Context, job *rewrapJob, req rotateRequest) (*volume.NextKey, error) {
	if err := errors.Join(job.addEndpoints(req.Endpoints), job.openTrusted()); err != nil {
		return nil, err
	}
	next, err := job.v.NextKey(ctx, job.ring())
	switch {
	case errors.Is(err, volume.ErrPerFile):
		return nil, nothingToRotate(err)
	case errors.Is(err, keyring.ErrUntrusted):
		return nil, fmt.Errorf("%w\nhint: trust it with --cmk (while the volume is mounted: at its mount), or take it out with kmsfs rewrap --remove", err)
	case errors.Is(err, header.ErrBounds):
		return nil, fmt.Errorf("%w; the header length of a volume is fixed at init: kmsfs rewrap --remove makes room", err)
	case err != nil:
		return nil, hinted(err)
	}
	return next, nil
}

func nothingToRotate(err error) error {
	return fail(exitUsage, "%w: there is nothing to rotate", err)
}

func resultOf(next *volume.NextKey, req rotateRequest) rotateResult {
	return rotateResult{Generation: next.Generation(), KeyID: next.KeyID().String(), CMKs: next.CMKs(), DryRun: req.DryRun, Warnings: []string{}}
}

// begin makes next the data key of new files.
func (r *rotateResult) begin(v *volume.Volume, next *volume.NextKey) error {
	if err := v.Rotate(next); err != nil {
		return err
	}
	r.noteGeneration(v) // not earlier: a machine that has seen a generation refuses a volume without it
	return nil
}

func (r *rotateResult) noteGeneration(v *volume.Volume) {
	if err := noteGeneration(v); err != nil {
		r.Warnings = append(r.Warnings, fmt.Sprintf("the generation was not noted on this machine, which will not notice if the rotation is undone: %v", err))
	}
}

// currentHint adds to an error what to do about a data key of new files that cannot be used.
func currentHint(err error) error {
	if errors.Is(err, volume.ErrCurrent) || errors.Is(err, volume.ErrRolledBack) {
		return fmt.Errorf("%w\nhint: no file is lost: kmsfs mount -o ro reads all of them; if nobody can bring back the newest .kmsfs/current, kmsfs rotate makes another data key for new files", err)
	}
	return err
}

func (d *daemon) rotate(ctx context.Context, args json.RawMessage, _ func(any) error) (any, error) {
	var req rotateRequest
	if err := json.Unmarshal(args, &req); err != nil {
		return nil, usagef("rotate: %w", err)
	}
	if err := d.beginChange(); err != nil {
		return nil, err
	}
	defer d.changes.Unlock()
	job := rewrapJob{v: d.v, trust: d.job.trust, hidden: d.job.mountpoint}
	result, err := rotate(ctx, &job, req)
	if job.trust.keyrings != d.job.trust.keyrings {
		job.trust.keyrings.stop() // the mount goes on with those that it has
	}
	if err == nil && !req.DryRun {
		d.logger.Info("rotated", "data key", result.KeyID, "generation", result.Generation, "cmks", result.CMKs)
	}
	return result, err
}
