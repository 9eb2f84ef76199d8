package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/remotegpu/sluice/control/api/client"
	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/fleet"
	"github.com/remotegpu/sluice/control/history"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/wire"
	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// remote is the cluster by the control API of a node.
type remote struct {
	client *client.Client
	wishes map[*keys.Plan][]keys.Wish // what plans are of
}

func (r *remote) close() error {
	r.client.Close()
	return nil
}

// keysAtOnce is how many keys the API changes in a transaction.
const keysAtOnce = 126

func (r *remote) list(ctx context.Context, prefix string) (all []keys.Entry, err error) {
	for k, err := range r.client.Keys(ctx, prefix) {
		if err != nil {
			return nil, err
		}
		all = append(all, keys.Entry{Key: k.Key, Value: k.Text(), Rev: k.Revision, Verdicts: k.Verdicts})
	}
	slices.SortFunc(all, func(a, b keys.Entry) int { return router.CompareKeys(a.Key, b.Key) })
	return all, nil
}

func (r *remote) names(ctx context.Context, prefix string, most int) (names []string, err error) {
	for k, err := range r.client.Keys(ctx, prefix) {
		if err != nil || len(names) == most {
			return names, err
		}
		names = append(names, k.Key)
	}
	return names, nil
}

func (r *remote) plan(ctx context.Context, wishes []keys.Wish) (*keys.Plan, error) {
	all := &keys.Plan{Changes: []keys.Change{}}
	for some := range slices.Chunk(wishes, keysAtOnce) {
		p, err := r.client.ChangeKeys(ctx, wire.KeyWishes{Keys: wireWishes(some, nil), DryRun: true})
		if err != nil {
			return nil, err
		}
		all.Rev, all.Same = p.Revision, all.Same+p.Same
		all.Changes, all.Findings, all.Missing = append(all.Changes, p.Changes...), append(all.Findings, p.Findings...), append(all.Missing, p.Missing...)
	}
	r.wishes[all] = wishes
	return all, nil
}

// wireWishes returns wishes as they are sent, those of changes as of what was seen.
func wireWishes(wishes []keys.Wish, changes map[string]keys.Change) []wire.KeyWish {
	to := make([]wire.KeyWish, len(wishes))
	for i, w := range wishes {
		to[i] = wire.KeyWish{Key: w.Key, Delete: w.Delete}
		if !w.Delete {
			to[i].Value, _ = json.Marshal(w.Value) // a string: its content, to the letter
		}
		if c, ok := changes[w.Key]; ok {
			to[i].Since = &c.Since
		}
	}
	return to
}

func (r *remote) make(ctx context.Context, p *keys.Plan, wait time.Duration) (made keys.Made, err error) {
	changes := make(map[string]keys.Change, len(p.Changes))
	for _, c := range p.Changes {
		changes[c.Key] = c
	}
	for some := range slices.Chunk(r.wishes[p], keysAtOnce) {
		n := 0
		for _, w := range some {
			if _, ok := changes[w.Key]; ok {
				n++
			}
		}
		if n == 0 && wait == 0 {
			continue
		}
		done, err := r.client.ChangeKeys(ctx, wire.KeyWishes{Keys: wireWishes(some, changes), Meant: p.Meant}, waiting(wait)...)
		if pr := client.ProblemOf(err); pr != nil && pr.Code == wire.NotApplied {
			done = &wire.KeyPlan{Committed: pr.Revision}
		} else if err != nil && made.Done > 0 {
			return made, fmt.Errorf("the first %d of %d changes were made: %w", made.Done, len(p.Changes), err)
		} else if err != nil {
			return made, err
		}
		made.Done, made.Answers = made.Done+n, append(made.Answers, done.Answers...)
		made.Committed = max(made.Committed, done.Committed)
		if err != nil {
			return made, err
		}
	}
	return made, nil
}

// waiting is the option to wait for nodes, if wait says so.
func waiting(wait time.Duration) []client.Option {
	if wait <= 0 {
		return nil
	}
	return []client.Option{client.Applied(wait)}
}

