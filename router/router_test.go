package router_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/router"
)

func mustRoute(t testing.TB, name, value string) *router.Route {
	t.Helper()
	r, err := router.ParseRoute(name, []byte(value))
	if err != nil {
		t.Fatalf("ParseRoute(%s, %s): %v", name, value, err)
	}
	return r
}

func mustMapping(t testing.TB, port int, value string) *router.Mapping {
	t.Helper()
	m, err := router.ParseMapping(router.TCP, port, []byte(value))
	if err != nil {
		t.Fatalf("ParseMapping(%d, %s): %v", port, value, err)
	}
	return m
}

// TestShortMappings wants the short form to be read as the long one, errors
// included.
func TestShortMappings(t *testing.T) {
	for _, address := range []string{
		"127.0.0.1:22", "web-3:8080", "[2001:db8::1]:22", " 10.0.0.7:22 ", "WEB.example.com:1", "a.b.c:65535",
		"", "10.0.0.7", ":22", "10.0.0.7:0", "10.0.0.7:70000", "10.0.0.7:022", "${id}:22", "web:${port}", "a b:22", "[::1:22",
		"http://web:80", "https://web:443", "https://web", "//web:80", "a//b:80", "web:80/path", "{", "[]", "web:80,web:81",
	} {
		short, shortErr := router.ParseMapping(router.TCP, 20000, []byte(address))
		text, err := json.Marshal(map[string]string{"backend": strings.TrimSpace(address)})
		if err != nil {
			t.Fatal(err)
		}
		if text = bytes.TrimSpace(text); address == "" || address == "{" {
			text = []byte(address)
		}
		long, longErr := router.ParseMapping(router.TCP, 20000, text)
		if fmt.Sprint(shortErr) != fmt.Sprint(longErr) || shortErr == nil && !reflect.DeepEqual(short, long) {
			t.Errorf("%q\nshort: %+v, %v\nlong:  %+v, %v", address, short, shortErr, long, longErr)
		}
	}
}

func TestParseMappingFull(t *testing.T) {
	m := mustMapping(t, 56376, `{"backend": "10.0.3.17:22", "http": "10.0.3.17:8888",
 "env": "6hiflzwte2xnkroq", "service": "ssh",
 "proxy_protocol": {"accept": true, "send": "v2"},
 "connect_timeout": "10s", "idle_timeout": "10m", "expires_at": "2026-12-31T00:00:00Z", "on_delete": "cut",
 "limits": {"connections": 100, "per_client": 20, "new_per_second": 50, "bytes_per_second": {"up": "10MB", "down": "50MB"}},
 "allow": ["0.0.0.0/0"], "deny": []}`)
	if m.Limits.BytesPerSecond.Up != 10e6 || m.Limits.PerClient != 20 || m.IdleTimeout != 10*time.Minute {
		t.Errorf("limits or timeouts were lost: %+v", m)
	}
	if got := m.Backend.Targets[0].Address.String(); got != "10.0.3.17:22" {
		t.Errorf("backend = %s, want 10.0.3.17:22", got)
	}
	if m.ExpiresAt.Year() != 2026 || m.Key() != "ports/tcp/56376" || m.Label() != "tcp/56376" {
		t.Errorf("got %v, %s, %s", m.ExpiresAt, m.Key(), m.Label())
	}
}

