package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/local"
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
	exitCMK        = 6 // no trusted CMK, or it refused, or it cannot be used
	exitInUse      = 7
	exitMountpoint = 8
	exitIO         = 9 // the storage below refused
)

// Errors of the command line itself.
var (
	errUsage      = usageMark{}
	errCMK        = errors.New("")
	errMountpoint = errors.New("")
)

// usageMark marks an error as the user's; it adds nothing to the message.
type usageMark struct{}

// Error implements error.
func (usageMark) Error() string { return "" }

// A codedError carries the exit code of another process.
type codedError struct {
	code    int
	message string
}

// Error implements error.
func (e codedError) Error() string { return e.message }

// exitCode is the one place where an error becomes an exit code.
func exitCode(err error) int {
	var coded codedError
	var errno syscall.Errno
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &coded):
		return coded.code
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, volume.ErrInUse):
		return exitInUse
	case errors.Is(err, errMountpoint):
		return exitMountpoint
	case errors.Is(err, header.ErrVersion):
		return exitVersion
	case errors.Is(err, errCMK), errors.Is(err, keyring.ErrNoMatch), errors.Is(err, keyring.ErrDenied), errors.Is(err, keyring.ErrUnavailable),
		errors.Is(err, local.ErrMode), errors.Is(err, local.ErrFormat):
		return exitCMK
	case errors.Is(err, volume.ErrDamaged):
		return exitDamaged
	case errors.Is(err, volume.ErrNotVolume), errors.Is(err, header.ErrFormat):
		return exitNotVolume
	case errors.As(err, &errno) && errno != syscall.ENOENT && errno != syscall.EEXIST && !errors.Is(err, fs.ErrPermission):
		return exitIO
	}
	return exitOther
}

// report prints err and returns the exit code.
func report(stderr io.Writer, err error) int {
	if err != nil {
		for _, line := range strings.Split(strings.TrimSpace(err.Error()), "\n") {
			fmt.Fprintln(stderr, "kmsfs: "+strings.TrimPrefix(line, "kmsfs: "))
		}
	}
	return exitCode(err)
}
