package main

import (
	"context"
	"strings"
	"time"
)

// nginxStreamModule is where Debian keeps nginx's TCP proxy.
const nginxStreamModule = "/usr/lib/nginx/modules/ngx_stream_module.so"

// startLimit is how long a contender may take until it answers.
const startLimit = 30 * time.Second

// nginx is Debian's nginx with its stream module.
func nginx() contender {
	return contender{
		name:  reference,
		tools: []tool{nginxTool, nginxStreamTool},
		start: startNginx,
		version: func(ctx context.Context, _ *options) string {
			return strings.TrimPrefix(firstLine(ctx, nginxTool, "-v"), "nginx version: ")
		},
	}
}

func startNginx(ctx context.Context, s *site) (*edge, error) {
	addrs, err := s.addrs(services())
	if err != nil {
		return nil, err
	}
	config, err := s.writeConfig("nginx.conf", configValues{Listen: addrs.byName(), StreamModule: nginxStreamModule})
	if err != nil {
		return nil, err
	}
	program, err := nginxTool.path()
	if err != nil {
		return nil, err
	}
	// -e keeps even the messages before the configuration out of /var/log.
	return s.launch(ctx, "nginx", addrs, program, "-p", s.dir, "-c", config, "-e", "stderr")
}

// launch starts a contender that uses the site's certificate and waits until
// all its TCP addresses accept connections.
func (s *site) launch(ctx context.Context, name string, addrs addressBook, argv ...string) (*edge, error) {
	p, err := startProcess(name, s.dir, nil, nil, argv...)
	if err != nil {
		return nil, err
	}
	for name, addr := range addrs {
		if !name.onTCP() {
			continue // has nothing to accept; verify asks it for an answer
		}
		if err := until(ctx, p, startLimit, func(ctx context.Context) error { return connects(ctx, addr) }); err != nil {
			p.stop()
			return nil, err
		}
	}
	return &edge{name: name, root: p.pid(), addrs: addrs, roots: s.pair.roots, proc: p}, nil
}
