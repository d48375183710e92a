package powercut

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestSQLite cuts the power under a database: it must be whole, and have every transaction whose COMMIT had returned.
func TestSQLite(t *testing.T) {
	s, image := newStack(t, "ext4", "kmsfs")
	for i, mode := range []string{"delete", "truncate", "persist", "wal"} {
		t.Run(mode, func(t *testing.T) {
			dir := workdir(t)
			rng := rand.New(rand.NewPCG(seed(t), uint64(i)))
			var committed []int // the position of the record when transaction i+1 had been committed
			rec, err := s.record(image, dir, rng, func(w *workload) (err error) {
				committed, err = transactions(w, mode)
				return err
			})
			must(t, err)
			rec.examine = func(top string, cut int) []fault { return examineSQLite(top, cut, committed) }
			positions := make([]int, number(t, 20))
			for i := range positions {
				positions[i] = rng.IntN(len(rec.records) + 1)
			}
			cuts, err := rec.cuts(dir, positions, seed(t))
			must(t, err)
			none(t, faulty(t, rec, cuts))
			t.Logf("%d transactions, %d records, %d cuts", len(committed), len(rec.records), len(cuts))
		})
	}
}

// transactions commits transactions of several rows one after another.
func transactions(w *workload, mode string) (committed []int, err error) {
	synchronous := "FULL"
	if mode == "delete" {
		synchronous = "EXTRA" // FULL does not sync the removal of the journal, which is the commit: the last one is lost on any filesystem
	}
	cmd := exec.Command("sqlite3", "-batch", filepath.Join(w.top, "database"))
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(out)
	do := func(sql string) error {
		if _, err := io.WriteString(in, sql+"\nSELECT 'done';\n"); err != nil {
			return err
		}
		for lines.Scan() {
			if lines.Text() == "done" {
				return nil
			}
		}
		return fmt.Errorf("sqlite3 ended at %.60s", sql)
	}
	err = do(".bail on\nPRAGMA journal_mode=" + mode + "; PRAGMA synchronous=" + synchronous + "; PRAGMA wal_autocheckpoint=20;\n" +
		"CREATE TABLE t (tx INTEGER, k INTEGER PRIMARY KEY, v BLOB);")
	for tx := 1; tx <= 60 && err == nil; tx++ {
		err = do(fmt.Sprintf("BEGIN; INSERT INTO t VALUES (%d, NULL, randomblob(%d)), (%d, NULL, randomblob(%d));"+
			" UPDATE t SET v = randomblob(500) WHERE k %% 7 = %d; COMMIT;", tx, 1+w.rng.IntN(6000), tx, 1+w.rng.IntN(300), tx%7))
		committed = append(committed, w.position())
		if err == nil && tx%5 == 0 {
			err = w.nudge()
		}
	}
	in.Close()
	if e := cmd.Wait(); err == nil {
		err = e
	}
	return committed, err
}

func examineSQLite(top string, cut int, committed []int) (faults []fault) {
	path := filepath.Join(top, "database")
	promised := 0
	for i, at := range committed {
		if at <= cut {
			promised = i + 1
		}
	}
	if fi, err := os.Stat(path); promised == 0 && (err != nil || fi.Size() == 0) {
		return nil
	}
	out, err := exec.Command("sqlite3", "-batch", path,
		"PRAGMA integrity_check; SELECT tx || ' ' || count(*) FROM t GROUP BY tx;").CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if promised == 0 && strings.Contains(string(out), "no such table") {
		return nil
	}
	if err != nil || lines[0] != "ok" {
		return []fault{{Kind: lostBytes, Path: "/database", Detail: fmt.Sprintf("%v: %.300s", err, out)}}
	}
	for tx := 1; tx <= promised; tx++ {
		if !slices.Contains(lines, fmt.Sprint(tx, " 2")) {
			faults = append(faults, fault{Kind: lostBytes, Path: "/database", Detail: fmt.Sprintf("transaction %d of %d is gone", tx, promised)})
		}
	}
	return faults
}
