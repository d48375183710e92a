package creds

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
)

// maxFile bounds a credential file, in bytes.
const maxFile = 64 << 10

// file is a credential file in the vendor's own form: lines "name = value" in a section, others being ignored. It is read each time, which
// costs little beside the call that it is for, and so follows every change.
type file struct {
	vendor
	path string
}

// Fetch implements [Source].
func (s file) Fetch(context.Context) (Credential, error) {
	f, err := os.OpenFile(s.path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // or a FIFO would block
	if errors.Is(err, os.ErrNotExist) {
		return Credential{}, fmt.Errorf("%w: %w", ErrNone, err)
	}
	if err != nil {
		return Credential{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return Credential{}, err
	case !st.Mode().IsRegular():
		return Credential{}, fmt.Errorf("%w: %s is not a regular file", ErrFormat, s.path)
	case st.Mode().Perm()&0o077 != 0:
		return Credential{}, fmt.Errorf("%w: %s has mode %04o; run: chmod 600 %s", ErrMode, s.path, st.Mode().Perm(), s.path)
	case st.Size() > maxFile:
		return Credential{}, fmt.Errorf("%w: %s is %d bytes long", ErrFormat, s.path, st.Size())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return Credential{}, err
	}
	defer clear(b)
	return s.parse(b)
}

// parse reads the section of the vendor, or the lines before any section. Its errors quote nothing of the file but names.
func (s file) parse(b []byte) (Credential, error) {
	var c Credential
	section := s.section
	for n, line := range strings.Split(string(bytes.TrimPrefix(b, []byte("\ufeff"))), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if line[0] == '[' {
			section = strings.Trim(line, "[] \t")
			continue
		}
		if section != s.section {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok {
			return Credential{}, fmt.Errorf("%w: %s: line %d is not name = value", ErrFormat, s.path, n+1)
		}
		switch name {
		case s.idField:
			c.ID = value
		case s.secretField:
			c.Secret = value
		case s.tokenField:
			c.Token = value
		case "expiration":
			t, err := time.Parse(time.RFC3339, value)
			if err != nil {
				return Credential{}, fmt.Errorf("%w: %s: line %d: expiration is not a time such as 2006-01-02T15:04:05Z", ErrFormat, s.path, n+1)
			}
			c.Expiry = t
		case "type":
			if value != "access_key" && value != "sts" {
				return Credential{}, fmt.Errorf("%w: %s: line %d: only types access_key and sts are known", ErrFormat, s.path, n+1)
			}
		}
	}
	if c.ID == "" || c.Secret == "" {
		return Credential{}, fmt.Errorf("%w: %s has no %s and %s in section [%s]", ErrFormat, s.path, s.idField, s.secretField, s.section)
	}
	return c, nil
}
