package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/control"
	"github.com/kmsfs/kmsfs/fs"
	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/volume"
)

// askAtLeast bounds how long a mount that was refused its CMKs waits before it asks again.
const askAtLeast = 10 * time.Second

// socketPath is where the daemon that has a volume mounted listens. A copy of the volume has the same ID, and another directory.
func socketPath(v *volume.Volume) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(v.RootFd(), &st); err != nil {
		return "", err
	}
	dir, err := runDir()
	path := filepath.Join(dir, fmt.Sprintf("%s.%x-%x.sock", v.Header().FileID, st.Dev, st.Ino))
	if err == nil && len(path) >= len(unix.RawSockaddrUnix{}.Path) {
		err = fmt.Errorf("%s is too long for a socket", path)
	}
	return path, err
}

// runDir is where the sockets of daemons are.
func runDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/run/kmsfs", nil
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "kmsfs"), nil
	}
	dir, err := configDir()
	return filepath.Join(dir, "run"), err
}

// A daemon is what a mounted volume tells and does when it is asked to.
type daemon struct {
	job    *mountJob
	v      *volume.Volume
	srv    *fs.Server
	logger *slog.Logger
	since  time.Time

	server *control.Server // nil if there is none
	stop   context.CancelFunc
	asking sync.WaitGroup

	changes sync.Mutex // held over a rewrap or a rotation

	mu   sync.Mutex
	ring *failover.Keyring // guarded by mu
	keys keyStatus         // guarded by mu
}

// keyStatus is what came of asking the CMKs again.
type keyStatus struct {
	TTL     string     `json:"ttl,omitempty"`     // empty: they are not asked again
	Asked   *time.Time `json:"asked,omitempty"`   // when an answer came last
	Refused string     `json:"refused,omitempty"` // why contents are not served
}

// answer begins to answer commands and, if the mount is to, to ask the CMKs again.
func (job *mountJob) answer(v *volume.Volume, srv *fs.Server, ring *failover.Keyring, logger *slog.Logger) *daemon {
	d := &daemon{job: job, v: v, srv: srv, logger: logger, since: time.Now(), ring: ring}
	var ctx context.Context
	ctx, d.stop = context.WithCancel(context.Background())
	if ttl := job.opts.keyTTL; ttl > 0 {
		d.keys.TTL = ttl.String()
		d.asking.Go(func() { d.askAgain(ctx, ttl) })
	}
	path, err := socketPath(v)
	if err == nil {
		d.server, err = control.Listen(path, control.Options{
			Handlers: map[string]control.Handler{"status": d.status, "rewrap": d.rewrap, "rotate": d.rotate},
			Code:     exitCode,
			Logger:   logger,
		})
	}
	if err != nil {
		logger.Warn("kmsfs status, rewrap and rotate will not find this mount", "err", err)
	}
	return d
}

// end answers no more; what is under way is given up.
func (d *daemon) end() {
	d.stop()
	if d.server != nil {
		d.server.Close()
	}
	d.asking.Wait()
}

// askAgain asks the CMKs every ttl whether they still unwrap the volume's data key. Contents are refused from a refusal to the next success; a CMK that cannot be
// reached changes nothing.
func (d *daemon) askAgain(ctx context.Context, ttl time.Duration) {
	for wait := ttl; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		err := d.v.Ask(ctx)
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		d.mu.Lock()
		was := d.keys.Refused
		switch {
		case err == nil:
			d.keys.Asked, d.keys.Refused = &now, ""
			wait = ttl
		case errors.Is(err, keyring.ErrDenied) && !errors.Is(err, keyring.ErrUnavailable):
			d.keys.Asked, d.keys.Refused = &now, err.Error()
			wait = min(ttl, askAtLeast)
		}
		refused := d.keys.Refused
		d.mu.Unlock()
		switch {
		case refused != "" && was == "":
			d.logger.Error("the CMKs refuse: files are not served any more", "err", err)
			d.srv.Stop()
		case refused == "" && was != "":
			d.srv.Resume()
			d.logger.Info("a CMK answers again: files are served again")
		case err != nil:
			d.logger.Warn("the CMKs were asked again", "err", err)
		}
	}
}

