package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control"
	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/history"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/portpool"
)

// plane is the cluster as commands work with it: by etcd itself (direct), or by
// the control API of a node (remote), which is how somebody works whose machine
// does not reach etcd, and as whom a token says. Commands know no more of it.
type plane interface {
	keyPlane
	envPlane
	nodePlane
	tokenPlane
	close() error
}

// keyPlane is what is done to keys, and known of them.
type keyPlane interface {
	// list returns the keys that begin with prefix, with verdicts.
	list(ctx context.Context, prefix string) ([]keys.Entry, error)
	// names returns the first keys that begin with prefix.
	names(ctx context.Context, prefix string, most int) ([]string, error)
	// plan says what wishes come to, and make has it so.
	plan(ctx context.Context, wishes []keys.Wish) (*keys.Plan, error)
	make(ctx context.Context, p *keys.Plan, wait time.Duration) (keys.Made, error)
	status(ctx context.Context) (*keys.Status, error)
	// applied waits until every live node has applied rev, 0 being the newest, and
	// returns it.
	applied(ctx context.Context, rev int64, limit time.Duration) (int64, error)
	// changes returns those that are in the history of keys that begin with prefix.
	changes(ctx context.Context, after int64, prefix string) (*history.Log, error)
	// diff returns how keys differ, to 0 being now, and those that nobody knows of.
	diff(ctx context.Context, from, to int64, prefix string) (changes []keys.Change, unknown []string, err error)
	// back returns the wishes that make keys what they were, and what is left out.
	back(ctx context.Context, to int64, prefix string) (*backTo, error)
}

// backTo is what makes keys what they were.
type backTo struct {
	wishes  []keys.Wish
	left    []control.Finding // what nodes would refuse
	unknown []string          // keys whose values nobody has
}

// envPlane is what is done to environments, and to ports of pools. wait is how long
// to wait for nodes, 0 being not at all.
type envPlane interface {
	createEnv(ctx context.Context, spec envs.Spec, wait time.Duration) (*wire.Environment, error)
	env(ctx context.Context, id string) (*wire.Environment, error)
	envs(ctx context.Context, prefix string) ([]wire.Environment, error)
	patchEnv(ctx context.Context, id string, p envs.Patch, wait time.Duration) (*wire.Environment, error)
	// removeEnv ends an environment, and its sessions after drain; if that is
	// negative, as its mappings say.
	removeEnv(ctx context.Context, id string, drain, wait time.Duration) (rev int64, err error)
	access(ctx context.Context, id string, secrets bool) (map[string]wire.Access, error)
	alloc(ctx context.Context, r portpool.Request) (*wire.Service, error)
	release(ctx context.Context, env, service string) (rev int64, err error)
	ports(ctx context.Context, service string) ([]wire.Port, error)
	usage(ctx context.Context) ([]wire.PoolUsage, error)
	reserve(ctx context.Context, r wire.Reservation) (rev int64, err error)
	unreserve(ctx context.Context, protocol, ports string) (rev int64, err error)
	audit(ctx context.Context) ([]wire.PortFinding, error)
}

// nodePlane is what is asked of nodes, and wanted of them.
type nodePlane interface {
	nodes(ctx context.Context) ([]wire.NodeView, error)
	node(ctx context.Context, name string) (*wire.NodeView, error)
	// drain has a node drained, and undrain has it serve again. They wait for
	// nothing.
	drain(ctx context.Context, name, reason string) error
	undrain(ctx context.Context, name string) error
}

// tokenPlane is what is done to tokens.
type tokenPlane interface {
	tokens(ctx context.Context) ([]wire.Token, error)
	createToken(ctx context.Context, t wire.NewToken) (secret string, err error)
	rotateToken(ctx context.Context, name string, grace time.Duration) (secret string, err error)
	removeToken(ctx context.Context, name string) error
}

// openPlane returns the cluster that the flags name. The caller closes it.
func (f *clusterFlags) openPlane(cmd *cobra.Command) (plane, error) {
	if err := f.api.check(f); err != nil {
		return nil, err
	}
	if f.api.asked(f) {
		c, err := f.api.dial()
		if err != nil {
			return nil, err
		}
		return &remote{client: c, wishes: map[*keys.Plan][]keys.Wish{}}, nil
	}
	store, err := f.open(cmd)
	if err != nil {
		return nil, err
	}
	return &direct{flags: f, store: store}, nil
}

// withPlane has run work with the cluster that the flags name.
func (f *clusterFlags) withPlane(run func(cmd *cobra.Command, args []string, p plane) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) (err error) {
		if err := f.check(); err != nil {
			return err
		}
		p, err := f.openPlane(cmd)
		if err != nil {
			return err
		}
		defer func() {
			if closed := p.close(); err == nil {
				err = closed
			}
		}()
		return run(cmd, args, p)
	}
}
