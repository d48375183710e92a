package powercut

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
)

// A mariaDB is an engine. It has little memory and a small log, and writes changed pages as soon as it can, so that much reaches the disk.
type mariaDB struct{}

func (mariaDB) create(data string) []string {
	return []string{
		"mariadb-install-db", "--no-defaults", "--force", "--datadir=" + data, "--skip-name-resolve",
		"--auth-root-authentication-method=normal", "--innodb-log-file-size=4M",
	}
}

func (mariaDB) serve(data, dir string) []string {
	return []string{
		"mariadbd", "--no-defaults", "--datadir=" + data, "--socket=" + dir + "/socket", "--pid-file=" + dir + "/pid", "--skip-networking",
		"--skip-name-resolve", "--transaction-isolation=READ-COMMITTED", "--innodb-log-file-size=4M", "--innodb-buffer-pool-size=8M",
		"--innodb-max-dirty-pages-pct=0", "--innodb-max-dirty-pages-pct-lwm=0",
	}
}

func (mariaDB) client(dir string) []string {
	return []string{"mariadb", "--no-defaults", "--batch", "--skip-column-names", "--unbuffered", "--socket=" + dir + "/socket", "--user=root", "test"}
}

func (mariaDB) schema() string {
	return fmt.Sprintf(rowsTable, "INTEGER AUTO_INCREMENT", "ENGINE=InnoDB CHARACTER SET utf8mb4")
}

func (mariaDB) bench(string, ...string) *exec.Cmd { return nil }

func (mariaDB) busy() string { return "FLUSH TABLES;" }

func (mariaDB) stop() syscall.Signal { return syscall.SIGKILL }

// verify checks every table, each row in each index.
func (mariaDB) verify(_ string, db *session) []fault {
	tables, err := db.do("SELECT concat('`', table_schema, '`.`', table_name, '`') FROM information_schema.tables" +
		" WHERE engine IN ('InnoDB', 'Aria', 'MyISAM') AND table_type = 'BASE TABLE' AND table_schema IN ('mysql', 'test');")
	var rows []string
	if err == nil {
		rows, err = db.do("CHECK TABLE " + strings.Join(tables, ", ") + " EXTENDED;")
	}
	if err != nil {
		return []fault{{Kind: lostBytes, Path: "/data", Detail: err.Error()}}
	}
	var faults []fault
	good := 0
	for _, row := range rows {
		if strings.HasSuffix(row, "\tcheck\tstatus\tOK") {
			good++
		} else {
			faults = append(faults, fault{Kind: lostBytes, Path: "/data", Detail: row})
		}
	}
	if good < len(tables) || good == 0 {
		faults = append(faults, fault{Kind: lostBytes, Path: "/data", Detail: fmt.Sprintf("%d of %d tables are good", good, len(tables))})
	}
	return faults
}
