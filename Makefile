# The version of every tool is fixed here; libraries are fixed in go.mod.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

.PHONY: build run test bench lint

build: ## bin/sluice
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/sluice ./cmd/sluice

run: build ## a node with everything on this machine
	bin/sluice run --config deploy/dev.yaml

test: ## every test, the end-to-end ones included
	.ci/tools
	go test -race -shuffle=on -timeout 30m ./...

bench: build ## side by side with nginx, haproxy and Caddy
	go run ./bench $(BENCHFLAGS)

lint: ## formatting, vet, staticcheck
	@test -z "$$(gofmt -l .)" || { gofmt -l . ; echo "run gofmt -w on these files"; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...