func TestParseMappingRefuses(t *testing.T) {
	for _, tc := range []struct{ value, want string }{
		{``, "empty"},
		{`10.0.0.1`, "host:port"},
		{`["10.0.0.1:22", "10.0.0.2:22"]`, `write {"backend": ["10.0.0.1:22", "10.0.0.2:22"]}`},
		{`10.0.0.1:0`, "port 0 does not exist"},
		{`10.0.0.1:70000`, "port 70000 does not exist"},
		{`256.1.1.1:22`, "neither an IP address nor a host name"},
		{`web 1:22`, "neither an IP address nor a host name"},
		{`2001:db8::1:22`, "[2001:db8::1]:22"},
		{`{}`, "backend: is missing"},
		{`{"backend":"a:1"`, "ends too early"},
		{`{"backend":"a:1"} x`, "more text follows"},
		{`{"backnd":"a:1"}`, `backnd: unknown field; did you mean "backend"?`},
		{`{"Backend":"a:1"}`, `Backend: unknown field; did you mean "backend"?`},
		{`{"backend":"a:1","backend":"a:2"}`, "backend: occurs twice"},
		{`{"backend":"a:1","limits":{"per_cleint":1}}`, `limits.per_cleint: unknown field; did you mean "per_client"?`},
		{`{"backend":"a:1","limits":{"bytes_per_second":{"up":"10 parsecs"}}}`, "limits.bytes_per_second.up:"},
		{`{"backend":"a:1","idle_timeout":"10"}`, `idle_timeout: "10" is not a duration`},
		{`{"backend":"a:1","idle_timeout":10}`, "idle_timeout: must be a string, not a number"},
		{`{"backend":"a:1","allow":["10.0.0.0/33"]}`, "allow[0]:"},
		{`{"backend":"a:1","on_delete":"drop"}`, "on_delete:"},
		{`{"backend":["a:1","b"]}`, "backend.targets[1].address:"},
		{`{"backend":"${host}:22"}`, "holds a variable"},
		{`{"backend":{"targets":["a:1"],"balance":"best"}}`, "backend.balance:"},
		{`{"backend":"a:1","proxy_protocol":{"send":"v3"}}`, "proxy_protocol.send:"},
		{`{"backend":"a:1","limits":{"connections":-1}}`, "limits.connections:"},
		{`{"backend":"https://a"}`, "backend.tls:"},
		{`'10.0.0.1:22'`, "stands in quotes; drop them"},
		{`"10.0.0.1:22`, "stands in quotes; drop them"},
		{`"{\"backend\":\"a:1\"}"`, "stands in quotes; drop them"},
		{`""`, "empty"},
		{`{"backend":5}`, `backend: must be "host:port", a list of those in [ ], or an object in { }, not a number`},
		{`{"backend":[5]}`, `backend.targets[0]: must be "host:port" or an object in { }, not a number`},
		{`{"http":{"targets":["a:1"],"tls":1}}`, "http.tls: must be true or an object in { }, not a number"},
		{`{"backend":{"targets":[{"address":"a:1","weight":0}]}}`, "backend.targets[0].weight: must be from 1 to 1000, not 0; to drain a target leave it out"},
		{`{"backend":[{"address":"a:1","weight":1001}]}`, "backend.targets[0].weight: must be from 1 to 1000, not 1001"},
		{`{"backend":[{"address":"a:1","weight":99999999999999999999}]}`, "must be from 1 to 1000, not 99999999999999999999"},
		{`{"backend":[{"address":"a:1","weight":1.5}]}`, "weight: must be a whole number, not 1.5"},
		{`{"backend":"a:1","limits":{"connections":9223372036854775808}}`, "limits.connections: 9223372036854775808 is too large; the maximum is 9223372036854775807"},
		{`{"backend":"a:1","limits":{"bytes_per_second":{"up":"99999999999GB"}}}`, "limits.bytes_per_second.up: 99999999999GB is too large; the maximum is 4611686018427387904 bytes"},
		{`{"backend":"a:1","limits":{"bytes_per_second":{"up":99999999999999999999}}}`, "is too large; the maximum is 4611686018427387904 bytes"},
		{`{"backend":"a:1","limits":{"bytes_per_second":{"up":-1}}}`, "limits.bytes_per_second.up: must be positive, not -1"},
		{`{"backend":"a:1","limits":{"bytes_per_second":{"up":true}}}`, "must be a number or a string, not true or false"},
		{`{"backend":"a:1","idle_timeout":"9999999h"}`, "idle_timeout: 9999999h is too large; the maximum is 2562047h"},
		{`{"backend":"a:1","idle_timeout":"-1h30m"}`, "idle_timeout: must be positive, not -1h30m"},
		{`{"backend":"a:1","idle_timeout":"7d"}`, `idle_timeout: "7d": days are not a unit; write "168h"`},
		{`{"backend":"a:1","idle_timeout":"1d12h30m"}`, `days are not a unit; write "36h30m"`},
		{`{"backend":"a:1","idle_timeout":"2w"}`, `weeks are not a unit; write "336h"`},
		{`{"backend":"a:1","idle_timeout":"1d2d"}`, `days are not a unit; write hours, such as "168h"`},
		{`{"backend":"a:1","on_delete":"drain 1d"}`, `on_delete: "1d": days are not a unit; write "24h"`},
		{`{"backend":"${id}:22"}`, `"${id}:22" holds a variable; a mapping has no captures, use a route`},
		{`{"backend":"a:1","allow":["10.0.0.1/8"]}`, `allow[0]: "10.0.0.1/8" has bits beyond its length; write 10.0.0.0/8 for the network, or 10.0.0.1 for the one address`},
		{`{"backend":"a:1","deny":["2001:db8::1/32"]}`, "write 2001:db8::/32 for the network"},
		{`224.0.0.1:22`, `backend.targets[0].address: "224.0.0.1:22" is no address of one machine`},
		{`[ff02::1]:22`, "is no address of one machine"},
		{`255.255.255.255:22`, "is no address of one machine"},
		{`0.0.0.0:22`, "write 127.0.0.1"},
		{`[::]:22`, "write 127.0.0.1"},
		{`{"backend":"a:1","env":"a\u001b[2J"}`, "env: holds the character U+001B, which cannot be printed"},
		{`{"backend":"a:1","service":"a\tb"}`, "service: holds the character U+0009"},
		{`{"backend":"a:1","env":"\u202egnp"}`, "env: holds the character U+202E"},
		{`{"backend":"a:1","env":"` + strings.Repeat("x", 129) + `"}`, "env: is 129 bytes long; at most 128"},
		{"\xff\xfe", "not an address"},
	} {
		_, err := router.ParseMapping(router.TCP, 20022, []byte(tc.value))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("ParseMapping(%s): error %v, want one with %q", tc.value, err, tc.want)
		}
	}
}

