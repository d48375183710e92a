package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"

	"golang.org/x/sys/unix"
)

// openLog opens the destination of log lines: a file, "syslog" or "stderr"; "" is syslog if there is one.
func openLog(where string, stderr io.Writer) (*slog.Logger, func(), error) {
	switch where {
	case "stderr":
		return slog.New(slog.NewTextHandler(stderr, nil)), func() {}, nil
	case "syslog", "":
		w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_NOTICE, "kmsfs")
		if err != nil && where == "" {
			fmt.Fprintln(stderr, "kmsfs: warning: there is no syslog on this machine, so nothing is logged; use --log FILE")
			return slog.New(slog.DiscardHandler), func() {}, nil
		} else if err != nil {
			return nil, nil, fmt.Errorf("--log syslog: %w", err)
		}
		return slog.New(newSeverities(w)), func() { w.Close() }, nil
	}
	f, err := os.OpenFile(where, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NONBLOCK, 0o600) // or a FIFO would wait for a reader
	if err != nil {
		return nil, nil, fmt.Errorf("--log: %w", err)
	}
	return slog.New(slog.NewTextHandler(f, nil)), func() { f.Close() }, nil
}

// severities hands each record to syslog with the severity of its level.
type severities struct{ info, warning, err slog.Handler }

func newSeverities(w *syslog.Writer) severities {
	handler := func(send func(string) error) slog.Handler {
		return slog.NewTextHandler(sender(send), &slog.HandlerOptions{
			ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
				if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
					return slog.Attr{} // syslog has its own
				}
				return a
			},
		})
	}
	return severities{handler(w.Info), handler(w.Warning), handler(w.Err)}
}

// Enabled implements [slog.Handler].
func (s severities) Enabled(ctx context.Context, l slog.Level) bool { return s.info.Enabled(ctx, l) }

// Handle implements [slog.Handler].
func (s severities) Handle(ctx context.Context, r slog.Record) error {
	switch {
	case r.Level >= slog.LevelError:
		return s.err.Handle(ctx, r)
	case r.Level >= slog.LevelWarn:
		return s.warning.Handle(ctx, r)
	}
	return s.info.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (s severities) WithAttrs(attrs []slog.Attr) slog.Handler {
	return severities{s.info.WithAttrs(attrs), s.warning.WithAttrs(attrs), s.err.WithAttrs(attrs)}
}

// WithGroup implements [slog.Handler].
func (s severities) WithGroup(name string) slog.Handler {
	return severities{s.info.WithGroup(name), s.warning.WithGroup(name), s.err.WithGroup(name)}
}

// A sender is one severity of syslog as a writer of lines.
type sender func(string) error

// Write implements [io.Writer].
func (s sender) Write(b []byte) (int, error) { return len(b), s(string(b)) }
