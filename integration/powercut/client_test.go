package powercut

import (
	"crypto/md5"
	"fmt"
	"math/rand/v2"
	"strings"
)

// window is how many of a client's last transactions have rows.
const window = 10

// A client commits transactions one after another, each of which adds two rows, changes two and removes two. So the rows that n of
// its transactions leave are known, and what it was promised is kept outside of the database.
type client struct {
	number    int
	rng       *rand.Rand
	committed []int // position of the record when each transaction had been committed
	begun     bool  // one more
}

func newClients(seed uint64) []*client {
	clients := make([]*client, 2)
	for i := range clients {
		clients[i] = &client{number: i, rng: rand.New(rand.NewPCG(seed, uint64(i)))}
	}
	return clients
}

func (c *client) count() int { return len(c.committed) }

const rowsTable = "CREATE TABLE t (k %s PRIMARY KEY, client INTEGER, tx INTEGER, v TEXT, digest CHAR(32)) %s; CREATE INDEX i ON t (client, tx);"

// transaction commits one.
func (c *client) transaction(db *session, position func() int) error {
	tx := c.count() + 1
	c.begun = true
	a, b, u := c.content(4000), c.content(200), c.content(500)
	_, err := db.do(fmt.Sprintf("BEGIN; INSERT INTO t (client, tx, v, digest) VALUES (%[1]d, %[2]d, %[3]s), (%[1]d, %[2]d, %[4]s);"+
		" UPDATE t SET v = %[5]s, digest = %[6]s WHERE client = %[1]d AND tx = %[7]d; DELETE FROM t WHERE client = %[1]d AND tx = %[8]d; COMMIT;",
		c.number, tx, a, b, u.v, u.digest, tx-3, tx-window))
	if err != nil {
		return err
	}
	c.committed, c.begun = append(c.committed, position()), false
	return nil
}

// may is how many transactions the database can have at least and at most after a cut.
func (c *client) may(cut int) (least, most int) {
	for _, at := range c.committed {
		if at <= cut {
			least++
		}
	}
	if most = least; least < c.count() || c.begun {
		most++
	}
	return least, most
}

// rows is what n transactions leave.
func (c *client) rows(n int) (rows []string) {
	for tx := max(1, n-window+1); tx <= n; tx++ {
		rows = append(rows, fmt.Sprintf("%d %d 2 0", c.number, tx))
	}
	return rows
}

// compare compares the rows of a database with what may be there after a cut. When all is over, clients go on from there.
func compare(db *session, clients []*client, cut int) (faults []fault) {
	got, err := db.do("SELECT concat_ws(' ', client, tx, count(*), count(CASE WHEN md5(v) <> digest THEN 1 END)) FROM t GROUP BY client, tx ORDER BY client, tx;")
	if err != nil {
		return []fault{{Kind: lostBytes, Path: "/data", Detail: err.Error()}}
	}
	for _, c := range clients {
		var mine []string
		for _, row := range got {
			if strings.HasPrefix(row, fmt.Sprint(c.number, " ")) {
				mine = append(mine, row)
			}
		}
		least, most := c.may(cut)
		switch have := strings.Join(mine, "\n"); have {
		case strings.Join(c.rows(least), "\n"):
		case strings.Join(c.rows(most), "\n"):
			for len(c.committed) < most {
				c.committed = append(c.committed, 0)
			}
		default:
			faults = append(faults, fault{Kind: lostBytes, Path: "/data", Detail: fmt.Sprintf(
				"client %d committed %d transactions, and there are (client, number, rows, bad ones): %q", c.number, least, mine)})
		}
	}
	return faults
}

// content is a literal and its digest.
type content struct{ v, digest string }

func (c content) String() string { return c.v + ", " + c.digest }

// content is fresh content of up to n bytes that does not compress well.
func (c *client) content(n int) content {
	var b strings.Builder
	for range 1 + c.rng.IntN(n/8) {
		fmt.Fprintf(&b, "%08x", c.rng.Uint32())
	}
	return content{fmt.Sprintf("'%s'", b.String()), fmt.Sprintf("'%x'", md5.Sum([]byte(b.String())))}
}
