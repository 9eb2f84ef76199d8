package config_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/certs/dns"
	"github.com/remotegpu/sluice/cmd/sluice/config"
)

func env(pairs ...string) config.Env {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

func TestDefaultsOfAnEmptyFile(t *testing.T) {
	c, err := config.Parse("sluice.yaml", nil, env())
	if err != nil {
		t.Fatal(err)
	}
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if c.Node != hostname || c.Etcd.Prefix != "/sluice" || c.Admin != "127.0.0.1:9180" || c.DrainTimeout != 30*time.Second ||
		c.Data != "/var/lib/sluice" || c.PortsMode != "auto" || !strings.Contains(c.ACME.Issuers[0].Directory, "letsencrypt.org") {
		t.Errorf("defaults: %+v", c)
	}
	if linger := *c.Upgrade.Linger; linger != 12*time.Hour {
		t.Errorf("upgrade.linger is %v by default", linger)
	}
	c, err = config.Parse("sluice.yaml", []byte("upgrade: {linger: 0s}"), env())
	if err != nil || *c.Upgrade.Linger != 0 {
		t.Errorf("upgrade.linger: 0s is %+v, %v", c, err)
	}
}

func TestDevelopmentFileIsGood(t *testing.T) {
	c, err := config.Load("../../../deploy/dev.yaml", env())
	if err != nil {
		t.Fatal(err)
	}
	if c.Ports.String() != "20000-20999" || !c.LocalCA || c.Listeners.HTTPS[0].Address != ":8443" {
		t.Errorf("got %+v", c)
	}
}

func TestSecretsFromEnvironmentAndFiles(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := `
dns:
  ali:
    provider: alidns
    access_key_id: "${ALI_ID}"
    access_key_secret: ${ALI_SECRET}
`
	c, err := config.Parse("sluice.yaml", []byte(text), env("ALI_ID", "id: #1", "ALI_SECRET_FILE", secret))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.DNS["ali"]; string(got.Settings["access_key_id"]) != "id: #1" || string(got.Settings["access_key_secret"]) != "s3cret" {
		t.Errorf("got %q and a secret of %d characters", string(got.Settings["access_key_id"]), len(got.Settings["access_key_secret"]))
	}
}

func TestRefusals(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"typing error", "listners:\n  https: [':443']\n", `sluice.yaml:1: listners: unknown field; did you mean "listeners"?`},
		{"nested typing error", "node: a\nlisteners:\n  htps: [':443']\n", `sluice.yaml:3: listeners.htps: unknown field; did you mean "https"?`},
		{"address without port", "listeners:\n  https:\n    - ':443'\n    - '8443'\n", `sluice.yaml:4: listeners.https[1]: "8443" is not an address`},
		{"ports mode", "node: a\nports_mode: magic\n", `sluice.yaml:2: ports_mode: "magic" is not known; write auto, bind or steer`},
		{"port too high", "ports: ['70000-89999']\n", "sluice.yaml:1: ports: port 70000 does not exist; ports run from 1 to 65535"},
		{"listener inside the ports", "ports: ['8000-9000']\nlisteners:\n  https: [':8443']\n", "sluice.yaml:3: listeners.https[0]: port 8443 lies in ports (8000-9000)"},
		{"one address twice", "admin: ':8443'\nlisteners:\n  https: [':8443']\n", "sluice.yaml:3: listeners.https[0]: :8443 is already the address of admin"},
		{"one address within another", "listeners:\n  https: [':9180']\n", "sluice.yaml:2: listeners.https[0]: :9180 and 127.0.0.1:9180, the address of admin, cannot both be opened; choose another port"},
		{"etcd and all addresses", "node: a\nlisteners:\n  http: ['0.0.0.0:2379']\n", "sluice.yaml:3: listeners.http[0]: 0.0.0.0:2379 and 127.0.0.1:2379, the address of etcd.listen"},
		{"all of IPv4 and of IPv6", "listeners: {https: ['0.0.0.0:443'], http: ['[::]:443']}\n", "listeners.http[0]: [::]:443 and 0.0.0.0:443, the address of listeners.https[0]"},
		{"localhost", "admin: 'localhost:2379'\n", "etcd.listen: 127.0.0.1:2379 and localhost:2379, the address of admin"},
		{"the control API and peers", "node: a\napi: {listen: ':2380'}\netcd: {cluster: {peers: {a: 'http://127.0.0.1:2380'}}}\n", "sluice.yaml:2: api.listen: :2380 and 127.0.0.1:2380, the address of etcd.cluster.peers.a"},
		{"peers among the ports", "node: a\nports: ['2380-2390']\netcd: {cluster: {peers: {a: 'http://127.0.0.1:2380'}}}\n", "etcd.cluster.peers.a: port 2380 lies in ports"},
		{"listener without address", "listeners:\n  http:\n    - trusted_proxies: [10.0.0.0/8]\n", `sluice.yaml:3: listeners.http[0].address: is missing`},
		{"HTTP/3 in clear text", "listeners:\n  http:\n    - {address: ':80', http3: false}\n", "listeners.http[0].http3: is for https listeners"},
		{"HTTP/3 at no port", "listeners:\n  https:\n    - {address: ':443', http3_port: 70000}\n", "listeners.https[0].http3_port: 70000 is not a port"},
		{"a port of no HTTP/3", "listeners:\n  https:\n    - {address: ':443', http3: false, http3_port: 443}\n", "listeners.https[0].http3_port: there is no HTTP/3"},
		{"listener with a typing error", "listeners:\n  http:\n    - adress: ':80'\n", `listeners.http[0].adress: unknown field; did you mean "address"?`},
		{"wrong type", "local_ca: maybe\n", `sluice.yaml:1: local_ca: must be true or false, not a string`},
		{"small heads", "clients: {head_size: 1KiB}\n", "sluice.yaml:1: clients.head_size: must be from 8KiB to 1MiB"},
		{"hasty heads", "clients: {head_timeout: 1ms}\n", "clients.head_timeout: must be from 1s to 10m, not 1ms"},
		{"endless idleness", "clients: {idle_timeout: 48h}\n", "clients.idle_timeout: must be from 1s to 24h, not 48h"},
		{"many streams", "clients: {streams: 5000}\n", "clients.streams: must be from 1 to 1000, not 5000"},
		{"bad duration", "drain_timeout: 30\n", "sluice.yaml:1: drain_timeout: must be a string"},
		{"guard of nothing", "node: a\nshrink_guard: {percent: 0}\n", "sluice.yaml:2: shrink_guard.percent: must be from 1 to 100"},
		{"guard of any", "node: a\nshrink_guard:\n  least: 0\n", "sluice.yaml:3: shrink_guard.least: must be 1 or more"},
		{"guard within no time", "node: a\nshrink_guard: {window: 0s}\n", "sluice.yaml:2: shrink_guard.window: must be more than 0"},
		{"an address of nobody", "node: a\nfleet: {addresses: [203.0.113.7, 127.0.0.1]}\n", "sluice.yaml:2: fleet.addresses[1]: clients cannot reach the node at 127.0.0.1"},
		{"no address", "node: a\nfleet: {addresses: [hk1]}\n", "sluice.yaml:2: fleet.addresses[0]:"},
		{"weight", "node: a\nfleet: {weight: 1001}\n", "sluice.yaml:2: fleet.weight: must be from 1 to 1000"},
		{"reflector", "node: a\nfleet: {reflectors: ['dns://ns1.example.com/whoami.example.com', 'ftp://example.com/ip']}\n", "sluice.yaml:2: fleet.reflectors[1]:"},
		{"reflectors beside addresses", "node: a\nfleet: {addresses: [203.0.113.7], reflectors: ['https://ip.example.com/']}\n", "sluice.yaml:2: fleet.reflectors: find addresses"},
		{"drain wait", "node: a\nfleet: {drain_wait: 48h}\n", "sluice.yaml:2: fleet.drain_wait: must be from 0s to 24h, not 48h"},
		{"no history", "node: a\nhistory: {keep: 0s}\n", "sluice.yaml:2: history.keep: must be a minute or more"},
		{"no room for history", "node: a\nhistory: {size: 0}\n", "sluice.yaml:2: history.size: must be from 1MB"},
		{"field twice", "node: a\nadmin: ':1'\nnode: b\n", "sluice.yaml:3: node: occurs twice, first on line 1"},
		{"unset variable", "etcd:\n  username: root\n  password: ${NOPE}\n", "sluice.yaml:3: etcd.password: the environment variable NOPE is not set (nor is NOPE_FILE)"},
		{"password alone", "etcd:\n  password: x\n", "sluice.yaml:1: etcd: username and password belong together"},
		{"not YAML", "node: [\n", "sluice.yaml: not valid YAML: line "},
		{"a list", "- a\n", "sluice.yaml: must be an object"},
		{"two documents", "node: a\n---\nnode: b\n", "more than one YAML document"},
		{"alias", "node: &x a\ndata: *x\n", "sluice.yaml:2: data: YAML aliases are not supported"},
		{"endpoint", "etcd:\n  endpoints: ['10.0.0.1:2379']\n", "sluice.yaml:2: etcd.endpoints[0]: \"10.0.0.1:2379\" is not a URL"},
		{"TLS without TLS", "etcd: {endpoints: [\"http://10.0.0.1:2379\"], tls: {ca: x}}\n", "sluice.yaml:1: etcd.endpoints[0]:"},
		{"a password for all to read", "etcd: {endpoints: [\"https://10.0.0.1:2379\", \"http://10.0.0.2:2379\"], username: a, password: b}\n", "sluice.yaml:1: etcd.endpoints[1]:"},
		{"prefix", "etcd: {prefix: sluice}\n", "sluice.yaml:1: etcd.prefix:"},
		{"provider", "dns:\n  main:\n    provider: cloudflair\n", "sluice.yaml:2: dns.main:"},
		{"missing credential", "dns:\n  main:\n    provider: cloudflare\n", "api_token is missing"},
		{"directory", "acme: {directory: 'http://x'}\n", "sluice.yaml:1: acme.directory:"},
		{"propagation", "acme: {propagation: some}\n", `sluice.yaml:1: acme.propagation: "some" is not known; write all, majority or delay`},
		{"propagation delay", "acme: {propagation_delay: -1s}\n", "sluice.yaml:1: acme.propagation_delay: must be positive, not -1s"},
		{"directory of issuer", "acme:\n  issuers:\n  - {directory: 'http://x'}\n", "sluice.yaml:3: acme.issuers[0].directory:"},
		{"directory beside issuers", "acme:\n  directory: https://x/dir\n  issuers:\n  - {}\n", "sluice.yaml:2: acme.directory: is for a single issuer"},
		{"two issuers alike", "acme:\n  issuers:\n  - {}\n  - {name: other}\n", "sluice.yaml:4: acme.issuers[1]: has the directory"},
		{"name of issuer", "acme:\n  issuers:\n  - {name: imported}\n", "sluice.yaml:3: acme.issuers[0].name:"},
		{"half a binding", "acme:\n  issuers:\n  - {eab: {key_id: x}}\n", "acme.issuers[0].eab: key_id and hmac_key belong together"},
		{"budget", "acme:\n  issuers:\n  - {orders: {count: 5}}\n", "acme.issuers[0].orders.window: must be from 1s to a year"},
		{"fall back", "acme: {fall_back_after: 0.5}\n", "acme.fall_back_after"},
		{"level", "log:\n  level: loud\n", `sluice.yaml:2: log.level: "loud" is not known`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := config.Parse("sluice.yaml", []byte(tc.text), env())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v\nwant an error with %q", err, tc.want)
			}
		})
	}
}

