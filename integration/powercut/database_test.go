package powercut

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// An engine is a database server. data is its directory on the volume, dir one outside of it for its socket.
type engine interface {
	create(data string) []string     // the command that makes an empty database
	serve(data, dir string) []string // the command of the server
	client(dir string) []string
	schema() string
	bench(dir string, arguments ...string) *exec.Cmd // a benchmark that runs beside, nil if there is none; "-i" makes its tables
	busy() string                                    // a statement that makes it write its files, not only its log
	stop() syscall.Signal                            // ends it at once, with nothing tidied up
	verify(dir string, db *session) []fault
}

// TestPostgreSQL ends the machine, the server or the daemon under it at any moment.
func TestPostgreSQL(t *testing.T) { testDatabase(t, newPostgreSQL(t)) }

// TestMariaDB does the same to MariaDB.
func TestMariaDB(t *testing.T) { testDatabase(t, mariaDB{}) }

// testDatabase sees that whatever ends, the database is whole afterwards and has every transaction whose COMMIT had returned.
func testDatabase(t *testing.T, e engine) {
	nobody := unprivileged(t)
	s := stack{backing: "ext4", crypt: "kmsfs", size: 192 << 20, shared: true}
	formatted := build(t, &s)
	dir := workdir(t)
	must(t, os.Chmod(dir, 0o711))
	h := host{engine: e, as: nobody, dir: dir}
	must(t, h.install(s, formatted))
	n := databaseCuts(t)
	t.Run("cut", func(t *testing.T) { h.cut(t, s, formatted, n) })
	t.Run("killed", func(t *testing.T) { h.killed(t, s, formatted, max(2, n/2)) })
}

// databaseCuts is KMSFS_DB_CUTS, or what is affordable every time.
func databaseCuts(t *testing.T) int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("KMSFS_DB_CUTS"), "6"))
	must(t, err)
	return n
}

// unprivileged is the user that database servers, which refuse to be root, run as.
func unprivileged(t *testing.T) *syscall.Credential {
	u, err := user.Lookup("nobody")
	must(t, err)
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	must(t, err)
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	must(t, err)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// A host runs an engine's servers.
type host struct {
	engine
	as  *syscall.Credential
	dir string // for the socket of a server and what it prints
}

// A server is one that runs.
type server struct {
	host
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
}

// at is the host with another directory, which it makes.
func (h host) at(dir string) (host, error) {
	h.dir = filepath.Join(dir, "server")
	if err := os.MkdirAll(h.dir, 0o755); err != nil {
		return h, err
	}
	return h, os.Chown(h.dir, int(h.as.Uid), int(h.as.Gid))
}

func (h host) data(top string) string { return filepath.Join(top, "data") }

// install makes a database on the volume in the image.
func (h host) install(s stack, image string) error {
	m, err := s.mount(image, h.dir)
	if err != nil {
		return err
	}
	err = func() error {
		h, err := h.at(h.dir)
		if err != nil {
			return err
		}
		data := h.data(m.top)
		if err := errors.Join(os.Chmod(m.top, 0o711), os.Mkdir(data, 0o700), os.Chown(data, int(h.as.Uid), int(h.as.Gid))); err != nil {
			return err
		}
		create := exec.Command(h.create(data)[0], h.create(data)[1:]...)
		create.Dir, create.SysProcAttr = "/", &syscall.SysProcAttr{Credential: h.as}
		if out, err := create.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w\n%s", create.Args, err, out)
		}
		srv, err := h.start(m.top)
		if err != nil {
			return err
		}
		db, err := srv.connect()
		if err == nil {
			_, err = db.do(h.schema())
			err = errors.Join(err, db.close())
		}
		if prepare := h.bench(h.dir, "-i", "-q"); err == nil && prepare != nil {
			if out, failed := prepare.CombinedOutput(); failed != nil {
				err = fmt.Errorf("%v: %w\n%s", prepare.Args, failed, out)
			}
		}
		return errors.Join(err, srv.end(syscall.SIGTERM))
	}()
	return errors.Join(err, m.unmount())
}

// start starts a server and waits until it answers, recovery included.
func (h host) start(top string) (*server, error) {
	data := h.data(top)
	// On a machine that comes up again the process that it names is not there; here another may have its number.
	if err := os.Remove(filepath.Join(data, "postmaster.pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	log := filepath.Join(h.dir, "log")
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	args := h.serve(data, h.dir)
	s := &server{host: h, cmd: exec.Command(args[0], args[1:]...), gone: make(chan struct{})}
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr, s.cmd.SysProcAttr = "/", out, out, &syscall.SysProcAttr{Credential: h.as}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.gone)
	}()
	for end := time.Now().Add(patience); ; {
		db, err := s.connect()
		if err == nil {
			_, err = db.do("SELECT 1;")
			if err = errors.Join(err, db.close()); err == nil {
				return s, nil
			}
		}
		ended := false
		select {
		case <-s.gone:
			ended = true
		case <-time.After(50 * time.Millisecond):
		}
		if ended || time.Now().After(end) {
			b, _ := os.ReadFile(log)
			return nil, errors.Join(fmt.Errorf("the server does not start: %w\n%s", err, b[max(0, len(b)-4000):]), s.end(syscall.SIGKILL))
		}
	}
}

func (s *server) connect() (*session, error) { return newSession(s.as, s.client(s.dir)...) }

