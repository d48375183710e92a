package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// kmsfs runs the program in this process, with a configuration directory of its own.
func kmsfs(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	if os.Getenv("KMSFS_CONFIG_DIR") == "" {
		t.Setenv("KMSFS_CONFIG_DIR", filepath.Join(t.TempDir(), "config"))
	}
	var out, errs bytes.Buffer
	code = run(context.Background(), append([]string{"kmsfs"}, args...), &out, &errs)
	return out.String(), errs.String(), code
}

// elsewhere goes to a new and empty directory, which it returns, with a configuration directory of the test's own.
func elsewhere(t *testing.T) (dir string) {
	t.Helper()
	t.Setenv("KMSFS_CONFIG_DIR", t.TempDir())
	t.Chdir(t.TempDir())
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestWrongCommandLine(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, dir := range []string{"a", "b"} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args string
		says []string
	}{
		{"moutn", []string{`"moutn"`, "did you mean mount?"}},
		{"xyz", []string{`"xyz"`, "kmsfs --help"}},
		{"help moutn", []string{"did you mean mount?"}},
		{"key", []string{"kmsfs key new FILE"}},
		{"key nex f", []string{"did you mean new?"}},
		{"key new", []string{"FILE is missing"}},
		{"key new --force f", []string{"kmsfs key new has no flag --force"}},
		{"mount --foregroun a b", []string{"--foregroun", "did you mean --foreground?"}},
		{"--version1", []string{"did you mean --version?"}},
		{"init --segmnt-size 1 a", []string{"did you mean --segment-size?"}},
		{"init --segment-size x a", []string{"--segment-size", `"x"`}},
		{"init --cmk", []string{"--cmk"}},
		{"mount a", []string{"MOUNTPOINT is missing", "kmsfs mount [FLAGS] CIPHERDIR MOUNTPOINT"}},
		{"mount a b c", []string{`"c" is one too many`}},
		{"mount a b --foreground", []string{"--foreground stands after a", "put flags first"}},
		{"umount -- -x", []string{"-x", "write ./-x"}},
		{"mount -o bogus a b", []string{`"bogus"`, "known are ro"}},
		{"mount -o allow-other a b", []string{"did you mean allow_other?"}},
		{"mount -o remount,ro a b", []string{"remount", "unmount it"}},
		{"mount -o log= a b", []string{"log needs a value"}},
		{"mount --log stderr a b", []string{"--log stderr", "--foreground"}},
		{"mount --log a/log a b", []string{"--log a/log", "inside a"}},
		{"mount --log b/log a b", []string{"inside b"}},
		{"version now", []string{`"now"`}},
		{"inspect", []string{"FILE_OR_CIPHERDIR is missing"}},
	} {
		stdout, stderr, code := kmsfs(t, strings.Fields(c.args)...)
		if code != exitUsage || stdout != "" {
			t.Errorf("kmsfs %s: exit code %d, stdout %q", c.args, code, stdout)
		}
		for line := range strings.Lines(stderr) {
			if !strings.HasPrefix(line, "kmsfs: ") {
				t.Errorf("kmsfs %s: line %q", c.args, line)
			}
		}
		for _, s := range c.says {
			if !strings.Contains(stderr, s) {
				t.Errorf("kmsfs %s: %q does not say %q", c.args, stderr, s)
			}
		}
	}
	if _, stderr, code := kmsfs(t, "umount", ""); code != exitUsage || !strings.Contains(stderr, "empty") {
		t.Errorf("empty operand: %d %s", code, stderr)
	}
	if _, stderr, _ := kmsfs(t, "xyz"); strings.Contains(stderr, "did you mean") {
		t.Errorf("a far guess: %s", stderr)
	}
}

func TestHelp(t *testing.T) {
	top, _, code := kmsfs(t)
	if code != exitOK {
		t.Errorf("no arguments: exit code %d", code)
	}
	for _, args := range [][]string{{"help"}, {"--help"}, {"-h"}} {
		if out, stderr, code := kmsfs(t, args...); out != top || stderr != "" || code != exitOK {
			t.Errorf("%v: exit code %d, %q, %q", args, code, out, stderr)
		}
	}
	var walk func(path []string)
	commands := 0
	walk = func(path []string) {
		commands++
		a, _, code := kmsfs(t, append([]string{"help"}, path...)...)
		b, _, _ := kmsfs(t, append(path, "--help")...)
		if code != exitOK || a != b || !strings.Contains(a, "kmsfs "+strings.Join(path, " ")) {
			t.Errorf("help %v: exit code %d\n%s\n%s", path, code, a, b)
		}
	}
	for _, c := range newApp(nil, nil).Commands {
		if c.Usage == "" || c.OnUsageError == nil || !c.HideHelpCommand {
			t.Errorf("command %s is incomplete", c.Name)
		}
		if !strings.Contains(top, c.Usage) {
			t.Errorf("the help does not list %s", c.Name)
		}
		walk([]string{c.Name})
		for _, sub := range c.Subcommands {
			walk([]string{c.Name, sub.Name})
		}
	}
	if commands < 8 {
		t.Errorf("only %d commands", commands)
	}
}

