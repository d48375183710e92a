// Package control lets commands talk to the daemon that has a volume mounted, over a socket in the file system.
//
// One connection is one call. The caller sends one line of JSON, {"call": NAME, "args": …}; the daemon answers with any number of lines
// {"progress": …} and then with {"result": …} or {"error": {"message": …, "code": …}}. A caller that goes away ends its call. The daemon talks only
// to root and to its own user, whatever the mode of the socket, and callers only to a daemon of root's or of their own.
package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// maxRequest bounds a request, in bytes.
const maxRequest = 1 << 20

// ErrNoDaemon says that no daemon listens.
var ErrNoDaemon = errors.New("control: no daemon answers")

// An Error is what a daemon says of a call that failed.
type Error struct {
	Message string `json:"message"`
	Code    int    `json:"code"` // an exit code
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// A Handler serves one kind of call. ctx ends when the caller goes away. progress, which fails when he is gone, may be called any number of times, by one goroutine at a time.
type Handler func(ctx context.Context, args json.RawMessage, progress func(any) error) (result any, err error)

// Options say how to serve.
type Options struct {
	Handlers map[string]Handler // by the name of the call
	Code     func(error) int    // the exit code of an error
	Logger   *slog.Logger
}

// A Server is the daemon's end. Its socket is there until Close.
type Server struct {
	path     string
	o        Options
	listener *net.UnixListener
	ctx      context.Context
	cancel   context.CancelFunc
	calls    sync.WaitGroup
}

type request struct {
	Call string          `json:"call"`
	Args json.RawMessage `json:"args,omitempty"`
}

type answer struct {
	Progress any    `json:"progress,omitempty"`
	Result   any    `json:"result,omitempty"`
	Error    *Error `json:"error,omitempty"`
}

// Listen makes the socket path, and the directory it is in, and serves calls. Whatever is at path is taken for what a daemon that was killed has left: the
// caller has made sure that there is no other.
func Listen(path string, o Options) (*Server, error) {
	if err := makeDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	s := &Server{path: path, o: o, listener: l}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.calls.Go(s.accept)
	return s, nil
}

// makeDir makes the directory of a socket. One in which others could put another socket in its place is refused.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("control: others may write to %s; remove it, or run: chown %d %s; chmod 700 %s", dir, os.Geteuid(), dir, dir)
	}
	return nil
}

// Close removes the socket, ends all calls and waits for them.
func (s *Server) Close() {
	s.cancel()
	s.listener.Close() // removes it, too
	s.calls.Wait()
}

func (s *Server) accept() {
	for {
		c, err := s.listener.AcceptUnix()
		if err != nil {
			if s.ctx.Err() == nil {
				s.o.Logger.Error("control: no more calls are taken", "socket", s.path, "err", err)
			}
			return
		}
		s.calls.Go(func() { s.serve(c) })
	}
}

// serve answers one call.
func (s *Server) serve(c *net.UnixConn) {
	defer c.Close()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	enc := json.NewEncoder(c)
	if uid, err := peer(c); err != nil || !trusted(uid) {
		s.o.Logger.Warn("control: call refused", "uid", uid, "err", err)
		_ = enc.Encode(answer{Error: &Error{Message: "only root and the user that has mounted the volume may ask its daemon", Code: 1}})
		return
	}
	r := bufio.NewReaderSize(c, maxRequest)
	line, err := r.ReadSlice('\n')
	if err != nil {
		return
	}
	go func() {
		_, _ = r.ReadByte() // nothing follows a request: the caller has gone
		cancel()
	}()
	result, err := s.call(ctx, line, func(p any) error { return enc.Encode(answer{Progress: p}) })
	if err != nil {
		_ = enc.Encode(answer{Error: &Error{Message: err.Error(), Code: s.o.Code(err)}})
		return
	}
	_ = enc.Encode(answer{Result: result})
}

func (s *Server) call(ctx context.Context, line []byte, progress func(any) error) (any, error) {
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, fmt.Errorf("control: not a request: %w", err)
	}
	h := s.o.Handlers[r.Call]
	if h == nil {
		return nil, fmt.Errorf("control: the daemon does not know the call %q: it is of another version; mount the volume again", r.Call)
	}
	return h(ctx, r.Args, progress)
}

// trusted reports whether a user is root or the own one.
func trusted(uid int) bool { return uid == 0 || uid == os.Geteuid() }

// peer returns the user at the other end: of a daemon, the one that has begun to listen.
func peer(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	uid = -1
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if failed = err; err == nil {
			uid = int(cred.Uid)
		}
	})
	return uid, errors.Join(err, failed)
}

// Call has the daemon that listens at path do something, and reads what it returns into result. progress gets what the daemon tells on the way; nil: nobody does. The error
// wraps [ErrNoDaemon] if none listens, and [*Error] if it failed.
func Call(ctx context.Context, path, name string, args any, progress func(json.RawMessage), result any) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	defer conn.Close()
	if uid, err := peer(conn.(*net.UnixConn)); err != nil || !trusted(uid) {
		return errors.Join(err, fmt.Errorf("control: %s is a socket of user %d, not of a daemon of one's own", path, uid))
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	b, err := json.Marshal(args)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(conn).Encode(request{name, b}); err != nil {
		return fmt.Errorf("control: %w", err)
	}
	for dec := json.NewDecoder(conn); ; {
		var a struct {
			Progress, Result json.RawMessage
			Error            *Error
		}
		switch err := dec.Decode(&a); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("control: the daemon ended before it had answered: %w", err)
		case a.Error != nil:
			return a.Error
		case a.Result != nil:
			return json.Unmarshal(a.Result, result)
		case progress != nil:
			progress(a.Progress)
		}
	}
}
