package powercut

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// A session is a database's own command-line client, which reads SQL from a pipe.
type session struct {
	cmd    *exec.Cmd
	cancel context.CancelFunc
	in     io.WriteCloser
	lines  *bufio.Scanner
	errors bytes.Buffer // to be read when the client has ended
}

// newSession starts a client, as a user if not nil. The client must print rows without adornment, and end at the first error.
func newSession(as *syscall.Credential, args ...string) (*session, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s := &session{cmd: exec.CommandContext(ctx, args[0], args[1:]...), cancel: cancel}
	s.cmd.Dir, s.cmd.Stderr, s.cmd.WaitDelay = "/", &s.errors, time.Second
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	in, err := s.cmd.StdinPipe()
	if err == nil {
		var out io.ReadCloser
		if out, err = s.cmd.StdoutPipe(); err == nil {
			s.in, s.lines = in, bufio.NewScanner(out)
			err = s.cmd.Start()
		}
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return s, nil
}

// do runs statements to their end and returns the rows they printed.
func (s *session) do(sql string) (rows []string, err error) {
	if _, err := io.WriteString(s.in, sql+"\nSELECT 'done';\n"); err != nil {
		return nil, s.failed(sql)
	}
	for s.lines.Scan() {
		if s.lines.Text() == "done" {
			return rows, nil
		}
		rows = append(rows, s.lines.Text())
	}
	return rows, s.failed(sql)
}

// failed says why a client has ended.
func (s *session) failed(sql string) error {
	err := s.close()
	said := strings.TrimSpace(s.errors.String())
	said = said[strings.LastIndexByte(said, '\n')+1:] // some repeat the statement before
	return fmt.Errorf("%s ended at %.60q: %v: %s", s.cmd.Args[0], sql, err, said)
}

// close ends the client.
func (s *session) close() error {
	if s.cmd.ProcessState != nil {
		return nil
	}
	s.in.Close()
	defer s.cancel()
	return s.cmd.Wait()
}
