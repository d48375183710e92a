package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"

	"github.com/kmsfs/kmsfs/control"
	"github.com/kmsfs/kmsfs/rewrap"
	"github.com/kmsfs/kmsfs/volume"
)

func rewrapCommand() *cli.Command {
	return &cli.Command{
		Name:            "rewrap",
		Usage:           "change the CMKs that wrap a volume's data key, in every header; mounted or not",
		ArgsUsage:       "CIPHERDIR",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Description: "Example: kmsfs rewrap --add local:/etc/kmsfs/new --remove local:/etc/kmsfs/old /srv/cipher\n" +
			"The data key and the content of files stay. Cut off and run again, it goes on; without flags, it finishes what a run left behind.\n" +
			"This is no revocation: whoever kept an old header and may use a CMK that it lists can still unwrap the data key.",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "add", Usage: "wrap under `CMK`, too (repeatable)"},
			&cli.StringSliceFlag{Name: "remove", Usage: "drop what `CMK` has wrapped (repeatable); a local CMK by path or, if its file is lost, as local:ID"},
			&cli.StringSliceFlag{Name: "replace", Usage: "`OLD=NEW`: remove one and add another (repeatable)"},
			&cli.BoolFlag{Name: "dry-run", Usage: "wrap, and say what would be changed, but change nothing"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			trustFlag(), configFlag(), endpointFlag(),
		},
		Action: doRewrap,
	}
}

// A rewrapRequest is what a rewrap is to do, also as the daemon is told.
type rewrapRequest struct {
	Add       []string `json:"add,omitempty"`
	Remove    []string `json:"remove,omitempty"`
	Endpoints []string `json:"endpoints,omitempty"` // that the daemon may not know
	DryRun    bool     `json:"dry_run,omitempty"`
	Progress  bool     `json:"progress,omitempty"`
}

// A rewrapResult is what a rewrap did.
type rewrapResult struct {
	rewrap.Report
	DryRun   bool     `json:"dry_run"`
	Live     bool     `json:"live"` // by the daemon that has the volume mounted
	Warnings []string `json:"warnings"`
}

func doRewrap(c *cli.Context) error {
	args, err := operands(c, "CIPHERDIR")
	if err != nil {
		return err
	}
	req, err := parseRewrap(c)
	if err != nil {
		return err
	}
	t, err := configuredTrust(c)
	if err != nil {
		return err
	}
	req.Endpoints = t.endpointList()
	v, err := openVolume(args[0])
	if err != nil {
		return err
	}
	defer v.Close()
	bar := newFilesBar(c)
	req.Progress = bar != nil
	result, err := rewrapAnywhere(c.Context, v, t, req, bar.show)
	bar.clear()
	if err != nil {
		return fmt.Errorf("rewrap %s: %w", v.Dir(), err)
	}
	return printRewrap(c, v, result)
}

// rewrapAnywhere has the daemon do it if the volume is mounted.
func rewrapAnywhere(ctx context.Context, v *volume.Volume, t trust, req rewrapRequest, show func(rewrap.Progress)) (result rewrapResult, err error) {
	err = anywhere(ctx, v, func() (err error) {
		result, err = rewrapLive(ctx, v, req, show)
		return err
	}, func() (err error) {
		result, err = rewrapHere(ctx, v, t, req, show)
		return err
	})
	return result, err
}

