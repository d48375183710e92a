package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/moby/sys/mountinfo"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/fs"
	"github.com/kmsfs/kmsfs/volume"
)

func mountCommand() *cli.Command {
	return &cli.Command{
		Name:         "mount",
		Usage:        "mount a volume; returns once it is mounted",
		ArgsUsage:    "CIPHERDIR MOUNTPOINT",
		Description:  "Example: kmsfs mount -o allow_other /srv/cipher /srv/plain",
		OnUsageError: usageError,
		Flags: []cli.Flag{
			optionsFlag(),
			cmkFlag("trust `CMK` (repeatable); default: what this machine has noted for the volume"),
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
	cipher, mountpoint string
	cmks               []string // empty: the volume's record says
	fallback           []string // from the configuration file, when there is no record
	log                string
}

func doMount(c *cli.Context) error {
	args, err := operands(c, "CIPHERDIR", "MOUNTPOINT")
	if err != nil {
		return err
	}
	var job mountJob
	for _, list := range c.StringSlice("o") {
		if err := parseOptions(&job.opts, list); err != nil {
			return err
		}
	}
	conf, err := loadConfig(first(c.String("config"), job.opts.config))
	if err != nil {
		return err
	}
	for _, list := range conf.Options {
		if err := parseOptions(&job.opts, list); err != nil {
			return err
		}
	}
	job.cmks = c.StringSlice("cmk")
	if len(job.cmks) == 0 {
		job.cmks = job.opts.cmks
	}
	job.fallback = conf.CMK
	if err := errors.Join(checkCMKs(job.cmks), checkCMKs(job.fallback),
		checkEndpoints(append(append(c.StringSlice("endpoint"), job.opts.endpoints...), conf.Endpoint...))); err != nil {
		return err
	}
	job.log = first(c.String("log"), job.opts.log, conf.Log)
	if job.cipher, err = filepath.Abs(args[0]); err != nil {
		return err
	}
	if job.mountpoint, err = filepath.Abs(args[1]); err != nil {
		return err
	}
	foreground := c.Bool("foreground") || conf.Foreground
	if os.Getenv(readyVariable) == "" && !foreground {
		return background(c.Context)
	}
	return job.serve(c.App.ErrWriter, foreground)
}

// serve mounts the volume and serves it until it is unmounted.
func (job *mountJob) serve(stderr io.Writer, foreground bool) error {
	ready := inherited()
	defer ready.close()
	err := job.mounted(stderr, foreground, ready)
	if err != nil && ready.report(err) {
		return nil // the parent prints it
	}
	return err
}

func (job *mountJob) mounted(stderr io.Writer, foreground bool, ready *readiness) error {
	harden()
	v, err := volume.Open(job.cipher)
	if err != nil {
		return err
	}
	defer v.Close()
	if err := job.checkMountpoint(v.Dir()); err != nil {
		return err
	}
	if err := v.Lock(); err != nil {
		return fmt.Errorf("%w; unmount it first, or wait for the other mount to finish", err)
	}
	if err := job.unlock(v); err != nil {
		return err
	}
	logger, closeLog, err := openLog(job.log, foreground, stderr)
	if err != nil {
		return err
	}
	defer closeLog()
	if w := v.Warning(); w != "" {
		logger.Warn("volume header: " + w)
	}
	var st unix.Statfs_t
	readOnly, frozen := job.opts.readOnly, false
	if unix.Fstatfs(v.RootFd(), &st) == nil && st.Flags&unix.ST_RDONLY != 0 {
		readOnly, frozen = true, true
	}
	srv, err := fs.Mount(job.mountpoint, fs.Config{
		Volume:          v,
		AllowOther:      job.opts.allowOther,
		ReadOnly:        readOnly,
		StorageReadOnly: frozen,
		Options:         job.opts.kernel,
		Logger:          logger,
	})
	if err != nil {
		return fmt.Errorf("%w%w", errMountpoint, err)
	}
	logger.Info("mounted", "volume", v.Header().FileID.String(), "ciphertext", v.Dir(), "mountpoint", job.mountpoint)
	go job.unmountOnSignal(srv, logger)
	ready.ok()
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	srv.Wait()
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	logger.Info("unmounted", "mountpoint", job.mountpoint)
	return nil
}

// unlock opens the volume with the CMKs that are trusted, and notes them if they came from the command line.
func (job *mountJob) unlock(v *volume.Volume) error {
	cmks := job.cmks
	if len(cmks) == 0 {
		var err error
		if cmks, err = record(v.Header().FileID); err != nil {
			return err
		}
	}
	if len(cmks) == 0 {
		cmks = job.fallback
	}
	var listed []string
	for _, e := range v.Header().EDKs {
		listed = append(listed, e.CMK)
	}
	hint := fmt.Sprintf("\nhint: the volume's data key is wrapped by %s; name one of them with --cmk (a local one by its path, local:/path)", strings.Join(listed, ", "))
	if len(cmks) == 0 {
		return fmt.Errorf("%w%s: no CMK is trusted for this volume%s", errCMK, v.Dir(), hint)
	}
	k, err := openKeyring(cmks, true)
	if err != nil {
		return err
	}
	if err := v.Unlock(context.Background(), k); err != nil {
		return fmt.Errorf("%w%s", err, hint)
	}
	if len(job.cmks) > 0 {
		if have, _ := record(v.Header().FileID); len(have) == 0 {
			_ = writeRecord(v.Header().FileID, job.cmks) // a convenience: --cmk still works
		}
	}
	return nil
}

// checkMountpoint refuses what cannot be mounted on, and clears away a mount whose daemon is gone.
func (job *mountJob) checkMountpoint(cipher string) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w%w", errMountpoint, fmt.Errorf("mountpoint "+format, args...))
	}
	if isStale(job.mountpoint) {
		if !isKmsfs(job.mountpoint) {
			return bad("%s: another file system there does not answer", job.mountpoint)
		}
		if err := lazyUnmount(job.mountpoint); err != nil {
			return bad("%s: cannot clear a stale mount: %w", job.mountpoint, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(job.mountpoint, &st); err != nil {
		return bad("%s: %w", job.mountpoint, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return bad("%s is not a directory", job.mountpoint)
	}
	real, err := filepath.EvalSymlinks(job.mountpoint)
	if err != nil {
		return bad("%s: %w", job.mountpoint, err)
	}
	job.mountpoint = real
	if within(real, cipher) || within(cipher, real) {
		return bad("%s and the ciphertext %s must not contain each other", real, cipher)
	}
	entries, err := os.ReadDir(real)
	if err != nil {
		return bad("%s: %w", real, err)
	}
	if len(entries) > 0 && !job.opts.nonEmpty {
		return bad("%s is not empty; choose another, or mount over it with -o nonempty", real)
	}
	return nil
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// isStale reports whether path is on a FUSE mount whose daemon is gone, or just goes. The kernel may know the answer to stat; for
// statfs it asks.
func isStale(path string) bool {
	err := unix.Statfs(path, new(unix.Statfs_t))
	return err == unix.ENOTCONN || err == unix.ECONNABORTED
}

// isKmsfs reports whether path is a mountpoint of ours; it does not touch the mount.
func isKmsfs(path string) bool {
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	return err == nil && len(infos) > 0 && infos[len(infos)-1].FSType == "fuse.kmsfs"
}

// unmountOnSignal unmounts at SIGTERM or SIGINT. A mount in use is detached: nobody finds it any more, and the
// process ends with its last user, or at the next signal.
func (job *mountJob) unmountOnSignal(srv *fs.Server, logger *slog.Logger) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	for range signals {
		err := srv.Unmount()
		if err == nil {
			return
		}
		logger.Warn("mount is in use; detaching it", "mountpoint", job.mountpoint, "err", err)
		if err := lazyUnmount(job.mountpoint); err != nil {
			logger.Error("cannot detach", "mountpoint", job.mountpoint, "err", err)
		}
		<-signals
		os.Exit(exitOther)
	}
}

// openLog opens the destination of log lines.
func openLog(where string, foreground bool, stderr io.Writer) (*slog.Logger, func(), error) {
	nothing := func() {}
	switch where = first(where, map[bool]string{true: "stderr", false: "syslog"}[foreground]); where {
	case "stderr":
		return slog.New(slog.NewTextHandler(stderr, nil)), nothing, nil
	case "syslog":
		w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_NOTICE, "kmsfs")
		if err != nil {
			return slog.New(slog.DiscardHandler), nothing, nil // no syslog on this machine
		}
		return slog.New(slog.NewTextHandler(w, nil)), func() { w.Close() }, nil
	}
	f, err := os.OpenFile(where, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nothing, fmt.Errorf("log file: %w", err)
	}
	return slog.New(slog.NewTextHandler(f, nil)), func() { f.Close() }, nil
}
