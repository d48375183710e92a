package powercut

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A postgreSQL is an engine. It checks the sums of its pages, and has little memory and small logs, so that much reaches the disk.
type postgreSQL struct{ bin string }

// newPostgreSQL finds the newest version that is installed where Debian has it.
func newPostgreSQL(t *testing.T) postgreSQL {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/pg_amcheck")
	must(t, err)
	if len(found) == 0 {
		t.Fatal("PostgreSQL is not installed: run scripts/deps-databases.sh")
	}
	return postgreSQL{filepath.Dir(slices.MaxFunc(found, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	}))}
}

func (p postgreSQL) create(data string) []string {
	return []string{filepath.Join(p.bin, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--data-checksums", "--wal-segsize=1", "--no-locale", "-E", "UTF8"}
}

func (p postgreSQL) serve(data, dir string) []string {
	args := []string{filepath.Join(p.bin, "postgres"), "-D", data}
	for _, setting := range []string{
		"listen_addresses=", "unix_socket_directories=" + dir, "max_connections=10", "shared_buffers=1MB", "dynamic_shared_memory_type=sysv",
		"huge_pages=off", "min_wal_size=2MB", "max_wal_size=2MB", "bgwriter_delay=10ms", "autovacuum_naptime=1s", "restart_after_crash=off",
	} {
		args = append(args, "-c", setting)
	}
	return args
}

func (p postgreSQL) client(dir string) []string {
	return []string{filepath.Join(p.bin, "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", dir, "-U", "postgres", "postgres"}
}

func (postgreSQL) schema() string {
	return "CREATE EXTENSION amcheck; " + fmt.Sprintf(rowsTable, "SERIAL", "")
}

func (p postgreSQL) bench(dir string, arguments ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(p.bin, "pgbench"), append(arguments, "-h", dir, "-U", "postgres", "postgres")...)
	cmd.Dir = "/"
	return cmd
}

func (postgreSQL) busy() string { return "CHECKPOINT;" }

// stop is the signal of an immediate stop.
func (postgreSQL) stop() syscall.Signal { return syscall.SIGQUIT }

// verify checks every table and index, that each row of a table is in its indexes, and that pgbench's transactions are there as wholes: each adds one
// amount to an account, a teller and a branch, and to the history.
func (p postgreSQL) verify(dir string, db *session) []fault {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	check := exec.CommandContext(ctx, filepath.Join(p.bin, "pg_amcheck"), "-h", dir, "-U", "postgres", "--heapallindexed", "--parent-check", "postgres")
	check.Dir = "/"
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		return []fault{{Kind: lostBytes, Path: "/data", Detail: fmt.Sprintf("pg_amcheck: %v: %s", err, strings.TrimSpace(string(out)))}}
	}
	sums, err := db.do("SELECT count(DISTINCT s), count(s) FROM (SELECT sum(abalance) s FROM pgbench_accounts UNION ALL SELECT sum(tbalance) FROM pgbench_tellers" +
		" UNION ALL SELECT sum(bbalance) FROM pgbench_branches UNION ALL SELECT coalesce(sum(delta), 0) FROM pgbench_history) x;")
	if want := []string{"1|4"}; err != nil || !slices.Equal(sums, want) {
		return []fault{{Kind: lostBytes, Path: "/data", Detail: fmt.Sprintf("pgbench's sums: %q, %v, want %q", sums, err, want)}}
	}
	return nil
}
