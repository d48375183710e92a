package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// readyVariable tells a background process that descriptor 3 is a pipe to the one that waits for it.
const readyVariable = "KMSFS_READY_FD"

// isBackground reports whether this process is the one that background started.
func isBackground() bool { return os.Getenv(readyVariable) != "" }

// background runs this command again, detached, and waits until it has mounted or failed.
func background(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(absolutePaths(os.Environ()), readyVariable+"=3")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = os.Stderr // until it is ready, for what fusermount3 says
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	// A signal of the terminal reaches this process alone.
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	message, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if string(message) == "ok" {
		return cmd.Process.Release()
	}
	code, text, ok := strings.Cut(string(message), " ")
	n, err := strconv.Atoi(code)
	_ = cmd.Wait()
	if !ok || err != nil {
		return fmt.Errorf("the background process ended before it had mounted: %v", cmd.ProcessState)
	}
	return fail(n, "%s", text)
}

// absolute makes a path, unless it is empty, independent of the working directory, which a background process leaves.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil && path != "" {
		return abs
	}
	return path
}

// absolutePaths does so with the paths in an environment.
func absolutePaths(environ []string) []string {
	paths := []string{"KMSFS_CONFIG_DIR", "HOME", "XDG_RUNTIME_DIR", "CREDENTIALS_DIRECTORY", "SSL_CERT_FILE", providerOf(cloud.Alibaba).fileVar, providerOf(cloud.Huawei).fileVar}
	for i, v := range environ {
		name, path, _ := strings.Cut(v, "=")
		if slices.Contains(paths, name) {
			environ[i] = name + "=" + absolute(path)
		}
	}
	return environ
}

// A readiness is the background process's end of the pipe; nil in the foreground.
type readiness struct{ pipe *os.File }

// inherited returns the pipe of a background process, if this is one.
func inherited() *readiness {
	if !isBackground() {
		return nil
	}
	os.Unsetenv(readyVariable)
	syscall.CloseOnExec(3)
	return &readiness{os.NewFile(3, "ready")}
}

// ok says that the volume is mounted, and leaves the directory and the terminal of the parent.
func (r *readiness) ok() {
	if r == nil {
		return
	}
	if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
		for fd := range 3 {
			_ = syscall.Dup3(int(null.Fd()), fd, 0)
		}
		null.Close()
	}
	_ = os.Chdir("/")
	_, _ = r.pipe.WriteString("ok")
	r.close()
}

// report hands an error to the parent; it returns false if there is none.
func (r *readiness) report(err error) bool {
	if r == nil || r.pipe == nil {
		return false
	}
	_, _ = fmt.Fprintf(r.pipe, "%d %s", exitCode(err), message(err))
	return true
}

func (r *readiness) close() {
	if r != nil && r.pipe != nil {
		r.pipe.Close()
		r.pipe = nil
	}
}