func (r *remote) status(ctx context.Context) (*keys.Status, error) {
	st, err := r.client.Status(ctx)
	if err != nil {
		return nil, err
	}
	to := &keys.Status{Revision: st.Revision, Keys: st.Keys, Nodes: []keys.NodeStatus{}, Absent: st.Absent, Troubles: st.Troubles}
	for _, n := range st.Nodes {
		to.Nodes = append(to.Nodes, keys.NodeStatus{
			Node: fleet.Node{
				Name: n.Name, Version: n.Version, State: fleet.State(n.State), Addresses: n.Addresses, Region: n.Region, Weight: n.Weight,
				Started: n.Started, Applied: n.Applied, Fingerprint: n.Fingerprint,
				Older: (*fleet.Older)(n.Older),
			},
			Behind: n.Behind, AppliedKeys: n.AppliedKeys, RefusedKeys: n.RefusedKeys, DegradedKeys: n.DegradedKeys, HeldKeys: n.HeldKeys,
		})
	}
	return to, nil
}

func (r *remote) applied(ctx context.Context, rev int64, limit time.Duration) (int64, error) {
	for end := time.Now().Add(limit); ; {
		by, err := r.client.WaitApplied(ctx, rev, time.Until(end))
		if err == nil {
			return by.Revision, nil
		}
		// A node waits for a minute at most.
		if p := client.ProblemOf(err); p == nil || p.Code != wire.NotApplied || time.Until(end) < time.Second {
			return 0, err
		}
	}
}

func (r *remote) changes(ctx context.Context, after int64, prefix string) (*history.Log, error) {
	log := new(history.Log)
	for c, err := range r.client.History(ctx, after, prefix, &log.Gap) {
		if err != nil {
			return nil, err
		}
		log.Changes = append(log.Changes, history.Change{Rev: c.Revision, Time: c.Time, Key: c.Key, Before: c.Before, After: c.After, By: c.By, Omitted: c.Omitted})
	}
	return log, nil
}

func (r *remote) diff(ctx context.Context, from, to int64, prefix string) ([]keys.Change, []string, error) {
	d, err := r.client.Diff(ctx, from, to, prefix)
	if err != nil {
		return nil, nil, err
	}
	return d.Changes, d.Unknown, nil
}

func (r *remote) back(ctx context.Context, to int64, prefix string) (*backTo, error) {
	d, err := r.client.Rollback(ctx, wire.Rollback{To: to, Under: prefix, DryRun: true})
	if err != nil {
		return nil, err
	}
	b := &backTo{left: d.LeftOut, unknown: d.Unknown}
	for _, c := range d.Changes {
		w := keys.Wish{Key: c.Key, Delete: c.After == nil}
		if c.After != nil {
			w.Value = *c.After
		}
		b.wishes = append(b.wishes, w)
	}
	return b, nil
}

// wireSpec returns what a service is to be as it is sent.
func wireSpec(s envs.ServiceSpec) (wire.ServiceSpec, error) {
	to := wire.ServiceSpec{Port: s.Port, Span: s.Span, Backend: s.Backend, Username: s.Username, Secrets: s.Secrets}
	if len(s.InnerPorts) > 0 {
		to.Inner = s.InnerPorts.String()
	}
	if len(s.Mapping) > 0 {
		if err := json.Unmarshal(s.Mapping, &to.Mapping); err != nil {
			return to, usageError{fmt.Errorf("mapping: %w", err)}
		}
	}
	return to, nil
}

func (r *remote) createEnv(ctx context.Context, spec envs.Spec, wait time.Duration) (*wire.Environment, error) {
	to := wire.NewEnvironment{ID: spec.ID, Backend: spec.Backend, Services: map[string]wire.ServiceSpec{}}
	if !spec.ExpiresAt.IsZero() {
		to.ExpiresAt = &spec.ExpiresAt
	}
	for name, s := range spec.Services {
		var err error
		if to.Services[name], err = wireSpec(s); err != nil {
			return nil, envs.Within("services."+name, err)
		}
	}
	return r.client.CreateEnvironment(ctx, to, waiting(wait)...)
}

