package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/journal"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/local"
	"github.com/kmsfs/kmsfs/reencrypt"
	"github.com/kmsfs/kmsfs/sdkformat"
	"github.com/kmsfs/kmsfs/secrets"
	"github.com/kmsfs/kmsfs/volume"
)

// Exit codes, as docs/kmsfs.1.md lists them.
const (
	exitOK         = 0
	exitOther      = 1
	exitUsage      = 2
	exitNotVolume  = 3 // not a volume, or a file that is no ciphertext
	exitDamaged    = 4
	exitVersion    = 5
	exitCMK        = 6 // no trusted CMK, or it refused, or it or a secret cannot be used
	exitInUse      = 7
	exitMountpoint = 8
	exitIO         = 9  // the storage below refused
	exitRepaired   = 10 // fsck found faults and has repaired them all
	exitSomeCMKs   = 11 // keyring check: some of the CMKs cannot be used, others can
	exitUnsigned   = 12 // verify: the signature does not hold, so that nothing is known
)

// A failure is an error whose exit code is known where it is made. Lines of its message after the first are hints.
type failure struct {
	code int
	err  error
}

// Error implements error.
func (f *failure) Error() string { return f.err.Error() }

// Unwrap lets [errors.Is] see the cause.
func (f *failure) Unwrap() error { return f.err }

func fail(code int, format string, args ...any) error {
	return &failure{code, fmt.Errorf(format, args...)}
}

// usagef is the failure of a wrong command line or configuration; nothing has been changed yet.
func usagef(format string, args ...any) error { return fail(exitUsage, format, args...) }

// storageErrors are what the storage below says when the fault is its own, not the command line's.
func storageErrors() []syscall.Errno {
	return []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EFBIG, syscall.ESTALE, syscall.EUCLEAN,
		syscall.ENOTCONN, syscall.EHOSTDOWN, syscall.EREMOTEIO}
}

// exitCode is the one place where an error becomes an exit code. The storage's refusal comes before what it may have caused.
func exitCode(err error) int {
	var known *failure
	var errno syscall.Errno
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
	}
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &known):
		return known.code
	case errors.As(err, &errno) && slices.Contains(storageErrors(), errno), is(journal.ErrReplay, reencrypt.ErrApart):
		return exitIO
	case is(volume.ErrInUse):
		return exitInUse
	case is(header.ErrVersion):
		return exitVersion
	case is(keyring.ErrNoMatch, keyring.ErrUntrusted, keyring.ErrDenied, keyring.ErrUnavailable, local.ErrMode, local.ErrFormat, secrets.ErrValue):
		return exitCMK
	case is(volume.ErrDamaged, volume.ErrCurrent, volume.ErrRolledBack, header.ErrAuth, blockcrypt.ErrAuth, blockcrypt.ErrSize, sdkformat.ErrAuth):
		return exitDamaged
	case is(volume.ErrNotVolume, header.ErrFormat, sdkformat.ErrFormat):
		return exitNotVolume
	case is(keyring.ErrContext, header.ErrBounds, volume.ErrPerFile, sdkformat.ErrBounds):
		return exitUsage
	}
	return exitOther
}

// message is what is printed of an error. What ends a context is a signal, or an unmount, and users know no contexts but encryption contexts.
func message(err error) string {
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), context.Canceled.Error(), "interrupted")
}

// report prints err, a line at a time, and returns its exit code.
func report(stderr io.Writer, err error) int {
	if err != nil {
		for line := range strings.SplitSeq(message(err), "\n") {
			fmt.Fprintln(stderr, "kmsfs: "+line)
		}
	}
	return exitCode(err)
}
