package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"syscall"
	"testing"

	"github.com/kmsfs/kmsfs/blockcrypt"
	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/local"
	"github.com/kmsfs/kmsfs/reencrypt"
	"github.com/kmsfs/kmsfs/sdkformat"
	"github.com/kmsfs/kmsfs/volume"
)

func TestExitCodes(t *testing.T) {
	path := func(errno syscall.Errno) error { return &os.PathError{Op: "open", Path: "/x", Err: errno} }
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, exitOK},
		{errors.New("x"), exitOther},
		{path(syscall.EACCES), exitOther},
		{path(syscall.ENOENT), exitOther},
		{path(syscall.EEXIST), exitOther},
		{volume.ErrNotEmpty, exitOther},
		{usagef("x"), exitUsage},
		{keyring.ErrContext, exitUsage},
		{header.ErrBounds, exitUsage},
		{volume.ErrNotVolume, exitNotVolume},
		{header.ErrFormat, exitNotVolume},
		{volume.ErrDamaged, exitDamaged},
		{fmt.Errorf("%w: %w", volume.ErrDamaged, header.ErrFormat), exitDamaged},
		{header.ErrAuth, exitDamaged},
		{blockcrypt.ErrAuth, exitDamaged},
		{blockcrypt.ErrSize, exitDamaged},
		{sdkformat.ErrAuth, exitDamaged},
		{sdkformat.ErrFormat, exitNotVolume},
		{sdkformat.ErrBounds, exitUsage},
		{sdkformat.ErrUnauthenticated, exitOther},
		{header.ErrVersion, exitVersion},
		{keyring.ErrNoMatch, exitCMK},
		{keyring.ErrDenied, exitCMK},
		{keyring.ErrUnavailable, exitCMK},
		{local.ErrMode, exitCMK},
		{local.ErrFormat, exitCMK},
		{volume.ErrInUse, exitInUse},
		{fail(exitMountpoint, "x"), exitMountpoint},
		{path(syscall.ENOSPC), exitIO},
		{path(syscall.EROFS), exitIO},
		{path(syscall.EIO), exitIO},
		{reencrypt.ErrApart, exitIO},
		// What is known where the error is made comes first.
		{fail(exitMountpoint, "x: %w", path(syscall.EIO)), exitMountpoint},
		{errors.Join(errors.New("x"), usagef("y")), exitUsage},
	} {
		for _, err := range []error{c.err, fmt.Errorf("wrapped: %w", c.err)} {
			if c.err == nil {
				err = nil
			}
			if got := exitCode(err); got != c.want {
				t.Errorf("%v: exit code %d, want %d", err, got, c.want)
			}
		}
	}
}

// TestManualListsExitCodes compares the manual's table with the codes.
func TestManualListsExitCodes(t *testing.T) {
	manual, err := os.ReadFile("../../docs/kmsfs.1.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []int
	for _, row := range regexp.MustCompile(`(?m)^\| (\d+) \|`).FindAllSubmatch(manual, -1) {
		n, _ := strconv.Atoi(string(row[1]))
		listed = append(listed, n)
	}
	if len(listed) != exitUnsigned+1 {
		t.Fatalf("the manual lists %v", listed)
	}
	for i, n := range listed {
		if i != n {
			t.Errorf("the manual lists %v", listed)
		}
	}
}

func TestReport(t *testing.T) {
	var b bytes.Buffer
	if code := report(&b, usagef("a is wrong\nhint: use b")); code != exitUsage || b.String() != "kmsfs: a is wrong\nkmsfs: hint: use b\n" {
		t.Errorf("exit code %d, %q", code, b.String())
	}
	b.Reset()
	if code := report(&b, nil); code != exitOK || b.Len() != 0 {
		t.Errorf("exit code %d, %q", code, b.String())
	}
}
