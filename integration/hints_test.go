package integration

import (
	"regexp"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/integration/emulator"
)

// TestHints says what to do about a CMK that failed, and speaks of trust only where another CMK would help.
func TestHints(t *testing.T) {
	t.Parallel()
	c := newClouds(t, emulator.Options{CMKs: cloudCMKs()[:2]})
	c.init(t)
	c.faults(t, emulator.Fault{Kind: emulator.Status, Status: 403, Code: "Forbidden.NoPermission"})
	r := c.run(t, "mount", c.cipher, c.plain)
	if r.code != exitCMK || !strings.Contains(r.stderr, "no permission") || strings.Contains(r.stderr, "if you trust one of them") {
		t.Errorf("both are trusted: %d, %s", r.code, r.stderr)
	}
	c.faults(t, c.down(0, 1)...)
	r = c.run(t, "keyring", "check", c.cipher)
	if unknown := regexp.MustCompile(`(?m)^\S+ +- +no +no +no +- +- +-$`); r.code != exitCMK || len(unknown.FindAllString(r.stdout, -1)) != 2 {
		t.Errorf("of no answer nothing is known: %d, %s", r.code, r.stdout)
	}
	r = c.run(t, "mount", "--cmk", c.cmks[0], c.cipher, c.plain)
	_, hint, _ := strings.Cut(r.stderr, "hint: the volume says")
	if r.code != exitCMK || strings.Contains(hint, c.cmks[0]) || !strings.Contains(hint, c.cmks[1]) {
		t.Errorf("one is trusted: %d, %s", r.code, r.stderr)
	}
}
