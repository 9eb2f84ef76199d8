package envs_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/router"
)

// rig is an etcd and the environments in it.
type rig struct {
	t        *testing.T
	endpoint string
	raw      *clientv3.Client
	clock    *clock
}

// clock is a time that tests set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newRig(t *testing.T) *rig {
	t.Helper()
	server, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Dir: t.TempDir(), ListenClient: "127.0.0.1:0", UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	r := &rig{t: t, endpoint: server.Endpoint(), clock: &clock{now: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}}
	if r.raw, err = clientv3.New(clientv3.Config{Endpoints: []string{r.endpoint}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.raw.Close() })
	r.put("pools/ssh", `{"ports":"20000-20003","backend_port":22,"access":{"host":"${env}.ssh.x-gpu.com","username":"root","command":"ssh -p ${port} ${username}@${host}"}}`)
	r.put("pools/jupyter", `{"ports":"30000-30003","backend_port":8888,"http":true,"access":{"host":"${env}.jupyter.x-gpu.com","url":"https://${host}:${port}/?token=${secret.token}"}}`)
	r.put("pools/rdp", `{"ports":"31000-31031","backend_port":3389,"protocol":"tcp+udp","mapping":{"idle_timeout":"10m"}}`)
	r.put("pools/web", `{"backend_port":8080,"route":{"host":"env-${env}.remotegpu.com","path":"/web","fields":{"strip_prefix":true}},"access":{"url":"https://env-${env}.remotegpu.com/web"}}`)
	return r
}

func (r *rig) put(key, value string) {
	r.t.Helper()
	if _, err := r.raw.Put(r.t.Context(), "/sluice/"+key, value); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) del(key string) {
	r.t.Helper()
	if _, err := r.raw.Delete(r.t.Context(), "/sluice/"+key); err != nil {
		r.t.Fatal(err)
	}
}

// keys returns what is below a folder.
func (r *rig) keys(folder string) map[string]string {
	r.t.Helper()
	resp, err := r.raw.Get(r.t.Context(), "/sluice/"+folder, clientv3.WithPrefix())
	if err != nil {
		r.t.Fatal(err)
	}
	all := map[string]string{}
	for _, kv := range resp.Kvs {
		all[string(kv.Key)[len("/sluice/"):]] = string(kv.Value)
	}
	return all
}

// node is one of several that change environments.
type node struct {
	*envs.Manager
	reg *envs.Registry
}

// node returns a Manager with a connection and a registry of its own, which
// follows etcd.
func (r *rig) node(change ...func(*envs.Config)) *node {
	r.t.Helper()
	client, err := etcd.Dial(etcd.Config{Endpoints: []string{r.endpoint}, Prefix: "/sluice"})
	if err != nil {
		r.t.Fatal(err)
	}
	n := &node{reg: envs.NewRegistry()}
	ctx, cancel := context.WithCancel(context.Background())
	var following sync.WaitGroup
	r.t.Cleanup(func() { cancel(); following.Wait(); client.Close() })
	following.Go(func() {
		aside := etcd.Aside{Folders: []string{"allocations/", "envs/"}, Handler: part{n.reg, []string{"allocations/", "envs/"}}}
		if err := client.WatchWith(ctx, part{n.reg, []string{"pools/", "ports/", "routes/"}}, aside); err != nil {
			r.t.Errorf("watch: %v", err)
		}
	})
	cfg := envs.Config{Store: client, Registry: n.reg, Sync: client.Sync, Ports: router.Ports{{First: 20000, Last: 32767}}, By: "test", Now: r.clock.Now}
	for _, c := range change {
		c(&cfg)
	}
	n.Manager = envs.New(cfg)
	return n
}

// part feeds a registry with some of its folders, as the watch of a node does.
type part struct {
	*envs.Registry
	folders []string
}

func (p part) Load(_ int64, kvs []etcd.KV) { p.LoadBelow(p.folders, kvs) }

func spec(id string, services ...string) envs.Spec {
	s := envs.Spec{ID: id, Backend: "10.0.3.17", Services: map[string]envs.ServiceSpec{}}
	for _, name := range services {
		s.Services[name] = envs.ServiceSpec{}
	}
	return s
}

// settle waits until a node knows keys as they are in etcd, deleted ones too.
func (r *rig) settle(n *node, keys ...string) {
	r.t.Helper()
	want := map[string]int64{}
	for _, key := range keys {
		resp, err := r.raw.Get(r.t.Context(), "/sluice/"+key)
		if err != nil {
			r.t.Fatal(err)
		}
		want[key] = 0
		for _, kv := range resp.Kvs {
			want[key] = kv.ModRevision
		}
	}
	err := n.reg.Await(r.t.Context(), func(rev func(string) int64) bool {
		for key, at := range want {
			if rev(key) != at {
				return false
			}
		}
		return true
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// findings returns what a node's audit finds, in words.
func (n *node) findings(t *testing.T) []string {
	t.Helper()
	found, err := n.Audit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list := []string{}
	for _, f := range found {
		list = append(list, fmt.Sprintf("%s %s: %s", f.Kind, f.Key, f.Text))
	}
	return list
}