// dataKeyStatus is about the data key of new files.
type dataKeyStatus struct {
	PerFile    bool   `json:"per_file"`     // each gets one of its own
	ID         string `json:"id,omitempty"` // empty if there is none, or if each gets its own
	Generation uint64 `json:"generation"`   // how often it was rotated
	Trouble    string `json:"trouble,omitempty"`
}

// dataKeyOf describes the data key of new files of an unlocked volume.
func dataKeyOf(v *volume.Volume) dataKeyStatus {
	st := dataKeyStatus{PerFile: v.Header().PerFile, Generation: v.Generation()}
	if _, err := v.Current(); err != nil {
		st.Trouble = err.Error()
	} else if !st.PerFile {
		st.ID = v.CurrentKey().String()
	}
	return st
}

// mountStatus is what kmsfs status prints as JSON.
type mountStatus struct {
	Volume     string            `json:"volume"`
	Ciphertext string            `json:"ciphertext"`
	Mountpoint string            `json:"mountpoint"`
	Since      time.Time         `json:"since"`
	PID        int               `json:"pid"`
	Version    string            `json:"version"`
	ReadOnly   bool              `json:"read_only"`
	Serving    bool              `json:"serving"` // contents are not refused
	DataKey    dataKeyStatus     `json:"data_key"`
	Keys       keyStatus         `json:"keys"`
	CMKs       []failover.Status `json:"cmks"`
	OpenFiles  int               `json:"open_files"`
	Journal    journal.Status    `json:"journal"`
}

func (d *daemon) status(context.Context, json.RawMessage, func(any) error) (any, error) {
	st := d.srv.Status()
	d.mu.Lock()
	defer d.mu.Unlock()
	return mountStatus{
		Volume: d.v.Header().FileID.String(), Ciphertext: d.v.Dir(), Mountpoint: d.job.mountpoint, Since: d.since, PID: os.Getpid(), Version: version,
		ReadOnly: d.readOnly(), Serving: !st.Stopped, DataKey: dataKeyOf(d.v), Keys: d.keys, CMKs: d.ring.Status(), OpenFiles: st.Open, Journal: st.Journal,
	}, nil
}

func (d *daemon) readOnly() bool { return d.job.opts.readOnly || d.srv.Journal().ReadOnly() }

// beginChange locks changes, unless the volume may not be changed.
func (d *daemon) beginChange() error {
	if d.readOnly() {
		return fail(exitIO, "%s is mounted read-only; unmount it, or mount it for writing", d.v.Dir())
	}
	if !d.changes.TryLock() {
		return fail(exitInUse, "another rewrap or rotation of %s is under way", d.v.Dir())
	}
	return nil
}

func (d *daemon) rewrap(ctx context.Context, args json.RawMessage, progress func(any) error) (any, error) {
	var req rewrapRequest
	if err := json.Unmarshal(args, &req); err != nil {
		return nil, usagef("rewrap: %w", err)
	}
	if err := d.beginChange(); err != nil {
		return nil, err
	}
	defer d.changes.Unlock()
	job := rewrapJob{v: d.v, j: d.srv.Journal(), trust: d.job.trust, hidden: d.job.mountpoint}
	report, err := job.run(ctx, req, progress)
	if err != nil || req.DryRun {
		return report, err
	}
	if d.job.trust.keyrings != job.trust.keyrings {
		d.job.trust.keyrings.stop()
	}
	d.job.trust = job.trust
	ring := job.ring()
	d.v.SetKeyring(ring)
	d.mu.Lock()
	d.ring = ring
	d.mu.Unlock()
	d.logger.Info("rewrapped", "cmks", report.CMKs, "files", report.Files, "changed", report.Rewrapped, "stragglers", len(report.Stragglers))
	return report, nil
}
