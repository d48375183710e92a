package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/reencrypt"
	"github.com/kmsfs/kmsfs/volume"
)

// A rotateAllResult is what a rotation of the data key of all files did.
type rotateAllResult struct {
	rotateResult
	Resumed      bool             `json:"resumed"` // the data key was made by an earlier run, which was cut off
	Reencryption reencrypt.Report `json:"re_encryption"`
}

// doRotateAll gives a volume that is not mounted another data key for new files, and then rewrites all others under it. The machine's record says that it has begun, before the data key is there, and until
// no file is left that could be rewritten: a run that was cut off is gone on with, under the data key that it has made. What the ciphertext directory says does not count in that, or whoever can write there
// could keep the data key from being rotated.
func doRotateAll(c *cli.Context, v *volume.Volume, t trust, req rotateRequest) error {
	if err := lockVolume(c.Context, v); err != nil {
		return fmt.Errorf("rotate %s: %w", v.Dir(), err)
	}
	k, err := t.unlock(c.Context, v)
	if err != nil {
		return fmt.Errorf("rotate %s: %w", v.Dir(), err)
	}
	warnFailed(c.App.ErrWriter, k)
	if v.Header().PerFile {
		return fmt.Errorf("rotate %s: %w", v.Dir(), nothingToRotate(volume.ErrPerFile))
	}
	j, err := openJournal(v, req.DryRun)
	if err != nil {
		return fmt.Errorf("rotate %s: %w", v.Dir(), err)
	}
	result, key, err := rotateOrResume(c, &rewrapJob{v: v, trust: t}, req)
	if err != nil {
		return fmt.Errorf("rotate %s: %w", v.Dir(), errors.Join(err, j.Close()))
	}
	result.warn(c.App.ErrWriter)
	if !c.Bool("json") {
		did := result.String()
		if result.Resumed {
			did = "going on where a run was cut off: " + did
		}
		fmt.Fprintln(c.App.Writer, did)
	}
	result.Reencryption, err = reencryptFiles(c, v, j, reencrypt.Options{DryRun: req.DryRun, Key: key})
	if err := errors.Join(err, j.Close()); err != nil {
		return fmt.Errorf("re-encrypt %s: %w\nhint: run again, it goes on where it was, under the same data key", v.Dir(), err)
	}
	if c.Bool("json") {
		if err := printJSON(c.App.Writer, result); err != nil {
			return err
		}
	} else {
		printReencrypted(c.App.Writer, v, result.Reencryption, req.DryRun)
	}
	return stragglers(v, result.Reencryption)
}

// rotateOrResume gives a volume another data key for new files, unless this machine has begun to rewrite all files under the one that they get. It returns the ID of the data key.
func rotateOrResume(c *cli.Context, job *rewrapJob, req rotateRequest) (result rotateAllResult, key header.ID, err error) {
	noted, err := readRecord(job.v.Header().FileID)
	if err != nil {
		return result, key, err
	}
	if h, err := job.v.Current(); err == nil && noted.Begun > 0 && noted.Begun <= job.v.Generation() {
		result.rotateResult = rotateResult{Generation: h.Generation, KeyID: h.KeyID.String(), CMKs: keyring.CMKs(h.EDKs), DryRun: req.DryRun, Warnings: []string{}}
		result.Resumed = true
		if !req.DryRun { // the rotation itself may have been cut off
			if err := job.v.MendCurrent(); err != nil {
				return result, key, err
			}
			result.noteGeneration(job.v)
		}
		return result, h.KeyID, nil
	}
	next, err := nextKey(c.Context, job, req)
	if err != nil {
		return result, key, err
	}
	result.rotateResult = resultOf(next, req)
	if req.DryRun {
		return result, next.KeyID(), nil
	}
	if err := noteBegun(job.v, next.Generation()); err != nil {
		return result, key, fmt.Errorf("note on this machine that the files are being re-encrypted: %w\nhint: nothing was changed; kmsfs rotate, and then kmsfs reencrypt, need no such note", err)
	}
	return result, next.KeyID(), result.begin(job.v, next)
}