// anywhere changes a volume: live if it is mounted, here if it is not, after taking its lock.
func anywhere(ctx context.Context, v *volume.Volume, live, here func() error) error {
	if err := v.Lock(); errors.Is(err, volume.ErrInUse) {
		err := live()
		if !errors.Is(err, control.ErrNoDaemon) {
			return err
		}
		if err := lockVolume(ctx, v); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return here()
}

func rewrapHere(ctx context.Context, v *volume.Volume, t trust, req rewrapRequest, show func(rewrap.Progress)) (result rewrapResult, err error) {
	if _, err := t.unlock(ctx, v); err != nil {
		return result, err
	}
	j, err := openJournal(v, req.DryRun)
	if err != nil {
		return result, err
	}
	job := rewrapJob{v: v, j: j, trust: t}
	result, err = job.run(ctx, req, func(p any) error { show(p.(rewrap.Progress)); return nil })
	return result, errors.Join(err, j.Close())
}

func rewrapLive(ctx context.Context, v *volume.Volume, req rewrapRequest, show func(rewrap.Progress)) (result rewrapResult, err error) {
	socket, err := socketPath(v)
	if err != nil {
		return result, err
	}
	at := mountpointOf(v.Dir())
	for _, cmk := range slices.Concat(req.Add, req.Remove) {
		path, local := strings.CutPrefix(cmk, "local:")
		if real, err := filepath.EvalSymlinks(path); local && at != "" && err == nil && within(real, at) {
			return result, usagef("CMK %s is on the volume itself", cmk)
		}
	}
	err = control.Call(ctx, socket, "rewrap", req, func(raw json.RawMessage) {
		var p rewrap.Progress
		if json.Unmarshal(raw, &p) == nil {
			show(p)
		}
	}, &result)
	result.Live = true
	return result, daemonError(err)
}

// parseRewrap reads and checks what the command line says.
func parseRewrap(c *cli.Context) (req rewrapRequest, err error) {
	req = rewrapRequest{Add: c.StringSlice("add"), Remove: c.StringSlice("remove"), DryRun: c.Bool("dry-run")}
	for _, s := range c.StringSlice("replace") {
		from, to, ok := cutReplace(s)
		if !ok {
			return req, usagef("--replace %s is not OLD=NEW with two CMKs", s)
		}
		req.Remove, req.Add = append(req.Remove, from), append(req.Add, to)
	}
	for _, cmk := range req.Add {
		if slices.Contains(req.Remove, cmk) {
			return req, usagef("CMK %s is to be added and removed", cmk)
		}
	}
	return req, req.check()
}

// check refuses CMKs that no provider knows.
func (req rewrapRequest) check() error {
	var named []string
	for _, cmk := range req.Remove {
		if !isLocalID(cmk) {
			named = append(named, cmk)
		}
	}
	return errors.Join(checkCMKs(req.Add), checkCMKs(named))
}

// cutReplace splits OLD=NEW where NEW begins like a CMK: a path may have an equals sign in it.
func cutReplace(s string) (from, to string, ok bool) {
	for _, scheme := range []string{"=local:", "=acs:", "=huawei:"} {
		if i := strings.Index(s, scheme); i > 0 {
			return s[:i], s[i+1:], true
		}
	}
	return "", "", false
}

// isLocalID reports whether a CMK is local and named by its ID, as headers name it.
func isLocalID(cmk string) bool {
	id, ok := strings.CutPrefix(cmk, "local:")
	return ok && len(id) == 32 && strings.Trim(id, "0123456789abcdef") == ""
}

func printRewrap(c *cli.Context, v *volume.Volume, r rewrapResult) error {
	if c.Bool("json") {
		if err := printJSON(c.App.Writer, r); err != nil {
			return err
		}
	} else {
		for _, s := range r.Stragglers {
			fmt.Fprintf(c.App.Writer, "%s: not rewrapped: %s\n", filepath.Join(v.Dir(), s.Ciphertext), oneLine(s.Cause))
		}
		did := "rewrapped"
		if r.DryRun {
			did = "would rewrap"
		}
		fmt.Fprintf(c.App.Writer, "%s %d of %d files, with %d wraps; the volume opens with any one of %s\n", did, r.Rewrapped, r.Files, r.Wraps, strings.Join(r.CMKs, ", "))
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(c.App.ErrWriter, "kmsfs: warning: %s\n", w)
	}
	if len(r.Stragglers) > 0 {
		return fail(exitDamaged, "%s: %d files keep the headers they had\nhint: kmsfs fsck says what is damaged; kmsfs rewrap, run again, goes on with the others", v.Dir(), len(r.Stragglers))
	}
	return nil
}

// A filesBar is a progress bar over files; nil draws nothing.
type filesBar struct{ b *progressbar.ProgressBar }

func newFilesBar(c *cli.Context) *filesBar {
	if !isTerminal(c.App.ErrWriter) {
		return nil
	}
	return &filesBar{progressbar.NewOptions64(1, progressbar.OptionSetWriter(c.App.ErrWriter), progressbar.OptionSetDescription("rewrap"), progressbar.OptionShowCount(),
		progressbar.OptionSetPredictTime(true), progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish())}
}

func (b *filesBar) show(p rewrap.Progress) {
	if b == nil {
		return
	}
	b.b.ChangeMax64(max(p.Total, p.Done, 1))
	_ = b.b.Set64(p.Done)
}

func (b *filesBar) clear() {
	if b != nil {
		_ = b.b.Clear()
	}
}