func TestVersion(t *testing.T) {
	a, _, code := kmsfs(t, "version")
	b, _, _ := kmsfs(t, "--version")
	if code != exitOK || a != b || a != "kmsfs version "+version+" (format 1)\n" {
		t.Errorf("exit code %d, %q, %q", code, a, b)
	}
}

// TestFullOutput loses what a command prints, and says so, unless the command has failed itself.
func TestFullOutput(t *testing.T) {
	dir := elsewhere(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, c := range []struct {
		args string
		code int
	}{
		{"key new cmk", exitIO},
		{"init --cmk local:" + dir + "/cmk cipher", exitIO},
		{"inspect cipher", exitIO},
		{"inspect --json cipher", exitIO},
		{"fsck cipher", exitIO},
		{"keyring check cipher", exitIO},
		{"rotate cipher", exitIO},
		{"version", exitIO},
		{"help mount", exitIO},
		{"encrypt --cmk local:" + dir + "/cmk cmk sealed", exitOK}, // it prints nothing
		{"inspect none", exitNotVolume},
	} {
		var stderr bytes.Buffer
		code := run(t.Context(), append([]string{"kmsfs"}, strings.Fields(c.args)...), full, &stderr)
		if code != c.code || (code == exitIO) != strings.Contains(stderr.String(), "no space left") || strings.Count(stderr.String(), "\n") > 1 {
			t.Errorf("%s: exit code %d, want %d, %q", c.args, code, c.code, stderr.String())
		}
	}
}

// TestContextSpaces keeps the spaces of a context: the KMS and other programs see them, too.
func TestContextSpaces(t *testing.T) {
	dir := elsewhere(t)
	for _, line := range [][]string{
		{"key", "new", "cmk"},
		{"init", "--cmk", "local:" + dir + "/cmk", "--context", " a = b ", "cipher"},
	} {
		if _, stderr, code := kmsfs(t, line...); code != exitOK {
			t.Fatalf("%q: %s", line, stderr)
		}
	}
	if out, _, _ := kmsfs(t, "inspect", "--json", "cipher"); !strings.Contains(out, `" a ": " b "`) {
		t.Errorf("got %s", out)
	}
}

// TestForceSparesCMKs replaces files, but no local CMK.
func TestForceSparesCMKs(t *testing.T) {
	dir := elsewhere(t)
	cmk := "local:" + dir + "/cmk"
	kmsfs(t, "key", "new", "open")
	if err := os.Chmod("open", 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
	}{
		{"key new cmk", exitOK},
		{"encrypt --cmk " + cmk + " /proc/version sealed", exitOK},
		{"encrypt --force --cmk " + cmk + " /proc/version sealed", exitOK},
		{"encrypt --force --cmk " + cmk + " cmk cmk", exitOther},
		{"decrypt --force --cmk " + cmk + " sealed cmk", exitOther},
		{"data encrypt --force --cmk " + cmk + " cmk cmk", exitOther},
		{"encrypt --force --cmk " + cmk + " cmk open", exitOther}, // it is a CMK, if one that is not used as it is
		{"decrypt --cmk " + cmk + " sealed plain", exitOK},
	} {
		if _, stderr, code := kmsfs(t, strings.Fields(c.args)...); code != c.code || code != exitOK && !strings.Contains(stderr, " is a local CMK file") {
			t.Errorf("%s: exit code %d, want %d: %s", c.args, code, c.code, stderr)
		}
	}
}

// TestExamples shows an example in the help of every command that does something.
func TestExamples(t *testing.T) {
	var look func(commands []*cli.Command, path string)
	look = func(commands []*cli.Command, path string) {
		for _, c := range commands {
			look(c.Subcommands, path+" "+c.Name)
			if len(c.Subcommands) == 0 && c.Name != "help" && c.Name != "version" && !strings.Contains(c.Description, path+" "+c.Name) {
				t.Errorf("%s %s has no example", path, c.Name)
			}
		}
	}
	look(newApp(io.Discard, io.Discard).Commands, "kmsfs")
}
