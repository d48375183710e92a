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

	"github.com/kmsfs/kmsfs/device/devicetest"
)

// ringsVariable, set to "other", has tests run with requests coming the other way than the machine has it, see [runTheOtherWay]; set to "set", that this is so.
const ringsVariable = "KMSFS_TEST_RINGS"

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
	if !devicetest.Mended() {
		fmt.Println("requests come in one way only here: this kernel's rings have faults that could bring the machine down")
		return 0
	}
	f, err := os.OpenFile(devicetest.Setting, os.O_RDWR, 0)
	if err != nil {
		fmt.Println("requests come in one way only here:", err)
		return 0
	}
	defer f.Close()
	// Who does the same meanwhile waits, and finds the setting as it was.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		fmt.Fprintf(os.Stderr, "lock %s: %v\n", devicetest.Setting, err)
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
	b, _ := os.ReadFile(devicetest.Setting)
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
	f, err := os.Open(devicetest.Setting)
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
