package main

import (
	"context"
	"fmt"
)

// study is a line of -rows that is no row of the table: it has a shape of its
// own, and processes of its own that begin and end with it.
type study struct {
	name  string // for -rows
	tools []tool
	needs string // the contender that it is about; "": all that are chosen
	// run leaves what it found in the bench's result.
	run func(ctx context.Context, b *bench) error
}

func allStudies() []study {
	etcd := []tool{etcdTool}
	return []study{
		{name: "idle", run: runIdle},
		{name: "idle-https", run: runIdleWeb},
		{name: "stream", run: runStreams},
		{name: "shake", needs: judged, run: runShake},
		{name: "live", needs: judged, run: runLive},
		{name: "map40k", needs: judged, tools: etcd, run: runSized},
		{name: "reload", needs: reference, tools: []tool{nginxTool, nginxStreamTool}, run: runReload},
		{name: "edits", needs: judged, tools: etcd, run: runEdits},
		{name: "fleet", needs: judged, tools: etcd, run: runFleet},
		{name: "envs", needs: judged, tools: []tool{etcdctlTool, ipTool}, run: runEnvs},
		{name: "swarm", tools: etcd, run: runSwarm},
		{name: "upgrades", needs: judged, tools: []tool{etcdctlTool, h2loadTool}, run: runUpgrades},
		{name: "dns", needs: judged, tools: []tool{etcdTool, etcdctlTool, ipTool, knotTool, unboundTool}, run: runDNS},
		{name: "certs", needs: judged, tools: etcd, run: runCerts},
		{name: "table1m", run: runMillion},
	}
}

// possible returns an error where the study needs a contender that is not
// chosen.
func (s study) possible(o *options) error {
	if s.needs != "" && !o.measures(s.needs) {
		return fmt.Errorf("-rows: %s measures %s, which is not among -contenders", s.name, s.needs)
	}
	return nil
}

// study runs s. One that fails is marked in the result and harms no other; the
// error is the end of ctx.
func (b *bench) study(ctx context.Context, s study) error {
	fmt.Fprintf(b.out, "%s\n", s.name)
	err := s.run(ctx, b)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		fmt.Fprintf(b.out, "%-9s FAILED: %v\n", s.name, err)
		b.result.Failed = append(b.result.Failed, fmt.Sprintf("%s: %v", s.name, err))
	}
	return nil
}
