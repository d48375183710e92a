package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocsNameTests finds every test that a document names.
func TestDocsNameTests(t *testing.T) {
	sources := readAll(t, "../*/*_test.go", "../*/*/*_test.go")
	found := regexp.MustCompile(`(Test|Fuzz)[A-Z]\w+`).FindAllString(readAll(t, "../*.md", "../docs/*.md"), -1)
	if len(found) < 50 {
		t.Fatalf("only %d tests are named", len(found))
	}
	for _, name := range found {
		if !strings.Contains(sources, "func "+name+"(") {
			t.Errorf("the documents name %s, which does not exist", name)
		}
	}
}

// readAll returns the content of all files that match a pattern.
func readAll(t *testing.T, patterns ...string) string {
	t.Helper()
	var all strings.Builder
	for _, pattern := range patterns {
		files, err := filepath.Glob(pattern)
		must(t, err)
		for _, f := range files {
			b, err := os.ReadFile(f)
			must(t, err)
			all.Write(b)
		}
	}
	return all.String()
}

// TestManual compares the commands and flags that the man page and the program's help tell of.
func TestManual(t *testing.T) {
	manual := readAll(t, "../docs/kmsfs.1.md")
	v := bareVolume(t)
	synopses := regexp.MustCompile(`(?m)^\*\*kmsfs ([a-z ]+)\*\*`).FindAllStringSubmatch(manual, -1)
	if len(synopses) < 20 {
		t.Fatalf("only %d commands", len(synopses))
	}
	help := v.ok(t, "--help")
	for _, command := range regexp.MustCompile(`(?m)^   ([a-z]+)  `).FindAllStringSubmatch(help, -1) {
		if !strings.Contains(manual, "\n**kmsfs "+command[1]) {
			t.Errorf("%s is not in the synopsis", command[1])
		}
	}
	for _, s := range synopses {
		help += v.ok(t, append(strings.Fields(s[1]), "--help")...)
	}
	flags := make(map[string]bool)
	for _, flag := range regexp.MustCompile(`--[a-z][a-z-]+`).FindAllString(help, -1) {
		flags["**"+flag+"**"] = true
		if flag != "--help" && flag != "--version" && !strings.Contains(manual, "**"+flag+"**") {
			t.Errorf("%s is not in the manual", flag)
		}
	}
	for _, flag := range regexp.MustCompile(`\*\*--[a-z-]+\*\*`).FindAllString(manual, -1) {
		if !flags[flag] {
			t.Errorf("%s is in the manual, and no flag", flag)
		}
	}
}
