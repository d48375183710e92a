# The README's two commands are `make demo` and `make test`; the second is all that CI runs.
PREFIX  ?= /usr/local
DESTDIR ?=
GO      ?= go

LIBRARIES = ./keyring/... ./header ./blockcrypt ./names ./volume

.PHONY: all build deps demo test check unit race integration bench bench-quick bench-check fuzz install uninstall clean

all: build

build:
	$(GO) build -trimpath -o bin/kmsfs ./cmd/kmsfs

deps:
	@./scripts/deps.sh

demo: deps build
	@./scripts/demo.sh

test: deps check unit race bench-check integration

check:
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	$(GO) vet ./...

unit:
	$(GO) test $(LIBRARIES) ./fs ./cmd/...

race:
	$(GO) test -race $(LIBRARIES)

# The tests drive the built binary on real mounts; they need root and FUSE.
integration:
	$(GO) test -count=1 -timeout 10m ./integration/...

# Side by side with gocryptfs, securefs, a loopback and ext4; docs/performance.md tells how to read the table.
bench:
	cd integration/bench && $(GO) run .

bench-quick:
	cd integration/bench && $(GO) run . -quick

# Every row once on kmsfs alone, for errors only.
bench-check:
	cd integration/bench && $(GO) run . -check >/dev/null

# Ten seconds for each parser; longer with FUZZTIME=10m.
FUZZTIME ?= 10s
fuzz:
	$(GO) test -run '^$$' -fuzz FuzzParse -fuzztime $(FUZZTIME) ./header
	$(GO) test -run '^$$' -fuzz FuzzFile -fuzztime $(FUZZTIME) ./blockcrypt

install: build
	install -Dm755 bin/kmsfs $(DESTDIR)$(PREFIX)/bin/kmsfs
	install -d $(DESTDIR)/sbin
	ln -sf $(PREFIX)/bin/kmsfs $(DESTDIR)/sbin/mount.kmsfs
	ln -sf $(PREFIX)/bin/kmsfs $(DESTDIR)/sbin/mount.fuse.kmsfs
	install -Dm644 contrib/kmsfs@.service $(DESTDIR)/etc/systemd/system/kmsfs@.service
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	$(GO) run github.com/cpuguy83/go-md2man/v2 -in docs/kmsfs.1.md -out $(DESTDIR)$(PREFIX)/share/man/man1/kmsfs.1

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/kmsfs $(DESTDIR)/sbin/mount.kmsfs $(DESTDIR)/sbin/mount.fuse.kmsfs \
	  $(DESTDIR)/etc/systemd/system/kmsfs@.service $(DESTDIR)$(PREFIX)/share/man/man1/kmsfs.1

clean:
	rm -rf bin
