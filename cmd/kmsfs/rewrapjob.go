package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/rewrap"
	"github.com/kmsfs/kmsfs/volume"
)

// A rewrapJob is a rewrap of an unlocked volume, by a command or by the daemon.
type rewrapJob struct {
	v      *volume.Volume
	j      *journal.Journal
	trust  trust
	hidden string // a local CMK below is not looked at: the daemon's own mountpoint; "" for none

	open []trusted // afterwards: the CMKs that can be asked
	lost []string  // trusted local CMKs whose files are not there
}

// A trusted CMK is one that can be asked, and how it was named.
type trusted struct {
	name string
	failover.CMK
}

// An oneCMK is a CMK that is asked as often as it takes.
type oneCMK struct {
	*failover.Keyring
	uri string
}

// CMK implements [rewrap.CMK].
func (k oneCMK) CMK() string { return k.uri }

// run does it. The machine trusts the CMKs that are added before the first header names them, and those that are removed until none does.
func (job *rewrapJob) run(ctx context.Context, req rewrapRequest, progress func(any) error) (result rewrapResult, err error) {
	result = rewrapResult{DryRun: req.DryRun, Warnings: []string{}}
	if err := errors.Join(req.check(), job.addEndpoints(req.Endpoints)); err != nil {
		return result, err
	}
	if err := job.openTrusted(); err != nil {
		return result, err
	}
	removed, err := job.removals(req.Remove)
	if err != nil {
		return result, err
	}
	kept := slices.DeleteFunc(slices.Clone(job.open), func(k trusted) bool { return slices.Contains(removed, k.CMK.CMK()) })
	added, err := job.additions(req.Add, removed)
	if err != nil {
		return result, err
	}
	change := rewrap.Change{Remove: removed, Add: job.each(added), Have: job.each(kept)}
	for _, k := range slices.Concat(kept, added) {
		change.Trusted = append(change.Trusted, k.CMK.CMK())
	}
	o := rewrap.Options{DryRun: req.DryRun, Before: func() error {
		err := job.noteAdded(added)
		if err == nil { // files that get data keys of their own meanwhile have them wrapped by the CMKs that are added
			job.v.SetKeyring(job.join(slices.Concat(job.open, added)))
		}
		return err
	}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if req.Progress {
		o.Progress = func(p rewrap.Progress) {
			if progress(p) != nil {
				cancel() // nobody listens any more
			}
		}
	}
	result.Report, err = rewrap.Run(ctx, job.v, job.j, change, o)
	switch {
	case errors.Is(err, rewrap.ErrLast):
		return result, fail(exitUsage, "%w", err)
	case err != nil:
		return result, currentHint(hinted(err))
	}
	for _, cmk := range result.Unlisted {
		result.Warnings = append(result.Warnings, fmt.Sprintf("no header lists CMK %s: it had been removed before, or is another one", cmk))
	}
	if !req.DryRun {
		job.after(&result, kept, added, removed)
	}
	return result, nil
}

// after notes what the machine trusts, and what is known of CMKs, after a rewrap. What cannot be noted is a warning.
func (job *rewrapJob) after(result *rewrapResult, kept, added []trusted, removed []string) {
	if len(result.Stragglers) == 0 {
		job.open = kept
	}
	job.open = append(slices.Clone(job.open), added...)
	if len(result.Stragglers) > 0 && len(removed) > 0 {
		result.Warnings = append(result.Warnings, "the CMKs that were removed stay trusted on this machine as long as there are files that only they may open")
	} else if err := job.forget(removed, result); err != nil {
		result.Warnings = append(result.Warnings, fmt.Sprintf("the machine's record of the volume was not changed: %v", err))
	}
	if info := job.trust.keyrings.info(result.CMKs); info != nil {
		if err := job.v.SetCMKInfo(info); err != nil {
			result.Warnings = append(result.Warnings, fmt.Sprintf("what is known of the CMKs was not kept: %v", err))
		}
	}
}

// each makes a keyring of each CMK, which is asked as often as it takes.
func (job *rewrapJob) each(list []trusted) (single []rewrap.CMK) {
	for _, k := range list {
		single = append(single, oneCMK{job.trust.keyrings.join([]failover.CMK{k.CMK}), k.CMK.CMK()})
	}
	return single
}

// ring is the keyring of the CMKs that are trusted after run.
func (job *rewrapJob) ring() *failover.Keyring { return job.join(job.open) }

func (job *rewrapJob) join(list []trusted) *failover.Keyring {
	cmks := make([]failover.CMK, len(list))
	for i, k := range list {
		cmks[i] = k.CMK
	}
	return job.trust.keyrings.join(cmks)
}

// addEndpoints takes over endpoints for regions that have none, with keyrings of its own: a mount goes on with those that it has until the job has succeeded.
func (job *rewrapJob) addEndpoints(list []string) error {
	more, err := parseEndpoints(list)
	if err != nil {
		return err
	}
	all := maps.Clone(more)
	maps.Copy(all, job.trust.endpoints)
	if len(all) == len(job.trust.endpoints) {
		return nil
	}
	old := job.trust.keyrings
	job.trust.endpoints, job.trust.keyrings = all, newKeyrings(all, job.trust.settings)
	job.trust.keyrings.logger, job.trust.keyrings.known = old.logger, old.known
	return nil
}

// openTrusted opens the CMKs that the machine trusts, as far as they can be.
func (job *rewrapJob) openTrusted() error {
	names, err := job.trust.trustedBy(job.v.Header().FileID)
	if err != nil {
		return err
	}
	for _, name := range names {
		k, err := job.openOne(name)
		switch {
		case err == nil:
			job.open = append(job.open, trusted{name, k})
		case errors.Is(err, os.ErrNotExist):
			job.lost = append(job.lost, name)
		}
	}
	return nil
}

func (job *rewrapJob) openOne(name string) (failover.CMK, error) {
	if path, local := strings.CutPrefix(name, "local:"); local && job.hidden != "" && within(path, job.hidden) {
		return nil, usagef("CMK %s is on the volume itself", name)
	}
	k, err := job.trust.keyrings.open(name)
	if err != nil {
		return nil, fmt.Errorf("CMK %s: %w", name, err)
	}
	return k, nil
}

// removals turns the names of CMKs to be removed into those that headers use.
func (job *rewrapJob) removals(names []string) (uris []string, err error) {
	for _, name := range names {
		uri := name
		if strings.HasPrefix(name, "local:") && !isLocalID(name) {
			k, err := job.openOne(name)
			if errors.Is(err, os.ErrNotExist) {
				return nil, usagef("--remove %s: the file is not there; name the CMK by its ID, as kmsfs inspect shows it: local:ID", name)
			} else if err != nil {
				return nil, err
			}
			uri = k.CMK()
		}
		if slices.Contains(uris, uri) {
			return nil, usagef("CMK %s is given twice", name)
		}
		uris = append(uris, uri)
	}
	return uris, nil
}

// additions opens the CMKs to be added.
func (job *rewrapJob) additions(names, removed []string) (added []trusted, err error) {
	for _, name := range names {
		k, err := job.openOne(name)
		if err != nil {
			return nil, fail(exitCMK, "%w", err)
		}
		if slices.Contains(removed, k.CMK()) {
			return nil, usagef("CMK %s is to be added and removed", name)
		}
		if slices.ContainsFunc(added, func(t trusted) bool { return t.CMK.CMK() == k.CMK() }) {
			return nil, usagef("CMK %s is given twice", name)
		}
		added = append(added, trusted{name, k})
	}
	return added, nil
}

// noteAdded has the machine trust the CMKs that are added.
func (job *rewrapJob) noteAdded(added []trusted) error {
	if len(added) == 0 {
		return nil
	}
	id := job.v.Header().FileID
	noted, err := record(id)
	if err != nil {
		return err
	}
	if len(noted) == 0 {
		noted = slices.Clone(job.trust.named)
	}
	for _, k := range added {
		if !slices.Contains(noted, k.name) {
			noted = append(noted, k.name)
		}
		if len(job.trust.named) > 0 && !slices.Contains(job.trust.named, k.name) {
			job.trust.named = append(slices.Clone(job.trust.named), k.name)
		}
	}
	return writeRecord(id, noted)
}

// forget has the machine trust the CMKs that are removed no more. Of a local CMK whose file is lost, the record knows the path alone.
func (job *rewrapJob) forget(removed []string, result *rewrapResult) error {
	if len(removed) == 0 {
		return nil
	}
	id := job.v.Header().FileID
	noted, err := record(id)
	if err != nil {
		return err
	}
	unknown := slices.Clone(removed)
	gone := func(name string) bool {
		k, err := job.openOne(name)
		if err != nil || !slices.Contains(removed, k.CMK()) {
			return false
		}
		unknown = slices.DeleteFunc(unknown, func(uri string) bool { return uri == k.CMK() })
		return true
	}
	job.trust.named = slices.DeleteFunc(slices.Clone(job.trust.named), gone)
	kept := slices.DeleteFunc(slices.Clone(noted), gone)
	if len(unknown) == 1 && isLocalID(unknown[0]) && len(job.lost) == 1 {
		lost := func(name string) bool { return name == job.lost[0] }
		kept = slices.DeleteFunc(kept, lost)
		job.trust.named = slices.DeleteFunc(job.trust.named, lost)
	}
	for _, name := range job.trust.config {
		if gone(name) {
			result.Warnings = append(result.Warnings, fmt.Sprintf("the configuration file still trusts CMK %s", name))
		}
	}
	if slices.Equal(kept, noted) {
		return nil
	}
	return writeRecord(id, kept)
}
