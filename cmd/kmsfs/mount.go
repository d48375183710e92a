package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/fs"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/reencrypt"
	"github.com/kmsfs/kmsfs/volume"
)

func mountCommand() *cli.Command {
	return &cli.Command{
		Name:            "mount",
		Usage:           "mount a volume; returns once it is mounted",
		ArgsUsage:       "CIPHERDIR MOUNTPOINT",
		Description:     "Example: kmsfs mount -o allow_other /srv/cipher /srv/plain",
		HideHelpCommand: true,
		OnUsageError:    usageError,
		Flags: []cli.Flag{
			optionsFlag(),
			cmkFlag("trust `CMK` (repeatable); default: those of the configuration file and what this machine has noted for the volume"),
			&cli.BoolFlag{Name: "foreground", Usage: "stay in the foreground"},
			&cli.StringFlag{Name: "log", Usage: "log to `FILE`, syslog or stderr", DefaultText: "stderr in the foreground, else syslog"},
			configFlag(), endpointFlag(),
		},
		Action: doMount,
	}
}

// A mountJob is a mount command that has been checked.
type mountJob struct {
	opts               mountOptions
	trust              trust
	cipher, mountpoint string
	log                string
}

func doMount(c *cli.Context) error {
	args, err := operands(c, "CIPHERDIR", "MOUNTPOINT")
	if err != nil {
		return err
	}
	job := mountJob{cipher: args[0], mountpoint: args[1]}
	if job.opts, err = mergedOptions(c.StringSlice("o")); err != nil {
		return err
	}
	conf, err := loadConfig(first(c.String("config"), job.opts.config))
	if err != nil {
		return err
	}
	if conf, err = conf.resolved(c, job.opts.endpoints); err != nil {
		return err
	}
	if job.opts, err = mergedOptions(conf.Options, c.StringSlice("o")); err != nil {
		return conf.hide(err)
	}
	if job.trust, err = newTrust(c, job.opts, conf); err != nil {
		return err
	}
	foreground := conf.Foreground
	if c.IsSet("foreground") {
		foreground = c.Bool("foreground")
	}
	if job.log, err = job.logDestination(first(c.String("log"), job.opts.log, conf.Log), foreground); err != nil {
		return conf.hide(err)
	}
	if !foreground && !isBackground() {
		return background(c.Context)
	}
	return job.serve(c.Context, c.App.ErrWriter)
}

// logDestination checks where log lines shall go. A log below the mountpoint would wait for itself.
func (job *mountJob) logDestination(where string, foreground bool) (string, error) {
	switch {
	case where == "" && foreground:
		return "stderr", nil
	case where == "" || where == "syslog":
		return where, nil
	case where == "stderr":
		if !foreground {
			return "", usagef("--log stderr needs --foreground: a process in the background has no terminal")
		}
		return where, nil
	}
	file, err := resolveParent(where)
	if err != nil {
		return "", usagef("--log %s: %w", where, err)
	}
	for _, dir := range []string{job.cipher, job.mountpoint} {
		real, err := resolveParent(dir)
		if err == nil && within(file, real) {
			return "", usagef("--log %s: a log file must not be inside %s", where, dir)
		}
	}
	return file, nil
}

// serve mounts the volume and serves it until it is unmounted.
func (job *mountJob) serve(ctx context.Context, stderr io.Writer) error {
	ready := inherited()
	defer ready.close()
	err := job.mounted(ctx, stderr, ready)
	if err != nil && ready.report(err) {
		return nil // the parent prints it
	}
	return err
}