// TestListeners reads both ways to write a listener: the longer one tells a
// list of trusted proxies that is empty from none.
func TestListeners(t *testing.T) {
	const text = "listeners:\n  https:\n  - ':443'\n  - {address: ':8443', trusted_proxies: [10.0.0.0/8]}\n  - {address: ':9443', trusted_proxies: []}\n"
	c, err := config.Parse("sluice.yaml", []byte(text), env())
	if err != nil {
		t.Fatal(err)
	}
	want := []config.Listener{
		{Address: ":443"},
		{Address: ":8443", TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
		{Address: ":9443", TrustedProxies: []netip.Prefix{}},
	}
	if !reflect.DeepEqual(c.Listeners.HTTPS, want) {
		t.Errorf("got %#v\nwant %#v", c.Listeners.HTTPS, want)
	}
}

// TestIssuers reads the short form of a single issuer and the list of several.
func TestIssuers(t *testing.T) {
	c, err := config.Parse("sluice.yaml", []byte("acme: {email: ops@example.com}\n"), env())
	if err != nil {
		t.Fatal(err)
	}
	i := c.ACME.Issuers[0]
	if len(c.ACME.Issuers) != 1 || i.Name != "letsencrypt" || i.Email != "ops@example.com" || !strings.Contains(i.Staging, "staging") ||
		*i.Orders != (config.Budget{Count: 300, Window: 3 * time.Hour}) || c.ACME.FallBackAfter != 3 {
		t.Errorf("by default: %+v", c.ACME)
	}
	const text = `acme:
  email: ops@example.com
  fall_back_after: 1
  issuers:
  - {profile: shortlived, preferred_chains: [ISRG Root X1]}
  - {directory: 'https://acme.example.com/dir', email: x@example.com, eab: {key_id: kid, hmac_key: '${MAC}'}, orders: {count: 0}, duplicates: {count: 9, window: 24h}}
`
	if c, err = config.Parse("sluice.yaml", []byte(text), env("MAC", "c2VjcmV0")); err != nil {
		t.Fatal(err)
	}
	first, second := c.ACME.Issuers[0], c.ACME.Issuers[1]
	if first.Name != "letsencrypt" || first.Email != "ops@example.com" || first.Profile != "shortlived" {
		t.Errorf("the first: %+v", first)
	}
	if second.Name != "acme.example.com" || second.Email != "x@example.com" || string(second.EAB.HMACKey) != "c2VjcmV0" ||
		second.Orders.Count != 0 || second.Duplicates.Count != 9 || second.Staging != "" {
		t.Errorf("the second: %+v", second)
	}
	if shown := fmt.Sprintf("%+v", *second.EAB); strings.Contains(shown, "c2VjcmV0") {
		t.Errorf("the key is shown: %s", shown)
	}
}

// TestNoLoginInURLs wants a user and a password in URLs refused where they are
// written, in words that do not repeat them: every such URL gets into logs.
func TestNoLoginInURLs(t *testing.T) {
	for text, want := range map[string]string{
		"etcd: {endpoints: ['http://root:hunter2@127.0.0.1:1']}\n":                                    "sluice.yaml:1: etcd.endpoints[0]: has a user or a password in it, which would be in logs; give them as etcd.username and etcd.password",
		"etcd: {endpoints: ['root:hunter2@127.0.0.1:1']}\n":                                           "etcd.endpoints[0]: has a user",
		"etcd: {endpoints: ['https://root:hunter2/1@10.0.0.1:1']}\n":                                  "etcd.endpoints[0]: has a user",
		"acme: {directory: 'https://u:hunter2@acme.example.com/dir'}\n":                               "acme.directory: has a user",
		"acme: {issuers: [{directory: 'https://x.example.com', staging: 'https://hunter2@x/dir'}]}\n": "acme.issuers[0].staging: has a user",
		"fleet: {reflectors: ['https://u:hunter2@ip.example.com/']}\n":                                "fleet.reflectors[0]: has a user",
	} {
		_, err := config.Parse("sluice.yaml", []byte(text), env())
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%sgot %v, want %q", text, err, want)
		}
	}
	const fine = "acme: {directory: 'https://ca.example.com/acme/ops@example.com/directory'}\n"
	if _, err := config.Parse("sluice.yaml", []byte(fine), env()); err != nil {
		t.Errorf("an @ in a path: %v", err)
	}
}