// TestQuotedShortForm wants what programs write to be read as what people do.
func TestQuotedShortForm(t *testing.T) {
	for _, value := range []string{`"10.0.0.7:22"`, ` "10.0.0.7:22" `, `" 10.0.0.7:22"`} {
		if quoted, bare := mustMapping(t, 20000, value), mustMapping(t, 20000, "10.0.0.7:22"); !reflect.DeepEqual(quoted, bare) {
			t.Errorf("%s is read as %+v, want %+v", value, quoted, bare)
		}
	}
}

// TestRefusalsStayShort wants no verdict to be as long as the value it is of.
func TestRefusalsStayShort(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for _, value := range []string{
		long, long + ":22", `"` + long, `["` + long, `{"` + long + `":1}`, `{"backend":"` + long + `"}`, `{"backend":"a:1","idle_timeout":"` + long + `"}`,
		`{"backend":"a:1","on_delete":"` + long + `"}`, `{"backend":"a:1","env":"` + long + `"}`, `{"backend":[{"address":"a:1","weight":` + strings.Repeat("9", 1<<20) + `}]}`,
	} {
		_, err := router.ParseMapping(router.TCP, 20000, []byte(value))
		if err == nil || len(err.Error()) > 2000 {
			t.Errorf("%.40s: %.100v, of %d bytes", value, err, len(fmt.Sprint(err)))
		}
	}
}

