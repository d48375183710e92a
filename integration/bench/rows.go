package main

import (
	"context"
	"path/filepath"
)

// A row is one thing to measure. The rows of a system run one after the other, each on what those before it have left.
type row struct {
	name    string
	unit    string // of which more is better, but for "s"
	cold    bool   // nothing is cached, by the mount or below it
	prepare func(ctx context.Context, dir string, l load) error
	run     func(ctx context.Context, dir string, l load) (amount float64, err error) // amount is not used for "s"
}

// A load is how much a row has to do.
type load struct {
	bytes int64  // of the big file
	files int    // that are created
	ops   int    // random ones that are synced each; others are more
	tree  string // a tar archive, of src/
}

// newLoad packs the Go source tree, or a part of it.
func (w *workplace) newLoad(ctx context.Context, quick, check bool) (load, error) {
	l, part := load{bytes: 256 << 20, files: 5000, ops: 2000, tree: w.path("tree.tar")}, ""
	if quick || check {
		l.bytes, l.files, l.ops = l.bytes/4, l.files/4, l.ops/4
	}
	if check {
		l.bytes, l.files, l.ops, part = l.bytes/4, l.files/4, l.ops/4, "/net"
	}
	return l, sh(ctx, "/", `tar -C "$(go env GOROOT)" -cf `+l.tree+" src"+part)
}

// dataRows are about the content of big files.
func dataRows() []row {
	return []row{
		{name: "sequential write 1 MiB + fsync", unit: "MB/s", run: func(ctx context.Context, dir string, l load) (float64, error) {
			return writeFile(ctx, big(dir), l.bytes, 1<<20)
		}},
		{name: "sequential read, cold", unit: "MB/s", cold: true, run: readBig},
		{name: "re-read, page cache", unit: "MB/s", run: readBig},
		{name: "4 KiB sequential writes + fsync at end", unit: "MB/s", run: func(ctx context.Context, dir string, l load) (float64, error) {
			return writeFile(ctx, filepath.Join(dir, "small-writes"), l.bytes/4, 4096)
		}},
		{name: "random 4 KiB read, O_DIRECT, 1 thread", unit: "MB/s", run: func(ctx context.Context, dir string, l load) (float64, error) {
			return randomReads(ctx, big(dir), region{0, l.bytes}, 4*l.ops, 1)
		}},
		{name: "random 4 KiB read, O_DIRECT, 8 threads", unit: "MB/s", run: func(ctx context.Context, dir string, l load) (float64, error) {
			return randomReads(ctx, big(dir), region{0, l.bytes}, 8*l.ops, 8)
		}},
		{name: "random 4 KiB write, fsync at end", unit: "MB/s", run: func(ctx context.Context, dir string, l load) (float64, error) {
			return randomWrites(ctx, big(dir), region{0, l.bytes}, 4*l.ops, syncAtEnd)
		}},
		{name: "4 KiB random write + fsync each", unit: "MB/s", run: func(ctx context.Context, dir string, l load) (float64, error) {
			return randomWrites(ctx, big(dir), region{0, l.bytes}, l.ops, syncEach)
		}},
	}
}

// treeRows are about many small files.
func treeRows() []row {
	return []row{
		{name: "create files of 300 B", unit: "files/s", prepare: script("mkdir files"), run: func(ctx context.Context, dir string, l load) (float64, error) {
			return float64(l.files), createFiles(ctx, filepath.Join(dir, "files"), l.files, 300)
		}},
		{name: "untar the Go source tree", unit: "s", run: func(ctx context.Context, dir string, l load) (float64, error) {
			return 0, sh(ctx, dir, "tar -xf "+l.tree)
		}},
		{name: "ls -lR, cold", unit: "s", cold: true, run: timed("ls -lR src >/dev/null")},
		{name: "ls -lR, warm", unit: "s", run: timed("ls -lR src >/dev/null")},
		{name: "grep -r, cold", unit: "s", cold: true, run: timed(grep)},
		{name: "grep -r, warm", unit: "s", run: timed(grep)},
		{name: "git status, cold", unit: "s", cold: true, prepare: script("git init -q src; cd src; git add net"), run: timed("cd src; git status >/dev/null")},
		{name: "rm -rf", unit: "s", run: timed("rm -rf src")},
		{name: "SQLite, 400 autocommit inserts", unit: "s", prepare: script("sqlite3 d.db 'CREATE TABLE t(v)'"),
			run: timed(`for i in $(seq 400); do echo "INSERT INTO t VALUES(randomblob(100));"; done | sqlite3 d.db`)},
	}
}

const grep = "! grep -r no-such-text src" // exit code 1 is what finding nothing gives

func big(dir string) string { return filepath.Join(dir, "big") }

func readBig(ctx context.Context, dir string, _ load) (float64, error) {
	return readFile(ctx, big(dir))
}

func script(s string) func(context.Context, string, load) error {
	return func(ctx context.Context, dir string, _ load) error { return sh(ctx, dir, s) }
}

func timed(s string) func(context.Context, string, load) (float64, error) {
	return func(ctx context.Context, dir string, _ load) (float64, error) { return 0, sh(ctx, dir, s) }
}