func TestNoSecretInErrors(t *testing.T) {
	_, err := config.Parse("sluice.yaml", []byte("dns:\n  main: {provider: cloudflare, api_token: ${T}, key: ${T}}\n"), env("T", "hunter2"))
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v, want an error without the secret", err)
	}
}

// TestEveryFieldIsDocumented walks Config and wants each field in the
// reference, so that an option cannot be added without its description.
func TestEveryFieldIsDocumented(t *testing.T) {
	reference, err := os.ReadFile("../../../CONFIGURATION.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range fields(reflect.TypeFor[config.Config](), "") {
		if !strings.Contains(string(reference), "`"+field+"`") {
			t.Errorf("CONFIGURATION.md does not describe `%s`", field)
		}
	}
}

func fields(t reflect.Type, path string) []string {
	var all []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		at := strings.TrimPrefix(path+"."+name, ".")
		ft := t.Field(i).Type
		switch {
		case ft == reflect.TypeFor[dns.Settings]():
			for _, settings := range dns.Kinds() {
				for _, setting := range settings {
					all = append(all, path+"."+setting)
				}
			}
		case ft.Kind() == reflect.Slice && ft.Elem() == reflect.TypeFor[config.Listener]():
			all = append(all, at)
			all = append(all, fields(ft.Elem(), at+"[]")...)
		case ft.Kind() == reflect.Map && ft.Elem().Kind() == reflect.Struct:
			all = append(all, fields(ft.Elem(), at+".<name>")...)
		case ft.Kind() == reflect.Struct && strings.HasPrefix(ft.PkgPath(), "github.com/remotegpu"):
			all = append(all, fields(ft, at)...)
		default:
			all = append(all, at)
		}
	}
	return all
}

// TestPages reads error pages, and refuses those that cannot be used.
func TestPages(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("404.html", "no ${uri}")
	write(".hidden", "${nothing}")
	load := func(more string) (*config.Config, error) {
		return config.Parse("sluice.yaml", []byte("pages: "+dir+"\n"+more), func(string) (string, bool) { return "", false })
	}
	c, err := load("http: {error_pages: {\"404\": {file: 404.html}}}\n")
	if err != nil {
		t.Fatal(err)
	}
	if pages, err := c.ErrorPages(); err != nil || len(pages) != 1 || pages["404.html"].String() != "no ${uri}" {
		t.Errorf("%v, %v", pages, err)
	}
	if _, err := load("http: {error_pages: {5xx: {file: 5xx.html}}}\n"); err == nil || !strings.Contains(err.Error(), `http.error_pages.5xx.file: "5xx.html" is not among the files in pages`) {
		t.Errorf("a page that is not there: %v", err)
	}
	write("500.html", "${nothing}")
	if _, err := load(""); err == nil || !strings.Contains(err.Error(), "pages: 500.html: ${nothing} is neither") {
		t.Errorf("a page with a name that nobody knows: %v", err)
	}
}
