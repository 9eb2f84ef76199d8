package main

import (
	"context"
	"strings"
)

// haproxy is Debian's haproxy.
func haproxy() contender {
	return contender{
		name:  "haproxy",
		tools: []tool{haproxyTool},
		start: startHaproxy,
		version: func(ctx context.Context, _ *options) string {
			v, _, _ := strings.Cut(firstLine(ctx, haproxyTool, "-v"), " - ")
			return v
		},
	}
}

func startHaproxy(ctx context.Context, s *site) (*edge, error) {
	addrs, err := s.addrs(streamServices()) // it does not proxy UDP
	if err != nil {
		return nil, err
	}
	config, err := s.writeConfig("haproxy.cfg", configValues{Listen: addrs.byName()})
	if err != nil {
		return nil, err
	}
	program, err := haproxyTool.path()
	if err != nil {
		return nil, err
	}
	// -db keeps it in the foreground.
	return s.launch(ctx, "haproxy", addrs, program, "-db", "-f", config)
}
