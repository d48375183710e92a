// Command bench measures kmsfs beside gocryptfs, an unencrypted go-fuse loopback and plain ext4, in one run on one RAM-backed ext4, and
// prints a table of medians with ratios. It needs root. A system that is not installed is left out, and named.
package main

import (
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	runs := flag.Int("n", 3, "how often to run each row; the median counts")
	quick := flag.Bool("quick", false, "run each row once, on a quarter of the data")
	check := flag.Bool("check", false, "run each row once on kmsfs only, for errors")
	flag.Parse()
	if err := bench(*runs, *quick, *check); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A system is something to measure.
type system struct {
	name    string
	mount   func(below, above string) error // prepares below if it is empty
	unmount func(above string) error
}

func bench(runs int, quick, check bool) (err error) {
	work, err := os.MkdirTemp("/dev/shm", "kmsfs-bench-")
	if err != nil {
		return err
	}
	disk := filepath.Join(work, "disk")
	var mounted []func() error
	cleanup := func() {
		for _, undo := range slices.Backward(mounted) {
			_ = undo()
		}
		os.RemoveAll(work)
	}
	defer cleanup()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() { <-interrupted; cleanup(); os.Exit(1) }()

	if err := sh(work, `truncate -s 4G image; mkfs.ext4 -q -m 0 image; mkdir disk; mount -o loop image disk`); err != nil {
		return err
	}
	mounted = append(mounted, func() error { return sh(work, "umount "+disk) })
	systems, err := prepare(work, check)
	if err != nil {
		return err
	}
	scale := 1
	if quick || check {
		runs, scale = 1, 4
	}
	results := make(map[string]map[string][]float64) // row, system
	for _, s := range systems {
		s := s
		mounted = append(mounted, func() error { return s.unmount(filepath.Join(disk, s.name, "above")) })
	}
	for range runs {
		for _, s := range systems {
			for _, r := range rows {
				v, err := measure(s, r, filepath.Join(disk, s.name), scale)
				if err != nil && s.name != "kmsfs" {
					fmt.Printf("%s cannot do %q: left out\n", s.name, r.name)
					v = math.NaN()
				} else if err != nil {
					return fmt.Errorf("%s on %s: %w", r.name, s.name, err)
				}
				if results[r.name] == nil {
					results[r.name] = make(map[string][]float64)
				}
				results[r.name][s.name] = append(results[r.name][s.name], v)
			}
			if err := sh(disk, "rm -rf "+filepath.Join(disk, s.name)); err != nil {
				return err
			}
		}
	}
	print(systems, results)
	return nil
}

// measure runs one row on a system; rows that want a cold mount get one.
func measure(s system, r row, dir string, scale int) (float64, error) {
	below, above := filepath.Join(dir, "below"), filepath.Join(dir, "above")
	if err := sh("/", "mkdir -p "+below+" "+above); err != nil {
		return 0, err
	}
	if err := s.mount(below, above); err != nil {
		return 0, err
	}
	if err := r.setup(above, scale); err != nil {
		return 0, err
	}
	if r.cold {
		if err := s.unmount(above); err != nil {
			return 0, err
		}
		if err := s.mount(below, above); err != nil {
			return 0, err
		}
	}
	start := time.Now()
	amount, err := r.run(above, scale)
	seconds := time.Since(start).Seconds()
	if err := s.unmount(above); err != nil {
		return 0, err
	}
	if r.unit == "s" {
		return seconds, err
	}
	return amount / seconds, err
}

// prepare builds and finds the systems.
func prepare(work string, check bool) ([]system, error) {
	if err := sh(".", "go build -o "+work+"/kmsfs ../../cmd/kmsfs"); err != nil {
		return nil, err
	}
	if err := sh(".", "go build -o "+work+"/loopback ./loopback"); err != nil {
		return nil, err
	}
	os.Setenv("KMSFS_CONFIG_DIR", work+"/config")
	if err := sh(work, "./kmsfs key new cmk"); err != nil {
		return nil, err
	}
	kmsfs := system{"kmsfs", func(below, above string) error {
		return sh(work, "test -d "+below+"/.kmsfs || ./kmsfs init --cmk local:"+work+"/cmk "+below+"; ./kmsfs mount -o log=/dev/null "+below+" "+above)
	}, func(above string) error { return sh(work, "./kmsfs umount "+above) }}
	if check {
		return []system{kmsfs}, nil
	}
	unmount := func(above string) error {
		return sh("/", "for i in 1 2 3 4 5; do umount "+above+" && exit 0; sleep 0.2; done; exit 1")
	}
	systems := []system{
		{"ext4", func(below, above string) error { return sh("/", "mount --bind "+below+" "+above) }, unmount},
		{"loopback", func(below, above string) error {
			return sh(work, "(setsid ./loopback "+above+" "+below+" >/dev/null 2>&1 &); for i in $(seq 100); do mountpoint -q "+above+" && exit 0; sleep 0.02; done; exit 1")
		}, unmount},
	}
	if _, err := exec.LookPath("gocryptfs"); err == nil {
		systems = append(systems, system{"gocryptfs", func(below, above string) error {
			return sh("/", "test -f "+below+"/gocryptfs.conf || gocryptfs -q -init -scryptn 10 -extpass 'echo x' "+below+"; gocryptfs -q -extpass 'echo x' "+below+" "+above)
		}, unmount})
	} else {
		fmt.Println("gocryptfs is not installed: left out")
	}
	if _, err := exec.LookPath("securefs"); err == nil {
		systems = append(systems, system{"securefs", func(below, above string) error {
			return sh("/", "test -n \"$(ls -A "+below+")\" || securefs create --pass x --format 4 "+below+" >/dev/null 2>&1; securefs mount -b --pass x "+below+" "+above+" >/dev/null 2>&1; for i in $(seq 100); do mountpoint -q "+above+" && exit 0; sleep 0.02; done; exit 1")
		}, unmount})
	} else {
		fmt.Println("securefs is not installed: left out")
	}
	return append(systems, kmsfs), nil
}

// print prints the table: ratios are above 1 where kmsfs is faster.
func print(systems []system, results map[string]map[string][]float64) {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, "row\tunit")
	for _, s := range systems {
		fmt.Fprint(w, "\t"+s.name)
	}
	peers := systems[:len(systems)-1]
	for _, p := range peers {
		fmt.Fprint(w, "\tkmsfs/"+p.name)
	}
	fmt.Fprintln(w)
	logs, counted := make([]float64, len(peers)), make([]float64, len(peers))
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s", r.name, r.unit)
		for _, s := range systems {
			fmt.Fprintf(w, "\t%.3g", median(results[r.name][s.name]))
		}
		for i, p := range peers {
			ratio := median(results[r.name]["kmsfs"]) / median(results[r.name][p.name])
			if r.unit == "s" {
				ratio = 1 / ratio
			}
			if !math.IsNaN(ratio) {
				logs[i] += math.Log(ratio)
				counted[i]++
			}
			fmt.Fprintf(w, "\t%.2f", ratio)
		}
		fmt.Fprintln(w)
	}
	if len(peers) > 0 {
		fmt.Fprint(w, "geometric mean\t"+strings.Repeat("\t", len(systems)))
		for i, l := range logs {
			fmt.Fprintf(w, "\t%.2f", math.Exp(l/counted[i]))
		}
		fmt.Fprintln(w)
	}
	w.Flush()
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// sh runs a shell script.
func sh(dir, script string) error {
	cmd := exec.Command("bash", "-ec", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", script, err, out)
	}
	return nil
}
