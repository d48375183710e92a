package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A row is one thing to measure. run returns how much of the unit it did.
type row struct {
	name  string
	unit  string // of which more is better, but for "s"
	cold  bool   // mount again between setup and run
	setup func(dir string, scale int) error
	run   func(dir string, scale int) (float64, error)
}

const fileSize = 256 << 20

var rows = []row{
	{"sequential write 1 MiB + fsync", "MB/s", false, nothing, func(dir string, scale int) (float64, error) {
		return sequential(dir, fileSize/scale, 1<<20)
	}},
	{"sequential read, mount cold", "MB/s", true, bigFile, readFile},
	{"re-read, page cache", "MB/s", false, func(dir string, scale int) error {
		err := bigFile(dir, scale)
		if err == nil {
			_, err = readFile(dir, scale)
		}
		return err
	}, readFile},
	{"4 KiB sequential writes + fsync at end", "MB/s", false, nothing, func(dir string, scale int) (float64, error) {
		return sequential(dir, fileSize/4/scale, 4096)
	}},
	{"random 4 KiB read, O_DIRECT, 8 threads", "MB/s", false, bigFile, func(dir string, scale int) (float64, error) {
		return randomReads(dir, scale, 8)
	}},
	{"random 4 KiB write, fsync at end", "MB/s", false, bigFile, func(dir string, scale int) (float64, error) {
		return randomWrites(dir, scale, 8000/scale, false)
	}},
	{"4 KiB random write + fsync each", "MB/s", false, bigFile, func(dir string, scale int) (float64, error) {
		return randomWrites(dir, scale, 2000/scale, true)
	}},
	{"create 5,000 x 300 B", "files/s", false, nothing, func(dir string, scale int) (float64, error) {
		n := 5000 / scale
		for i := range n {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), make([]byte, 300), 0o644); err != nil {
				return 0, err
			}
		}
		return float64(n), nil
	}},
	{"copy the Go source tree", "s", false, nothing, script(`cp -r "$(go env GOROOT)/src/" src`)},
	{"ls -lR, mount cold", "s", true, setup(`cp -r "$(go env GOROOT)/src/" src`), script(`ls -lR >/dev/null`)},
	{"ls -lR, warm", "s", false, setup(`cp -r "$(go env GOROOT)/src/" src; ls -lR >/dev/null`), script(`ls -lR >/dev/null`)},
	{"grep -r, mount cold", "s", true, setup(`cp -r "$(go env GOROOT)/src/" src`), script(`grep -r no-such-text . || true`)},
	{"git status, mount cold", "s", true, setup(`mkdir r; cd r; git init -q; cp -r "$(go env GOROOT)/src/net" .; git add .`), script(`cd r; git status >/dev/null`)},
	{"rm -rf", "s", false, setup(`cp -r "$(go env GOROOT)/src/" src`), script(`rm -rf src`)},
	{"SQLite, 400 autocommit inserts", "s", false, setup(`sqlite3 d.db 'CREATE TABLE t(v)'`),
		script(`for i in $(seq 400); do echo "INSERT INTO t VALUES(randomblob(100));"; done | sqlite3 d.db`)},
}

func nothing(dir string, _ int) error { return sh(dir, "rm -rf ./*") }

func setup(s string) func(string, int) error {
	return func(dir string, _ int) error { return sh(dir, "rm -rf ./*; "+s) }
}

func script(s string) func(string, int) (float64, error) {
	return func(dir string, _ int) (float64, error) { return 0, sh(dir, s) }
}

func bigFile(dir string, scale int) error {
	if err := nothing(dir, scale); err != nil {
		return err
	}
	_, err := sequential(dir, fileSize/scale, 1<<20)
	return err
}

// sequential writes size bytes in steps and syncs; it returns megabytes.
func sequential(dir string, size, step int) (float64, error) {
	f, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	p := make([]byte, step)
	for i := range p {
		p[i] = byte(i)
	}
	for done := 0; done < size; done += step {
		if _, err := f.Write(p); err != nil {
			return 0, err
		}
	}
	return float64(size) / 1e6, f.Sync()
}

func readFile(dir string, _ int) (float64, error) {
	f, err := os.Open(filepath.Join(dir, "big"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	p, total := make([]byte, 1<<20), 0
	for {
		n, err := f.Read(p)
		total += n
		if n == 0 {
			return float64(total) / 1e6, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// randomReads reads with O_DIRECT in several threads.
func randomReads(dir string, scale, threads int) (float64, error) {
	fd, err := unix.Open(filepath.Join(dir, "big"), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	each := 16000 / scale / threads
	errs := make([]error, threads)
	var wg sync.WaitGroup
	for t := range threads {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(t), 1))
			buf := make([]byte, 8192)
			p := buf[4096-int(uintptr(unsafe.Pointer(&buf[0]))%4096):][:4096]
			for range each {
				if _, err := unix.Pread(fd, p, int64(r.IntN(fileSize/scale/4096))*4096); err != nil {
					errs[t] = err
					return
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return float64(each*threads) * 4096 / 1e6, nil
}

func randomWrites(dir string, scale, n int, sync bool) (float64, error) {
	f, err := os.OpenFile(filepath.Join(dir, "big"), os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	r := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 4096)
	for range n {
		if _, err := f.WriteAt(p, int64(r.IntN(fileSize/scale/4096))*4096); err != nil {
			return 0, err
		}
		if sync {
			if err := f.Sync(); err != nil {
				return 0, err
			}
		}
	}
	return float64(n) * 4096 / 1e6, f.Sync()
}
