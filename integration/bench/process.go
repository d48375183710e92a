package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
)

// A process is the ID of a daemon.
type process int

// cpu returns the seconds that it has computed, in user mode and in the kernel, to a hundredth.
func (p process) cpu() (float64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may contain anything; fields 14 and 15 of proc_pid_stat(5) count from before it.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat is too short")
	}
	user, err := strconv.Atoi(string(fields[11]))
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(string(fields[12]))
	return float64(user+system) / 100, err // Linux shows every program hundredths
}

var memoryLine = regexp.MustCompile(`(VmRSS|RssAnon):\s*(\d+) kB`)

// memory returns the bytes that it has in memory, and those of them that are no file's: the heap, for a Go program, and stacks.
func (p process) memory() (resident, anonymous float64, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
	if err != nil {
		return 0, 0, err
	}
	lines := memoryLine.FindAllSubmatch(status, -1)
	if len(lines) != 2 {
		return 0, 0, errors.New("/proc/PID/status does not tell the memory")
	}
	for _, line := range lines {
		kilobytes, err := strconv.Atoi(string(line[2]))
		if err != nil {
			return 0, 0, err
		}
		if string(line[1]) == "VmRSS" {
			resident = float64(kilobytes) * 1024
		} else {
			anonymous = float64(kilobytes) * 1024
		}
	}
	return resident, anonymous, nil
}
