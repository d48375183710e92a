package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// ringsVariable, set to "other", has tests run with requests coming the other way than the machine has it, see [runTheOtherWay]; set to "set", that this is so.
	ringsVariable = "KMSFS_TEST_RINGS"
	// ringsSetting is Y while the kernel offers requests over io_uring(7). It is the whole machine's.
	ringsSetting = "/sys/module/fuse/parameters/enable_uring"
)

// dependOnRings are the tests that depend most on how requests come: those of many programs at once, of long requests, of interrupts, and of the end of a mount.
func dependOnRings() []func(*testing.T) {
	return []func(*testing.T){
		TestRings, TestManyBesideCalls, TestOpenBesideCalls, TestPerFileBesideCalls, TestInterruptedCalls, TestModel, TestSequences, TestLikeExt4, TestLocks, TestUser, TestUsers,
		TestKilledDaemon, TestKilledUnderLoad, TestKilledWhileMounting, TestKilledAfterClose, TestCreatorKilled, TestTerminated, TestDetach, TestHangup, TestInUse, TestOvermount,
		TestForegroundHidesKeys, TestCreatorAndReaders, TestReadersRaceWithCreator, TestCreatorBesideMapping, TestSeekDataBesideMapping, TestSmallFilesWhileOpened, TestSmallFilesOpenedAgain,
		TestNamesChangeUnderReaders, TestListingsSideBySide, TestLongListingWhileItChanges, TestReplacedMeanwhile, TestGit, TestSQLite, TestRandomAccess, TestListingOpensNothing,
		TestRewrapUnderLoad, TestService,
	}
}

// runTheOtherWay changes the machine's setting, runs the tests of dependOnRings, or those that -run names, and returns their exit code. They run in a child, so that the setting is put back
// whatever becomes of them.
func runTheOtherWay() int {
	if !mended() {
		fmt.Println("requests come in one way only here: this kernel's rings have faults that could bring the machine down")
		return 0
	}
	f, err := os.OpenFile(ringsSetting, os.O_RDWR, 0)
	if err != nil {
		fmt.Println("requests come in one way only here:", err)
		return 0
	}
	defer f.Close()
	// Who does the same meanwhile waits, and finds the setting as it was.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		fmt.Fprintf(os.Stderr, "lock %s: %v\n", ringsSetting, err)
		return 1
	}
	before, other := "N", "Y"
	if ringsSet() {
		before, other = other, before
	}
	if _, err := f.WriteAt([]byte(other), 0); err != nil {
		fmt.Println("requests come in one way only here:", err)
		return 0
	}
	defer f.WriteAt([]byte(before), 0)

	var names []string
	for _, test := range dependOnRings() {
		name := runtime.FuncForPC(reflect.ValueOf(test).Pointer()).Name()
		names = append(names, name[strings.LastIndexByte(name, '.')+1:])
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	cmd := exec.CommandContext(ctx, os.Args[0], append([]string{"-test.run=^(" + strings.Join(names, "|") + ")$"}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), ringsVariable+"=set")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // the child dies with the thread that has started it
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return 1
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// ringsSet reports whether the setting is Y.
func ringsSet() bool {
	b, _ := os.ReadFile(ringsSetting)
	return strings.TrimSpace(string(b)) == "Y"
}

// ringsWork reports whether there is io_uring, which a container or the machine may forbid, and whether we may use all processors.
func ringsWork() bool {
	info, _ := os.ReadFile("/proc/cpuinfo")
	if runtime.NumCPU() < len(regexp.MustCompile(`(?m)^processor\s*:`).FindAll(info, -1)) {
		return false
	}
	var params [120]byte
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno == 0 {
		unix.Close(int(fd))
	}
	return errno == 0
}

// TestRings mounts with and without the options that say how requests are to come.
func TestRings(t *testing.T) {
	f, err := os.Open(ringsSetting)
	if err == nil {
		defer f.Close()
		if os.Getenv(ringsVariable) == "" {
			must(t, unix.Flock(int(f.Fd()), unix.LOCK_SH)) // nobody changes it meanwhile
		}
	}
	hidden := err != nil && ringsWork() // the kernel may offer it all the same
	offered := ringsSet() && ringsWork()
	v := newVolume(t)
	for options, want := range map[string]bool{
		"rw": offered, "io_uring": offered, "no_io_uring": false, "no_io_uring,io_uring": offered, "io_uring,no_io_uring": false,
	} {
		before, _ := os.ReadFile(v.log)
		plain := v.mount(t, options)
		log, err := os.ReadFile(v.log)
		must(t, err)
		said := regexp.MustCompile(`msg=mounted .* io_uring=(true|false)\n`).FindSubmatch(log[len(before):])
		if said == nil || string(said[1]) != fmt.Sprint(want) && (!hidden || strings.HasSuffix(options, "no_io_uring")) {
			t.Errorf("-o %s: %q, want %v", options, said, want)
		}
		if got := shell(t, plain, "echo content > f; cat f; rm f; ls"); got != "content\n" {
			t.Errorf("-o %s: %q", options, got)
		}
		v.umount(t)
	}
}

// mended reports whether this kernel's side of io_uring is without the faults with memory that were mended in Linux 6.18.42 and 7.1.6.
func mended() bool {
	var u unix.Utsname
	var major, minor, patch int
	_ = unix.Uname(&u)
	_, _ = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d.%d", &major, &minor, &patch)
	switch version := [2]int{major, minor}; version {
	case [2]int{6, 18}:
		return patch >= 42
	case [2]int{7, 1}:
		return patch >= 6
	default:
		return major > 7 || major == 7 && minor > 1
	}
}
