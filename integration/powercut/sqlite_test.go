package powercut

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
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
			synchronous := "FULL"
			if mode == "delete" {
				synchronous = "EXTRA" // see TestSQLiteFull
			}
			none(t, sqlite(t, s, image, mode, synchronous, number(t, 20), uint64(i)))
		})
	}
}

// TestSQLiteFull shows why TestSQLite asks for more in one mode: there the removal of the rollback journal is the commit, and FULL, unlike
// EXTRA, does not sync it. So SQLite loses its last commit on the bare filesystem, too; on either it must lose nothing else.
func TestSQLiteFull(t *testing.T) {
	for _, crypt := range []string{"", "kmsfs"} {
		s, image := newStack(t, "ext4", crypt)
		t.Run(s.String(), func(t *testing.T) {
			bad := sqlite(t, s, image, "delete", "FULL", number(t, 40), 0)
			for _, c := range bad {
				if len(c.faults) != 1 || c.faults[0].Kind != lostName {
					none(t, []cut{c})
				}
			}
			t.Logf("%d cuts cost the last commit", len(bad))
			if crypt == "" && len(bad) == 0 {
				t.Error("no cut cost the last commit: FULL promises it by now, so TestSQLite can do with FULL")
			}
		})
	}
}

// sqlite cuts the power n times during transactions and returns the cuts that left faults.
func sqlite(t *testing.T, s stack, image, mode, synchronous string, n int, stream uint64) (bad []cut) {
	t.Helper()
	dir := workdir(t)
	rng := rand.New(rand.NewPCG(seed(t), stream))
	var committed []int // the position of the record when transaction i+1 had been committed
	rec, err := s.record(image, dir, rng, func(w *workload) (err error) {
		committed, err = transactions(w, mode, synchronous)
		return err
	})
	must(t, err)
	rec.examine = func(top, _ string, cut int) []fault { return examineSQLite(top, cut, committed) }
	bad = cutRandomly(t, rec, dir, rng, 0, n)
	t.Logf("%d transactions, %d records, %d cuts", len(committed), len(rec.records), n)
	return bad
}

// transactions commits transactions of several rows one after another.
func transactions(w *workload, mode, synchronous string) (committed []int, err error) {
	db, err := newSession(nil, "sqlite3", "-batch", filepath.Join(w.top, "database"))
	if err != nil {
		return nil, err
	}
	_, err = db.do(".bail on\nPRAGMA journal_mode=" + mode + "; PRAGMA synchronous=" + synchronous + "; PRAGMA wal_autocheckpoint=20;\n" +
		"CREATE TABLE t (tx INTEGER, k INTEGER PRIMARY KEY, v BLOB);")
	for tx := 1; tx <= 60 && err == nil; tx++ {
		_, err = db.do(fmt.Sprintf("BEGIN; INSERT INTO t VALUES (%d, NULL, randomblob(%d)), (%d, NULL, randomblob(%d));"+
			" UPDATE t SET v = randomblob(500) WHERE k %% 7 = %d; COMMIT;", tx, 1+w.rng.IntN(6000), tx, 1+w.rng.IntN(300), tx%7))
		if err == nil {
			committed = append(committed, w.position())
		}
		if err == nil && tx%5 == 0 {
			err = w.nudge()
		}
	}
	return committed, errors.Join(err, db.close())
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
	db, err := newSession(nil, "sqlite3", "-batch", "-bail", path)
	if err != nil {
		return []fault{{Kind: unreadable, Path: "/database", Detail: err.Error()}}
	}
	lines, err := db.do("PRAGMA integrity_check; SELECT tx || ' ' || count(*) FROM t GROUP BY tx;")
	err = errors.Join(err, db.close())
	if promised == 0 && err != nil && strings.Contains(err.Error(), "no such table") {
		return nil
	}
	if err != nil || lines[0] != "ok" {
		return []fault{{Kind: lostBytes, Path: "/database", Detail: fmt.Sprintf("%v: %.300s", err, lines)}}
	}
	for tx := 1; tx <= promised; tx++ {
		if !slices.Contains(lines, fmt.Sprint(tx, " 2")) {
			k := lostBytes
			if tx == promised {
				k = lostName // which is how SQLite commits
			}
			faults = append(faults, fault{Kind: k, Path: "/database", Detail: fmt.Sprintf("transaction %d of %d is gone", tx, promised)})
		}
	}
	return faults
}
