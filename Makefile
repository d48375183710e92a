# The README's two commands are `make demo` and `make test`; the second is all that CI runs.
PREFIX  ?= /usr/local
DESTDIR ?=
GO      ?= go
BIN     ?= bin
BUILD   ?= -trimpath
TAGS    ?= # noalibaba, nohuawei: leave a provider and its SDK out

# Whatever is no command and does not run one.
LIBRARIES = $(shell $(GO) list ./... | grep -v -e /integration -e /cmd/)

.PHONY: all build deps deps-databases deps-bench demo test check unit race integration rings sm4 bench bench-quick bench-scale bench-check fuzz freeze powercut price model install uninstall clean

all: build

build: $(BIN)/kmsfs $(BIN)/kmsfs.1

SOURCES := $(shell find . -name '*.go' -not -path './bin/*') go.mod go.sum

$(BIN)/kmsfs: $(SOURCES)
	$(GO) build $(BUILD) -tags '$(strip $(TAGS))' -o $@ ./cmd/kmsfs

$(BIN)/kmsfs.1: docs/kmsfs.1.md go.mod
	@mkdir -p $(BIN)
	$(GO) run github.com/cpuguy83/go-md2man/v2 -in docs/kmsfs.1.md -out $@

deps:
	@./scripts/deps.sh

deps-databases:
	@./scripts/deps-databases.sh

deps-bench:
	@./scripts/deps-bench.sh

# The demo's CMK is local, so it does without the SDKs of the cloud providers, whose compilation takes longest.
demo: deps
	$(GO) build -tags 'noalibaba,nohuawei' -o $(BIN)/demo/kmsfs ./cmd/kmsfs
	@./scripts/demo.sh $(BIN)/demo/kmsfs

test: deps deps-databases check unit race bench-check integration rings

check:
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags noalibaba ./cmd/kmsfs
	$(GO) vet -tags nohuawei ./cmd/kmsfs
	$(GO) build -tags noalibaba,nohuawei -o /dev/null ./cmd/kmsfs

unit:
	$(GO) test $(LIBRARIES) ./cmd/...

# What runs side by side; the rest of blockcrypt takes minutes under the race detector, and is sequential.
race:
	$(GO) test -race $(filter-out %/blockcrypt,$(LIBRARIES))
	$(GO) test -race -run Concurrent ./blockcrypt

# The tests drive the built binary on real mounts; they need root and FUSE.
integration:
	$(GO) test -p 1 -count=1 -timeout 25m ./integration/...

# Those tests again that depend most on how requests come from the kernel, the other way than this machine's kernel has it: over io_uring(7), or not. The line that they print where there is but one way
# is seen since the package is not named.
rings:
	cd integration && KMSFS_TEST_RINGS=other $(GO) test -count=1 -timeout 15m

# The tests again, on volumes of SM4.
sm4:
	KMSFS_ALGORITHM=sm4-128-gcm $(GO) test -p 1 -count=1 -timeout 25m ./integration

# KMSFS_CUTS power cuts of each kind, and as many seeds of the journal's own, each with dozens; KMSFS_DB_CUTS under each database server; from KMSFS_SEED.
# KMSFS_KEEP=DIR keeps what led to a loss.
powercut: export KMSFS_CUTS ?= 10000
powercut: export KMSFS_DB_CUTS ?= 500
powercut: deps-databases
	$(GO) test -count=1 -timeout 0 -run 'TestPowerCut$$' ./journal
	cd integration/powercut && $(GO) test -count=1 -v -timeout 0 .

# What durability costs, docs/durability-price.md.
price:
	cd integration/powercut && $(GO) test -count=1 -v -run TestPrice .

# A million random operations for each of two volumes, and every backing call failed once; about a quarter of an hour.
model:
	KMSFS_MODEL_OPS=1000000 $(GO) test -count=1 -v -timeout 2h -run 'TestModel$$' ./integration
	KMSFS_FAULTS=all $(GO) test -count=1 -v -timeout 2h -run TestFaults ./integration

# Run as this, and not by go run, it cleans up when make is told to stop.
$(BIN)/bench: $(SOURCES)
	@$(GO) build -o $@ ./integration/bench

BENCH = @cd integration/bench && exec $(abspath $(BIN))/bench