// end sends the server a signal and waits for its end.
func (s *server) end(signal syscall.Signal) error {
	_ = s.cmd.Process.Signal(signal)
	select {
	case <-s.gone:
		return nil
	case <-time.After(patience / 4):
		_ = s.cmd.Process.Kill()
		<-s.gone
		return fmt.Errorf("the server did not end at %v", signal)
	}
}

// load lets clients commit transactions at the same time, the first one n, the others as many as they can meanwhile; after is called after
// each of the first one's. The engine's benchmark runs beside them, and is over when the server or they are.
func (s *server) load(clients []*client, n int, position func() int, after func(i int, db *session) error) error {
	if beside := s.bench(s.dir, "-n", "-c", "2", "-T", "3600"); beside != nil {
		if err := beside.Start(); err != nil {
			return err
		}
		defer func() {
			_ = beside.Process.Kill()
			_ = beside.Wait()
		}()
	}
	var group errgroup.Group
	over := make(chan struct{})
	for _, c := range clients {
		group.Go(func() (err error) {
			if c.number == 0 {
				defer close(over)
			}
			db, err := s.connect()
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, db.close()) }()
			if c.number > 0 {
				for {
					select {
					case <-over:
						return nil
					default:
						if err := c.transaction(db, position); err != nil {
							return err
						}
					}
				}
			}
			for i := range n {
				if err := c.transaction(db, position); err != nil {
					return err
				}
				if err := after(i, db); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// check compares the database with what its clients were promised.
func (h host) check(dir, top string, clients []*client, cut int) ([]fault, error) {
	h, err := h.at(dir)
	if err != nil {
		return nil, err
	}
	srv, err := h.start(top)
	if err != nil {
		return []fault{{Kind: unreadable, Path: "/data", Detail: err.Error()}}, nil
	}
	faults, err := func() ([]fault, error) {
		db, err := srv.connect()
		if err != nil {
			return nil, err
		}
		faults := append(h.verify(h.dir, db), compare(db, clients, cut)...)
		_ = db.close()
		return faults, nil
	}()
	return faults, errors.Join(err, srv.end(h.stop()))
}

// cut cuts the power n times while clients commit.
func (h host) cut(t *testing.T, s stack, formatted string, n int) {
	dir := workdir(t)
	must(t, os.Chmod(dir, 0o711))
	rng := rand.New(rand.NewPCG(seed(t), 0))
	clients := newClients(seed(t))
	begin := 0
	rec, err := s.record(formatted, dir, rng, func(w *workload) error {
		h, err := h.at(dir)
		if err != nil {
			return err
		}
		srv, err := h.start(w.top)
		if err != nil {
			return err
		}
		begin = w.position()
		err = srv.load(clients, 60, w.position, func(i int, db *session) error {
			if i%10 == 9 {
				if _, err := db.do(h.busy()); err != nil {
					return err
				}
			}
			return w.nudge()
		})
		return errors.Join(err, srv.end(h.stop()))
	})
	must(t, err)
	rec.examine = func(top, dir string, cut int) []fault {
		faults, err := h.check(dir, top, clients, cut)
		if err != nil {
			faults = append(faults, fault{Kind: unreadable, Path: "/data", Detail: err.Error()})
		}
		return faults
	}
	rec.recovery = func(top, dir string) {
		h, err := h.at(dir)
		if err != nil {
			return // as the examination will say
		}
		if srv, err := h.start(top); err == nil {
			_ = srv.end(h.stop())
		}
	}
	none(t, cutRandomly(t, rec, dir, rng, begin, n))
	t.Logf("%d and %d transactions, %d records, %d cuts", clients[0].count(), clients[1].count(), len(rec.records)-begin, n)
}

// killed ends the server at once, or kills the volume's daemon under it, n times while clients commit.
func (h host) killed(t *testing.T, s stack, formatted string, n int) {
	dir := workdir(t)
	must(t, os.Chmod(dir, 0o711))
	image := filepath.Join(dir, "image")
	must(t, copySparse(formatted, image))
	rng := rand.New(rand.NewPCG(seed(t), 1))
	clients := newClients(seed(t) + 1)
	for round := range n {
		m, err := s.mount(image, dir)
		must(t, err)
		ended := false
		err = func() error {
			h, err := h.at(dir)
			if err != nil {
				return err
			}
			srv, err := h.start(m.top)
			if err != nil {
				return err
			}
			last := 5 + rng.IntN(30)
			err = srv.load(clients, math.MaxInt, func() int { return 0 }, func(i int, db *session) error {
				if i < last {
					return nil
				}
				if ended = true; round%2 == 0 {
					return srv.end(h.stop())
				}
				// The server goes on and finds out. What it lets a client commit yet must be there.
				return m.daemon.Process.Kill()
			})
			if !ended {
				return fmt.Errorf("ended before its time: %w", err)
			}
			return srv.end(h.stop())
		}()
		must(t, errors.Join(err, m.unmount()))
		m, err = s.mount(image, dir)
		must(t, err)
		faults, err := h.check(dir, m.top, clients, math.MaxInt)
		must(t, errors.Join(err, m.unmount()))
		for _, f := range faults {
			t.Errorf("round %d: %.300s", round, f)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d and %d transactions, ended %d times", clients[0].count(), clients[1].count(), n)
}
