# The version of every tool is fixed here; libraries are fixed in go.mod.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PGOROWS := h1,h1tls,h2-16x16,h2-64x1,h3-16x16,h3-64x1,large-h1tls,large-h2,tls-full,tls-resumed,pingpong,connect,udp
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

BUILD := CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)"

.PHONY: build run test bench pgo pgo-gain lint deb deb-test image image-test

build: ## bin/sluice
	$(BUILD) -o bin/sluice ./cmd/sluice

run: build ## a node with everything on this machine
	bin/sluice run --config deploy/dev.yaml

test: ## every test, the end-to-end ones included
	.ci/tools
	go test -race -pgo=off -shuffle=on -timeout 30m ./...

bench: build ## side by side with nginx, haproxy and Caddy
	go run ./bench $(BENCHFLAGS)

pgo: ## cmd/sluice/default.pgo anew, the profile that the compiler optimises by
	$(BUILD) -pgo=off -o bin/sluice-nopgo ./cmd/sluice
	go run ./bench -pgo cmd/sluice/default.pgo -sluice bin/sluice-nopgo

pgo-gain: build ## what that profile gains, beside a build without it
	$(BUILD) -pgo=off -o bin/sluice-nopgo ./cmd/sluice
	go run ./bench -contenders baseline,sluice -baseline bin/sluice-nopgo -rows $(PGOROWS) -results bench/results/pgo $(BENCHFLAGS)

lint: ## formatting, vet, staticcheck
	@test -z "$$(gofmt -l .)" || { gofmt -l . ; echo "run gofmt -w on these files"; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...

# Packages and images are the same bytes for the same commit.
EPOCH = SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)}

deb: build ## bin/sluice_VERSION_ARCH.deb
	$(EPOCH) deploy/deb/build bin/sluice $(VERSION) bin

deb-test: deb ## that package on a clean Debian under systemd: installed, serving, upgraded, purged
	deploy/deb/test bin

image: build ## bin/sluice-image.tar, for docker load and podman load
	$(EPOCH) go run ./deploy/image -program bin/sluice -version $(VERSION) -tag sluice:latest -o bin/sluice-image.tar

image-test: image ## that image in a container, without an engine: serving, with a health check
	deploy/image/test bin/sluice-image.tar
