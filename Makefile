# The everyday commands. `make help` lists them.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOLANGCI := bin/golangci-lint
# Arguments of `make bench`; see docs/benchmarks.md.
BENCH      ?= -clients 1,64 -value-size 256 -duration 10s
BENCH_ETCD ?= -clients 1,64 -value-size 256 -duration 5s -rounds 5

.DEFAULT_GOAL := help
.PHONY: help build run check lint test race fault mutants smoke bench bench-etcd image clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## compile bin/sett, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/sett ./cmd/sett

run: ## a cluster of three nodes on this machine; Ctrl-C ends it
	$(GO) run ./cmd/sett dev

check: lint ## everything that must hold before a commit
	@test -z "$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go'))" || { gofmt -d $$(git ls-files -co --exclude-standard '*.go'); exit 1; }
	$(GO) mod tidy -diff
	$(GO) vet ./...
	CGO_ENABLED=1 $(GO) test -race -short ./...

lint: $(GOLANGCI) ## golangci-lint, staticcheck included
	$(GOLANGCI) run ./...

# The tools have a module of their own, so that they add nothing to Sett's.
$(GOLANGCI): scripts/tools/go.mod
	$(GO) -C scripts/tools build -o ../../$(GOLANGCI) github.com/golangci/golangci-lint/v2/cmd/golangci-lint

test: ## all tests, as a newcomer runs them
	$(GO) test ./...

race: ## all tests under the race detector
	CGO_ENABLED=1 $(GO) test -race ./...

fault: ## kill -9 on real processes, fifty times
	SETT_FAULT=ci $(GO) test -count=1 -v -timeout 15m -run Fault ./internal/faulttest/...

mutants: ## break the code on purpose; the tests must notice
	bash scripts/mutants.sh

smoke: ## the cluster in containers, through a bad day
	bash scripts/compose-smoke.sh

bench: build ## throughput and latency of three real processes
	$(GO) run ./scripts/bench $(BENCH)

# etcd comes from a module of its own, so that it adds nothing to Sett's.
bench-etcd: build ## the same in turn with etcd, and the ratios
	$(GO) -C scripts/bench/etcd build -o ../../../bin/bench-etcd .
	$(GO) run ./scripts/bench $(BENCH_ETCD) -etcd bin/bench-etcd

image: build ## the container image, from bin/sett
	docker build --target prebuilt --tag sett:$(VERSION) --tag sett:dev .

clean: ## remove what was built
	rm -rf bin
