package control

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// listen serves at a socket of the test.
func listen(t *testing.T, handlers map[string]Handler) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "s")
	s, err := Listen(path, Options{Handlers: handlers, Code: func(error) int { return 7 }, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
	})
	return path
}

func TestCall(t *testing.T) {
	path := listen(t, map[string]Handler{
		"double": func(_ context.Context, args json.RawMessage, progress func(any) error) (any, error) {
			var n int
			if err := json.Unmarshal(args, &n); err != nil {
				return nil, err
			}
			for i := range n {
				if err := progress(i); err != nil {
					return nil, err
				}
			}
			return 2 * n, nil
		},
		"fail": func(context.Context, json.RawMessage, func(any) error) (any, error) { return nil, errors.New("broken") },
	})
	var steps []string
	var got int
	err := Call(t.Context(), path, "double", 3, func(p json.RawMessage) { steps = append(steps, string(p)) }, &got)
	if err != nil || got != 6 || len(steps) != 3 || steps[2] != "2" {
		t.Errorf("%d, %v, %v", got, steps, err)
	}
	var failed *Error
	if err := Call(t.Context(), path, "fail", nil, nil, &got); !errors.As(err, &failed) || *failed != (Error{"broken", 7}) {
		t.Errorf("%v", err)
	}
	if err := Call(t.Context(), path, "unknown", nil, nil, &got); !errors.As(err, &failed) {
		t.Errorf("%v", err)
	}
	if err := Call(t.Context(), path+"2", "double", 1, nil, &got); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("%v", err)
	}
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
}

// TestCallerLeaves ends a call whose caller is gone.
func TestCallerLeaves(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	path := listen(t, map[string]Handler{"wait": func(ctx context.Context, _ json.RawMessage, _ func(any) error) (any, error) {
		close(began)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	if err := Call(ctx, path, "wait", nil, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	<-ended
}

// TestOldSocket takes the place of a daemon that was killed, and ends what is under way when it is closed itself.
func TestOldSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := Call(t.Context(), path, "wait", nil, nil, nil); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("%v", err)
	}
	began := make(chan struct{})
	s, err := Listen(path, Options{Logger: slog.New(slog.DiscardHandler), Code: func(error) int { return 1 }, Handlers: map[string]Handler{
		"wait": func(ctx context.Context, _ json.RawMessage, _ func(any) error) (any, error) {
			close(began)
			<-ctx.Done()
			return nil, ctx.Err()
		}}})
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() { failed <- Call(context.Background(), path, "wait", nil, nil, nil) }()
	<-began
	s.Close()
	if err := <-failed; err == nil {
		t.Error("a call that was given up succeeds")
	}
}

// TestGarbage answers what is no request with an error, and goes on.
func TestGarbage(t *testing.T) {
	path := listen(t, map[string]Handler{"ok": func(context.Context, json.RawMessage, func(any) error) (any, error) { return true, nil }})
	for _, line := range []string{"\n", "{}\n", "[]\n", "{\"call\": 1}\n", string(make([]byte, maxRequest+1)) + "\n", "half"} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(line)) // it may hang up on what is too long
		c.Close()
	}
	var ok bool
	if err := Call(t.Context(), path, "ok", nil, nil, &ok); err != nil || !ok {
		t.Errorf("%v, %v", ok, err)
	}
}

// TestStrangers refuses a directory that others may write to, and a socket of theirs.
func TestStrangers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	states := []func() error{
		func() error { return os.Mkdir(dir, 0o700) },
		func() error { return os.Chmod(dir, 0o770) },
		func() error { return os.Chmod(dir, 0o702) },
	}
	root := os.Geteuid() == 0 // others cannot give anything away
	if root {
		states = append(states, func() error { return errors.Join(os.Chmod(dir, 0o700), os.Chown(dir, 65534, 65534)) })
	}
	for _, change := range states {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			t.Fatal(err)
		}
		sound := st.Mode&0o777 == 0o700 && int(st.Uid) == os.Geteuid()
		s, err := Listen(filepath.Join(dir, "s"), Options{Logger: slog.New(slog.DiscardHandler)})
		if err == nil {
			s.Close()
		}
		if (err == nil) != sound || err != nil && !strings.Contains(err.Error(), dir) {
			t.Errorf("mode %o of user %d: %v", st.Mode, st.Uid, err)
		}
	}

	if !root {
		return
	}
	// A thread that is another user's listens as that one.
	path := filepath.Join(t.TempDir(), "s")
	listening := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: it ends with the goroutine
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
		}
		if err == nil {
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
				err = errno
			}
		}
		if err == nil {
			err = unix.Listen(fd, 1)
		}
		listening <- err
	}()
	if err := <-listening; err != nil {
		t.Fatal(err)
	}
	if err := Call(t.Context(), path, "status", nil, nil, nil); err == nil || !strings.Contains(err.Error(), "user 65534") {
		t.Errorf("a socket of another user: %v", err)
	}
}