func TestParseRouteRefuses(t *testing.T) {
	for _, tc := range []struct{ value, want string }{
		{`{"backend":"a:1"}`, "host: is missing"},
		{`{"host":"a.b"}`, "backend: is missing"},
		{`{"host":"a.b","respond":{"status":0}}`, "respond.status: must be from 200 to 599, not 0"},
		{`{"host":"a.b","redirect":7}`, "redirect: must be the URL or an object in { }, not a number"},
		{`{"host":"a.b","respond":{},"env":"a\nb"}`, "env: holds the character U+000A"},
		{`{"host":"a.b","respond":{},"service":"` + strings.Repeat("x", 200) + `"}`, "service: is 200 bytes long"},
		{`{"host":"a.b","backend":"224.0.0.1:80"}`, "is no address of one machine"},
		{`{"host":"a.b","backend":"a:1","redirect":"https://x"}`, "exclude each other"},
		{`{"host":"a.b:443","backend":"a:1"}`, "host[0]:"},
		{`{"host":"a.b","backend":{"targets":["a:1"],"tls":{"server_name":"a b"}}}`, `backend.tls.server_name: "a b" is not a host name`},
		{`{"host":"~(","backend":"a:1"}`, `"~(" is not a regular expression`},
		{`{"host":"~^(?<host>.*)$","backend":"a:1"}`, "built-in"},
		{`{"host":"~^(?<id>.*)$","backend":"${env}:1"}`, "${env} is neither"},
		{`{"host":["~^(?<id>.*)$","x.y"],"backend":"${id}:1"}`, "${id} is neither"},
		{`{"host":"a.b","backend":"a:1","tls":"pass"}`, "tls:"},
		{`{"host":"a.b","backend":"a:1","tls":"passthrough","path":"/x"}`, "path: has no meaning"},
		{`{"host":"a.b","backend":"a:1","path":"x"}`, "path:"},
		{`{"host":"a.b","backend":"a:1","path":"/x/../y"}`, "path:"},
		{`{"host":"a.b","respond":{"status":99}}`, "respond.status:"},
		{`{"host":"a.b","backend":"a:1","request_headers":{"set":{"X Y":"1"}}}`, "not a header name"},
		{`{"host":"a.b","backend":"a:1","request_headers":{"set":{"Content-Length":"1"}}}`, "frames messages"},
		{`{"host":"a.b","backend":"a:1","request_headers":{"set":{"X":"a\r\nB: c"}}}`, "line break"},
		{`{"host":"a.b","backend":"a:1","limits":{"rats":1}}`, "limits.rats: unknown field; did you mean \"rate\"?"},
		{`{"host":"a.b","backend":"https://a/path"}`, "no path"},
		{`{"host":"a.b","backend":["https://a","http://b"]}`, "some targets are https://"},
		{`{"host":"a.b","backend":"ftp://a"}`, "scheme"},
		{`{"host":"a.b","ports":"70000","backend":"a:1"}`, "ports: port 70000"},
		{`{"host":"a.b","ports":"5-1","backend":"a:1"}`, "runs backwards"},
	} {
		_, err := router.ParseRoute("r", []byte(tc.value))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("ParseRoute(%s): error %v, want one with %q", tc.value, err, tc.want)
		}
	}
}

func TestMatchOrder(t *testing.T) {
	var b router.Builder
	for name, value := range map[string]string{
		"exact":       `{"host":"a.x-gpu.com","backend":"exact:1"}`,
		"exact-api":   `{"host":"a.x-gpu.com","path":"/api","backend":"exact-api:1"}`,
		"exact-post":  `{"host":"a.x-gpu.com","path":"/api","methods":["POST"],"backend":"exact-post:1"}`,
		"exact-head":  `{"host":"a.x-gpu.com","path":"/api","methods":["POST"],"headers":{"x-canary":"1"},"backend":"exact-head:1"}`,
		"wild":        `{"host":"*.x-gpu.com","backend":"wild:1"}`,
		"wild-long":   `{"host":"*.ssh.x-gpu.com","backend":"wild-long:1"}`,
		"only-path":   `{"host":"b.x-gpu.com","path":"/only","backend":"only:1"}`,
		"site":        `{"host":"~^env-(?<id>[a-z0-9-]+)\\.remotegpu\\.com$","respond":{"body":"Environment: ${id}\n"}}`,
		"jupyter":     `{"host":"~^env-(?<id>[a-z0-9-]+)\\.remotegpu\\.com$","path":"/jupyter","backend":"env-${id}:8888"}`,
		"zzz-regex":   `{"host":"~remotegpu","backend":"late:1"}`,
		"first-regex": `{"host":"~^env-vip","priority":5,"backend":"vip:1"}`,
		"port":        `{"host":"p.x-gpu.com","ports":"8080,9000-9001","backend":"port:1"}`,
		"pass":        `{"host":"*.tls.x-gpu.com","tls":"passthrough","backend":"pass:1"}`,
		"pass-http":   `{"host":"in.tls.x-gpu.com","backend":"inner:1"}`,
		"any":         `{"host":"*","path":"/any","respond":{}}`,
	} {
		b.SetRoute(mustRoute(t, name, value))
	}
	table := b.Table(7)
	for _, tc := range []struct {
		method, host, path string
		port               int
		clear              bool
		want               string
	}{
		{"GET", "a.x-gpu.com", "/", 443, false, "exact"},
		{"GET", "a.x-gpu.com", "/api/v1", 443, false, "exact-api"},
		{"GET", "a.x-gpu.com", "/apix", 443, false, "exact"},
		{"GET", "a.x-gpu.com", "/z/../api", 443, false, "exact-api"},
		{"POST", "a.x-gpu.com", "/api", 443, false, "exact-post"},
		{"HEADED", "a.x-gpu.com", "/api", 443, false, "exact-head"},
		{"GET", "c.x-gpu.com", "/", 443, false, "wild"},
		{"GET", "c.d.x-gpu.com", "/", 443, false, "wild"},
		{"GET", "c.ssh.x-gpu.com", "/", 443, false, "wild-long"},
		{"GET", "x-gpu.com", "/", 443, false, ""},
		{"GET", "b.x-gpu.com", "/only", 443, false, "only-path"},
		{"GET", "b.x-gpu.com", "/else", 443, false, "wild"},
		{"GET", "env-abc.remotegpu.com", "/jupyter/tree", 443, false, "jupyter"},
		{"GET", "env-abc.remotegpu.com", "/", 443, false, "site"},
		{"GET", "env-vip.remotegpu.com", "/jupyter", 443, false, "first-regex"},
		{"GET", "remotegpu.com", "/", 443, false, "zzz-regex"},
		{"GET", "p.x-gpu.com", "/", 9001, false, "port"},
		{"GET", "p.x-gpu.com", "/", 8080, true, "port"},
		{"GET", "p.x-gpu.com", "/", 443, false, "wild"},
		{"GET", "a.x-gpu.com", "/", 80, true, ""},
		{"GET", "elsewhere.example.com", "/any/thing", 443, false, "any"},
		{"GET", "elsewhere.example.com", "/", 443, false, ""},
	} {
		header := http.Header{}
		if tc.method == "HEADED" {
			tc.method = "POST"
			header.Set("X-Canary", "1")
		}
		r, _ := table.Match(&router.Request{Host: tc.host, Port: tc.port, Clear: tc.clear, Method: tc.method, Path: tc.path, Header: header})
		got := ""
		if r != nil {
			got = r.Name
		}
		if got != tc.want {
			t.Errorf("%s %s:%d%s matched %q, want %q", tc.method, tc.host, tc.port, tc.path, got, tc.want)
		}
	}

	for name, want := range map[string]string{"q.tls.x-gpu.com": "pass", "in.tls.x-gpu.com": "", "a.x-gpu.com": "", "": ""} {
		r, _ := table.MatchTLS(name, 443)
		if got := routeName(r); got != want {
			t.Errorf("MatchTLS(%q) = %q, want %q", name, got, want)
		}
	}
}

