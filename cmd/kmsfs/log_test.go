package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLogFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for range 2 {
		l, done, err := openLog(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		l.Info("line")
		done()
	}
	b, err := os.ReadFile(path)
	if err != nil || strings.Count(string(b), "msg=line") != 2 {
		t.Errorf("%q, %v", b, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if _, _, err := openLog(filepath.Join(path, "below"), nil); err == nil || !strings.Contains(err.Error(), "--log") {
		t.Error(err)
	}
}

func TestSeverities(t *testing.T) {
	var info, warning, failure bytes.Buffer
	text := func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) }
	l := slog.New(severities{text(&info), text(&warning), text(&failure)}).With("a", 1).WithGroup("g")
	l.Info("i", "x", 1)
	l.Warn("w", "x", 1)
	l.Error("e", "x", 1)
	for want, got := range map[string]*bytes.Buffer{"msg=i a=1 g.x=1\n": &info, "msg=w a=1 g.x=1\n": &warning, "msg=e a=1 g.x=1\n": &failure} {
		if !strings.HasSuffix(got.String(), want) || strings.Count(got.String(), "\n") != 1 {
			t.Errorf("%q is not %q", got, want)
		}
	}
}