# Side by side with gocryptfs, securefs, a loopback and ext4; docs/performance.md tells how to read the table.
bench: deps deps-bench $(BIN)/bench
	$(BENCH)

# The same in about two minutes: once, on a quarter of the data.
bench-quick: deps deps-bench $(BIN)/bench
	$(BENCH) -quick

# kmsfs alone: ciphers, segment sizes, CPU, parallel clients, a file of 100 GiB, space, a million names. One of them with STUDIES=names.
STUDIES ?= all
bench-scale: deps $(BIN)/bench
	$(BENCH) -scale $(STUDIES)

# Every row and every study once on kmsfs alone, on little data, for errors only.
bench-check: $(BIN)/bench
	$(BENCH) -check >/dev/null

# Ten seconds for each parser; longer with FUZZTIME=10m.
FUZZTIME ?= 10s
fuzz:
	$(GO) test -run '^$$' -fuzz '^FuzzParse$$' -fuzztime $(FUZZTIME) ./header
	$(GO) test -run '^$$' -fuzz '^FuzzParseEncryptionContext$$' -fuzztime $(FUZZTIME) ./keyring
	$(GO) test -run '^$$' -fuzz '^FuzzParse$$' -fuzztime $(FUZZTIME) ./keyring/local
	$(GO) test -run '^$$' -fuzz '^FuzzParse$$' -fuzztime $(FUZZTIME) ./secrets
	$(GO) test -run '^$$' -fuzz '^FuzzEnvelope$$' -fuzztime $(FUZZTIME) ./cmd/kmsfs
	$(GO) test -run '^$$' -fuzz '^FuzzOpen$$' -fuzztime $(FUZZTIME) ./names
	$(GO) test -run '^$$' -fuzz '^FuzzNote$$' -fuzztime $(FUZZTIME) ./reencrypt
	$(GO) test -run '^$$' -fuzz '^FuzzSeal$$' -fuzztime $(FUZZTIME) ./names
	$(GO) test -run '^$$' -fuzz '^FuzzHoleRoot$$' -fuzztime $(FUZZTIME) ./blockcrypt
	$(GO) test -run '^$$' -fuzz '^FuzzScan$$' -fuzztime $(FUZZTIME) ./blockcrypt
	$(GO) test -run '^$$' -fuzz '^FuzzFile$$' -fuzztime $(FUZZTIME) ./blockcrypt
	$(GO) test -run '^$$' -fuzz '^FuzzParse$$' -fuzztime $(FUZZTIME) ./sdkformat
	$(GO) test -run '^$$' -fuzz '^FuzzParse$$' -fuzztime $(FUZZTIME) ./signature
	$(GO) test -run '^$$' -fuzz '^FuzzReader$$' -fuzztime $(FUZZTIME) ./manifest

# Makes the frozen volume anew: only before a format is released, never after.
freeze:
	KMSFS_FREEZE=1 $(GO) test -count=1 -run '^TestFrozen$$' ./integration

# mount(8) looks for its helpers in /sbin only.
install: build
	install -Dm755 $(BIN)/kmsfs $(DESTDIR)$(PREFIX)/bin/kmsfs
	install -d $(DESTDIR)/sbin
	ln -sf $(PREFIX)/bin/kmsfs $(DESTDIR)/sbin/mount.kmsfs
	ln -sf $(PREFIX)/bin/kmsfs $(DESTDIR)/sbin/mount.fuse.kmsfs
	install -Dm644 $(BIN)/kmsfs.1 $(DESTDIR)$(PREFIX)/share/man/man1/kmsfs.1
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' 'contrib/kmsfs@.service' > '$(DESTDIR)$(PREFIX)/lib/systemd/system/kmsfs@.service'
	chmod 644 '$(DESTDIR)$(PREFIX)/lib/systemd/system/kmsfs@.service'

# The configuration in /etc/kmsfs stays: it notes which CMKs open which volume.
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/kmsfs $(DESTDIR)/sbin/mount.kmsfs $(DESTDIR)/sbin/mount.fuse.kmsfs \
	  $(DESTDIR)$(PREFIX)/share/man/man1/kmsfs.1 '$(DESTDIR)$(PREFIX)/lib/systemd/system/kmsfs@.service'

clean:
	rm -rf $(BIN)
