package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/keyring/failover"
)

// TestPrintStatus keeps the table of CMKs narrow, whatever went wrong with one.
func TestPrintStatus(t *testing.T) {
	failure := aliCMK + ": Decrypt: " + strings.Repeat("no answer, ", 20)
	var out bytes.Buffer
	printStatus(&out, &mountStatus{Serving: true, CMKs: []failover.Status{
		{CMK: aliCMK, Failed: 1, Last: &failover.Result{Call: "decrypt", Error: failure}},
		{CMK: huaweiCMK, OK: 1, Last: &failover.Result{Call: "decrypt"}},
	}})
	_, table, _ := strings.Cut(out.String(), "\n\n")
	lines := strings.Split(strings.TrimSuffix(table, "\n"), "\n")
	if len(lines) != 4 || !strings.Contains(lines[1], "decrypt failed") || !strings.Contains(lines[2], "decrypt ok") || lines[3] != failure {
		t.Fatalf("got\n%s", out.String())
	}
	for _, line := range lines[:3] {
		if len(line) > 120 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
}