func routeName(r *router.Route) string {
	if r == nil {
		return ""
	}
	return r.Name
}

func TestCapturesChooseTheBackend(t *testing.T) {
	var b router.Builder
	b.SetRoute(mustRoute(t, "jupyter", `{"host":"~^(?<inner>[^-]+)--env-(?P<id>[^.]+)\\.remotegpu\\.com$","backend":"env-${id}:${inner}"}`))
	table := b.Table(1)
	for _, tc := range []struct{ host, want, fail string }{
		{"8888--env-abc.remotegpu.com", "env-abc:8888", ""},
		{"99999--env-abc.remotegpu.com", "", "does not exist"},
		{"x--env-abc.remotegpu.com", "", "not a port"},
		{"80--env-localhost.remotegpu.com", "env-localhost:80", ""},
		{"80--env-a@b.remotegpu.com", "", "not a plain DNS label"},
		{"80--env-a/b.remotegpu.com", "", "not a plain DNS label"},
	} {
		r, captures := table.Match(&router.Request{Host: tc.host, Port: 443, Path: "/"})
		if r == nil {
			t.Fatalf("%s matched nothing", tc.host)
		}
		host, port, err := r.Backend.Targets[0].Address.Expand(&router.Vars{Captures: captures})
		if tc.fail != "" {
			if err == nil || !strings.Contains(err.Error(), tc.fail) {
				t.Errorf("%s: error %v, want one with %q", tc.host, err, tc.fail)
			}
			continue
		}
		if got := fmt.Sprintf("%s:%d", host, port); err != nil || got != tc.want {
			t.Errorf("%s: backend %s, %v, want %s", tc.host, got, err, tc.want)
		}
	}
}

