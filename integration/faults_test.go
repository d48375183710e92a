package integration

import (
	"os"
	"strings"
	"testing"

	"github.com/kmsfs/kmsfs/integration/model"
	"golang.org/x/sys/unix"
)

// TestFaults fails backing calls of a workload, one at a time: the caller gets an error, and the volume holds what it held before or what it should hold,
// mounted and mounted again. A sample of the calls by default, every one with KMSFS_FAULTS=all.
func TestFaults(t *testing.T) {
	parse := func(text string) model.Script {
		s, err := model.Parse(strings.NewReader(text))
		must(t, err)
		return s
	}
	beginning := parse(`
		mkdir d
		mkdir empty
		mkdir Ldir
		open 0 a rw,creat
		write 0 0 9000 1
		close 0
		open 0 d/b rw,creat
		write 0 0 100 2
		close 0
		open 0 La rw,creat
		write 0 0 20000 3
		close 0
		open 0 read rw,creat
		write 0 0 5000 4
		close 0
		open 0 also rw,creat
		write 0 0 200 5
		close 0
		symlink s 20
		remount
		open 0 read ro
		close 0
		open 0 read ro
		open 1 also ro
		close 1
		open 1 also ro`)
	script := parse(`
		unlink read
		drop 0
		read 0 0 6000
		rename La also plain
		rename also La plain
		drop 1
		read 1 0 6000
		close 0
		close 1
		open 0 a rw
		write 0 4000 200 10
		fsync 0
		write 0 9000 5000 11
		write 0 30000 10 12
		fsync 0
		read 0 0 40000
		fallocate 0 4096 9000 punch
		ftruncate 0 6000
		fallocate 0 0 100 zero
		mapwrite 0 100 5000 13 sync
		close 0
		open 1 new rw,creat
		write 1 0 13000 14
		fdatasync 1
		open 2 La ro
		copy 2 100 5000 1 19000
		close 1
		close 2
		rename new d/b plain
		rename La Lb plain
		rename d/b Lb exchange
		link a Lc
		mkdir Ld
		open 3 Ld/f rw,creat
		write 3 0 10 15
		syncdir Ld
		close 3
		truncate d/b 5000
		truncate Lb 0
		symlink l 30
		symlink Ll 4000
		readlink Ll
		rename l Ll plain
		unlink Ll
		unlink a
		rmdir empty
		rmdir Ldir
		chmod d/b 420
		setattr d/b value
		getattr d/b
		list Ld
		rename Ld d/Ld plain
		stat d/Ld/f
		verify`)
	for _, kind := range []struct {
		name  string
		errno unix.Errno
		step  int // of every step calls one is failed
	}{{"EIO", unix.EIO, 3}, {"ENOSPC", unix.ENOSPC, 7}, {"EINTR", unix.EINTR, 7}, {"ShortWrites", 0, 1}} {
		t.Run(kind.name, func(t *testing.T) {
			s := &supervisor{errno: kind.errno}
			fresh := newChild(t)
			c := model.Config{New: func() (model.Volume, error) {
				v, err := fresh()
				if err == nil {
					v.(*child).supervisor, s.cipher = s, v.(*child).path("cipher")
				}
				return v, err
			}}
			count, tried := 0, 0
			failed, err := model.Faults(c, beginning, script, s, func(calls int) (pick []int) {
				count = calls
				step := kind.step
				if os.Getenv("KMSFS_FAULTS") == "all" {
					step = 1
				}
				for n := 1; n <= calls; n += step {
					pick = append(pick, n)
				}
				tried = len(pick)
				return pick
			})
			if err != nil {
				t.Errorf("%v", err)
			}
			if count == 0 || kind.errno == unix.EIO && failed < tried/2 {
				t.Errorf("%d calls, %d tried, %d failed: the faults do not arrive", count, tried, failed)
			}
			t.Logf("%d calls, %d tried, %d failed an operation", count, tried, failed)
		})
	}
}