func (job *mountJob) mounted(ctx context.Context, stderr io.Writer, ready *readiness) error {
	v, err := openVolume(job.cipher)
	if err != nil {
		return err
	}
	defer v.Close()
	if job.mountpoint, err = checkMountpoint(job.mountpoint, v.Dir(), job.opts.nonEmpty); err != nil {
		return err
	}
	if err := lockVolume(ctx, v); err != nil {
		return err
	}
	logger, closeLog, err := openLog(job.log, stderr)
	if err != nil {
		return err
	}
	defer closeLog()
	job.trust.keyrings.logger = logger
	k, err := job.trust.unlock(ctx, v)
	if err != nil {
		return err
	}
	frozen := readOnlyStorage(v)
	warn := func(text string) {
		logger.Warn(text)
		if job.log != "stderr" {
			fmt.Fprintln(stderr, "kmsfs: WARNING: "+text)
		}
	}
	if err := checkNewFiles(v, k, job.opts.readOnly || frozen, warn); err != nil {
		return err
	}
	warnFailed(stderr, k)
	job.trust.keyrings.warnStates(ctx, k.Status(), warn)
	if w := v.Warning(); w != "" {
		logger.Warn("volume header: " + w)
	}
	if err := job.trust.note(v.Header().FileID); err != nil {
		logger.Warn("the volume's CMKs were not noted; the next mount needs --cmk again", "err", err)
	}
	if err := noteGeneration(v); err != nil {
		logger.Warn("the generation of the data key was not noted; this machine will not notice if its rotation is undone", "err", err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("mount %s: %w", v.Dir(), err)
	}
	if !frozen {
		err := reencrypt.Recover(v)
		if job.opts.readOnly && errors.Is(err, reencrypt.ErrApart) { // either file has the content, and nobody writes
			warn(oneLine(err.Error()))
		} else if err != nil {
			return err
		}
	}
	boundGarbage()
	srv, err := fs.Mount(job.mountpoint, fs.Config{
		Volume:          v,
		AllowOther:      job.opts.allowOther,
		ReadOnly:        job.opts.readOnly || frozen,
		StorageReadOnly: frozen,
		Options:         job.opts.kernel,
		NoRings:         job.opts.noRings,
		Logger:          logger,
	})
	if exitCode(err) == exitOther {
		return fail(exitMountpoint, "%w%s", err, mountHint(job.opts.allowOther))
	} else if err != nil {
		return err
	}
	// From here on nothing may look at the mountpoint: a request to itself would keep a killed daemon from dying.
	logger.Info("mounted", "volume", v.Header().FileID.String(), "ciphertext", v.Dir(), "mountpoint", job.mountpoint, "io_uring", srv.Rings())
	go job.unmountOnSignal(ctx, srv, logger)
	answering := job.answer(v, srv, k, logger)
	ready.ok()
	_, _ = systemd.SdNotify(false, systemd.SdNotifyReady)
	srv.Wait()
	answering.end()
	srv.Close()
	_, _ = systemd.SdNotify(false, systemd.SdNotifyStopping)
	logger.Info("unmounted", "mountpoint", job.mountpoint)
	return nil
}

// checkNewFiles refuses a mount in which new files would get an older data key than they should, or none, unless nobody can write to it.
func checkNewFiles(v *volume.Volume, k *failover.Keyring, readOnly bool, warn func(string)) error {
	if _, err := v.Current(); err != nil {
		if !readOnly {
			return currentHint(hinted(err))
		}
		warn(oneLine(err.Error()))
	}
	if h := v.Header(); h.PerFile && !readOnly {
		if _, err := k.Select(keyring.CMKs(h.EDKs)); err != nil {
			warn("no file will get its first bytes, since every one needs a data key that all CMKs of the volume wrap: " + err.Error())
		}
	}
	return nil
}

func readOnlyStorage(v *volume.Volume) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(v.RootFd(), &st) == nil && st.Flags&unix.ST_RDONLY != 0
}

// unmountOnSignal unmounts at a signal, which ends ctx. A mount in use is detached: nobody finds it any more, and the
// process ends with its last user, or at the next signal. That may not be a SIGHUP, which service managers send together with SIGTERM.
func (job *mountJob) unmountOnSignal(ctx context.Context, srv *fs.Server, logger *slog.Logger) {
	<-ctx.Done()
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGINT, syscall.SIGTERM)
	err := srv.Unmount()
	if err == nil {
		return
	}
	logger.Warn("mount is in use; detaching it", "mountpoint", job.mountpoint, "err", err)
	if err := lazyUnmount(job.mountpoint); err != nil {
		logger.Error("cannot detach", "mountpoint", job.mountpoint, "err", err)
	}
	<-again
	os.Exit(exitOther)
}