func (r *remote) patchEnv(ctx context.Context, id string, p envs.Patch, wait time.Duration) (*wire.Environment, error) {
	to := wire.EnvironmentPatch{Backend: p.Backend, ExpiresAt: p.ExpiresAt, Services: map[string]*wire.ServiceSpec{}}
	for name, s := range p.Services {
		to.Services[name] = nil
		if s != nil {
			spec, err := wireSpec(*s)
			if err != nil {
				return nil, envs.Within("services."+name, err)
			}
			to.Services[name] = &spec
		}
	}
	return r.client.PatchEnvironment(ctx, id, to, waiting(wait)...)
}

func (r *remote) env(ctx context.Context, id string) (*wire.Environment, error) {
	return r.client.Environment(ctx, id)
}

func (r *remote) envs(ctx context.Context, prefix string) ([]wire.Environment, error) {
	return client.Collect(r.client.Environments(ctx, prefix))
}

func (r *remote) removeEnv(ctx context.Context, id string, drain, wait time.Duration) (rev int64, err error) {
	options := waiting(wait)
	if drain >= 0 {
		options = append(options, client.Drain(drain))
	}
	return r.client.DeleteEnvironment(ctx, id, options...)
}

func (r *remote) access(ctx context.Context, id string, secrets bool) (map[string]wire.Access, error) {
	return r.client.Access(ctx, id, secrets)
}

func (r *remote) alloc(ctx context.Context, q portpool.Request) (*wire.Service, error) {
	return r.client.AllocatePort(ctx, wire.PortRequest{Env: q.Env, Service: q.Service, Port: q.Port, Span: q.Span})
}

func (r *remote) release(ctx context.Context, env, service string) (rev int64, err error) {
	return r.client.ReleasePort(ctx, env, service)
}

func (r *remote) ports(ctx context.Context, service string) ([]wire.Port, error) {
	return client.Collect(r.client.Ports(ctx, service))
}

func (r *remote) usage(ctx context.Context) ([]wire.PoolUsage, error) { return r.client.Usage(ctx) }

func (r *remote) reserve(ctx context.Context, q wire.Reservation) (rev int64, err error) {
	return r.client.Reserve(ctx, q)
}

func (r *remote) unreserve(ctx context.Context, protocol, ports string) (rev int64, err error) {
	return r.client.Unreserve(ctx, protocol, ports)
}

func (r *remote) audit(ctx context.Context) ([]wire.PortFinding, error) { return r.client.Audit(ctx) }

func (r *remote) nodes(ctx context.Context) ([]wire.NodeView, error) { return r.client.Nodes(ctx) }

func (r *remote) node(ctx context.Context, name string) (*wire.NodeView, error) {
	return r.client.Node(ctx, name)
}

func (r *remote) drain(ctx context.Context, name, reason string) error {
	_, err := r.client.DrainNode(ctx, name, wire.Drain{Reason: reason})
	return err
}

func (r *remote) undrain(ctx context.Context, name string) error {
	_, err := r.client.UndrainNode(ctx, name)
	return err
}

func (r *remote) tokens(ctx context.Context) ([]wire.Token, error) { return r.client.Tokens(ctx) }

func (r *remote) createToken(ctx context.Context, n wire.NewToken) (secret string, err error) {
	made, err := r.client.CreateToken(ctx, n)
	if err != nil {
		return "", err
	}
	return made.Secret, nil
}

func (r *remote) rotateToken(ctx context.Context, name string, grace time.Duration) (secret string, err error) {
	made, err := r.client.RotateToken(ctx, name, grace)
	if err != nil {
		return "", err
	}
	return made.Secret, nil
}

func (r *remote) removeToken(ctx context.Context, name string) error {
	_, err := r.client.DeleteToken(ctx, name)
	return err
}