// TestBuilderAgainstModel makes random edits and compares every table with a
// plain map, and earlier tables with what they were.
func TestBuilderAgainstModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	var b router.Builder
	model := map[int]*router.Mapping{}
	type past struct {
		table *router.Table
		model map[int]*router.Mapping
	}
	var history []past
	prev := b.Table(0)
	for rev := range int64(300) {
		for range 1 + rng.IntN(5) {
			port := 1 + rng.IntN(1500)
			if rng.IntN(20) == 0 {
				port = router.MaxPort
			}
			if rng.IntN(3) == 0 {
				b.DeleteMapping(router.TCP, port)
				delete(model, port)
				continue
			}
			m := &router.Mapping{Proto: router.TCP, Port: port, Rev: rev}
			b.SetMapping(m)
			model[port] = m
		}
		table := b.Table(rev)
		applied := map[int]*router.Mapping{}
		prev.EachMapping(func(m *router.Mapping) { applied[m.Port] = m })
		table.DiffMappings(prev, func(was, is *router.Mapping) {
			if is == nil {
				delete(applied, was.Port)
				return
			}
			if applied[is.Port] != was {
				t.Fatalf("diff says port %d was %v, it was %v", is.Port, was, applied[is.Port])
			}
			applied[is.Port] = is
		})
		compare(t, table, applied)
		copied := map[int]*router.Mapping{}
		for port, m := range model {
			copied[port] = m
		}
		history = append(history, past{table, copied})
		prev = table
	}
	for _, p := range history {
		compare(t, p.table, p.model)
	}
}

func compare(t *testing.T, table *router.Table, model map[int]*router.Mapping) {
	t.Helper()
	n := 0
	table.EachMapping(func(m *router.Mapping) {
		n++
		if model[m.Port] != m || table.Mapping(router.TCP, m.Port) != m {
			t.Fatalf("revision %d: port %d differs from the model", table.Rev, m.Port)
		}
	})
	if count, _ := table.Len(); n != len(model) || count != n {
		t.Fatalf("revision %d: %d mappings, counted %d, model has %d", table.Rev, n, count, len(model))
	}
}

func TestRouteEditsLeaveOldTablesAlone(t *testing.T) {
	var b router.Builder
	hosts := []string{`"a.x.test"`, `"*.x.test"`, `"~^r[0-9]"`, `"*"`, `["a.x.test","*.x.test","a.x.test"]`}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		name := fmt.Sprintf("r%d", rng.IntN(8))
		before := b.Table(1)
		was, _ := before.Match(&router.Request{Host: "a.x.test", Port: 443, Path: "/"})
		if rng.IntN(3) == 0 {
			b.DeleteRoute(name)
		} else {
			b.SetRoute(mustRoute(t, name, fmt.Sprintf(`{"host":%s,"priority":%d,"respond":{}}`, hosts[rng.IntN(len(hosts))], rng.IntN(3))))
		}
		if now, _ := before.Match(&router.Request{Host: "a.x.test", Port: 443, Path: "/"}); now != was {
			t.Fatalf("an edit changed a table in use: %s became %s", routeName(was), routeName(now))
		}
	}
	for i := range 8 {
		b.DeleteRoute(fmt.Sprintf("r%d", i))
	}
	if r, _ := b.Table(2).Match(&router.Request{Host: "a.x.test", Port: 443, Path: "/"}); r != nil {
		t.Errorf("an empty table matched %s", r.Name)
	}
}

func TestParseKey(t *testing.T) {
	for _, tc := range []struct{ key, fail string }{
		{"ports/tcp/20022", ""}, {"ports/udp/1", ""}, {"routes/a-b_c.d", ""}, {"domains/*.ssh.x-gpu.com", ""}, {"pools/ssh", ""},
		{"ports/tcp/0", "does not exist"}, {"ports/tcp/70000", "does not exist"}, {"ports/tcp/022", "plain numbers"},
		{"ports/tpc/22", "ports/tcp/<port>"}, {"ports/22", "ports/tcp/<port>"}, {"prots/tcp/22", `did you mean "ports"?`},
		{"routes/a b", "not a name"}, {"routes/", "not a name"}, {"domains/localhost", "not a domain"}, {"domains/X.com", `write it as "x.com"`}, {"domains/*.*.x.com", "not a domain"},
	} {
		_, err := router.ParseKey(tc.key)
		if tc.fail == "" && err != nil || tc.fail != "" && (err == nil || !strings.Contains(err.Error(), tc.fail)) {
			t.Errorf("ParseKey(%s): %v, want %q", tc.key, err, tc.fail)
		}
	}
}

func TestPortsEndAtTheLastPort(t *testing.T) {
	p, err := router.ParsePorts("65530-65535, 22")
	if err != nil || p.Size() != 7 || !p.Contains(65535) || p.String() != "22,65530-65535" {
		t.Errorf("got %v, %v", p, err)
	}
	if _, err := router.ParsePorts("20-30,30"); err == nil || !strings.Contains(err.Error(), "overlap") {
		t.Errorf("overlapping ranges: %v", err)
	}
}

