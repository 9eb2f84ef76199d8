package main

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// caddyVersion is the version of Caddy's module that is measured. Some proxies
// of modules do not answer @latest.
const caddyVersion = "v2.11.9"

// caddyTool is built by the go command as its users build it: in module mode
// of its own, which neither reads nor changes our go.mod.
var caddyTool = tool{file: "caddy", made: &recipe{
	dir:  "caddy-" + caddyVersion,
	how:  "go install github.com/caddyserver/caddy/v2/cmd/caddy@" + caddyVersion,
	make: buildCaddy,
}}

func buildCaddy(ctx context.Context, dir string) error {
	cmd := command(ctx, "go", "install", "github.com/caddyserver/caddy/v2/cmd/caddy@"+caddyVersion)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, tail(out))
	}
	return nil
}

// caddy is Caddy from its Go module.
func caddy() contender {
	return contender{
		name:  "caddy",
		tools: []tool{caddyTool},
		web:   true,
		start: startCaddy,
		version: func(ctx context.Context, _ *options) string {
			program, err := caddyTool.path()
			if err != nil {
				return "unknown: " + err.Error()
			}
			version, _, _ := strings.Cut(firstLine(ctx, caddyTool, "version"), " ")
			return version + " " + buildOf(program)
		},
	}
}

func startCaddy(ctx context.Context, s *site) (*edge, error) {
	addrs, err := s.addrs(webServices())
	if err != nil {
		return nil, err
	}
	addrs[serviceH3] = addrs[serviceHTTPS]
	config, err := s.writeConfig("Caddyfile", configValues{Listen: addrs.byName()})
	if err != nil {
		return nil, err
	}
	program, err := caddyTool.path()
	if err != nil {
		return nil, err
	}
	// Whatever it keeps goes to the site; env makes way for it.
	return s.launch(ctx, "caddy", addrs, "env", "HOME="+s.dir, "XDG_DATA_HOME="+s.dir, "XDG_CONFIG_HOME="+s.dir,
		program, "run", "--config", config, "--adapter", "caddyfile")
}