func TestStripPath(t *testing.T) {
	r := mustRoute(t, "r", `{"host":"a.x","path":"/code","strip_prefix":true,"backend":"a:1"}`)
	for _, tc := range []struct {
		in, want string
		ok       bool
	}{{"/code", "/", true}, {"/code/", "/", true}, {"/code/a%2Fb", "/a%2Fb", true}, {"/x/../code/a", "", false}} {
		if got, ok := r.StripPath(tc.in); got != tc.want || ok != tc.ok {
			t.Errorf("StripPath(%s) = %s, %v, want %s, %v", tc.in, got, ok, tc.want, tc.ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"backend":"10.0.3.17:22","limits":{"bytes_per_second":{"up":"10MB"}},"allow":["::/0"]}`)
	f.Add(`{"host":["~^(?<id>.+)$"],"backend":{"targets":[{"address":"${id}:1","weight":3}],"tls":true}}`)
	f.Add(`{"host":"a.b","redirect":"https://${host}${uri}","path":"/a"}`)
	f.Add(`"x"`)
	f.Add("[::1]:22")
	f.Add("ports/udp/53")
	f.Add("*.a.test")
	f.Fuzz(func(t *testing.T, value string) {
		if m, err := router.ParseMapping(router.TCP, 22, []byte(value)); err == nil {
			for _, target := range append(targets(m.Backend), targets(m.HTTP)...) {
				if _, _, err := target.Address.Expand(&router.Vars{}); err != nil {
					t.Errorf("an accepted mapping has a bad address: %v", err)
				}
			}
		}
		if r, err := router.ParseRoute("r", []byte(value)); err == nil {
			var b router.Builder
			b.SetRoute(r)
			b.Table(1).Match(&router.Request{Host: "a.b", Port: 443, Path: "/"})
		}
		if m, err := router.ParseMapping(router.UDP, 53, []byte(value)); err == nil && (m.HTTP != nil || m.Proto != router.UDP) {
			t.Errorf("a mapping of UDP is %+v", m)
		}
		router.ParseDomain("x.test", []byte(value))
		if name, err := router.ParseDomainName(value); err == nil && name != value {
			t.Errorf("the key of the domain %s is accepted as %q", name, value)
		}
		if k, err := router.ParseKey(value); err == nil && k.Kind == router.KindMapping {
			if text := fmt.Sprintf("ports/%v/%d", k.Proto, k.Port); text != value {
				t.Errorf("%q is read as %s", value, text)
			}
		}
		if host, ok := router.NormalizeHost(value); ok {
			if again, ok := router.NormalizeHost(host); !ok || again != host {
				t.Errorf("NormalizeHost(%q) = %q, and of that %q", value, host, again)
			}
		}
	})
}

func targets(b *router.Backend) []router.Target {
	if b == nil {
		return nil
	}
	return b.Targets
}

func BenchmarkEditAmong40000(b *testing.B) {
	var builder router.Builder
	for port := 20000; port < 60000; port++ {
		builder.SetMapping(&router.Mapping{Proto: router.TCP, Port: port})
	}
	prev := builder.Table(1)
	b.ReportAllocs()
	for b.Loop() {
		builder.SetMapping(&router.Mapping{Proto: router.TCP, Port: 30000})
		next := builder.Table(2)
		next.DiffMappings(prev, func(_, _ *router.Mapping) {})
		prev = next
	}
}

// One value is not to keep a node from all others.
func TestRoutesHaveSoManyHosts(t *testing.T) {
	for _, tc := range []struct {
		count int
		form  string
		good  bool
	}{{64, `"~^a%d$"`, true}, {65, `"~^a%d$"`, false}, {4096, `"a%d.test"`, true}, {4097, `"a%d.test"`, false}} {
		hosts := make([]string, tc.count)
		for i := range hosts {
			hosts[i] = fmt.Sprintf(tc.form, i)
		}
		_, err := router.ParseRoute("a", []byte(`{"host":[`+strings.Join(hosts, ",")+`],"respond":{}}`))
		if tc.good != (err == nil) || err != nil && !strings.HasPrefix(err.Error(), "host: has ") {
			t.Errorf("%d hosts such as %s: %v", tc.count, tc.form, err)
		}
	}
}
