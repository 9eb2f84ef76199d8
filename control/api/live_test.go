package api_test

import (
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/sluice/control/api"
)

// plane is a data plane with flows and mappings of the test's making.
type plane struct {
	flows    []api.Flow
	unseen   string
	mappings []api.Mapping
	cut      []uint64 // IDs, in order
}

func (p *plane) Flows() (iter.Seq[api.Flow], string) { return slices.Values(p.flows), p.unseen }

// Explain repeats the question.
func (p *plane) Explain(q api.Question) api.Explanation {
	return api.Explanation{Outcome: q.Query().Encode()}
}

func (p *plane) Mappings() iter.Seq[api.Mapping] { return slices.Values(p.mappings) }

func (p *plane) Cut(match func(api.Flow) bool) (n int, unseen string) {
	p.flows = slices.DeleteFunc(p.flows, func(f api.Flow) bool {
		picked := match(f)
		if picked {
			p.cut = append(p.cut, f.ID)
			n++
		}
		return picked
	})
	return n, p.unseen
}

func newPlane() *plane {
	return &plane{
		flows: []api.Flow{
			{ID: 1, Proto: "tcp", Listener: "tcp/20022", Port: 20022, Client: netip.MustParseAddrPort("203.0.113.7:1000"), Backend: "10.0.0.1:22", Env: "a", Service: "ssh", Up: 10, Down: 20},
			{ID: 2, Proto: "udp", Listener: "udp/20022", Port: 20022, Client: netip.MustParseAddrPort("203.0.113.8:1000"), Backend: "10.0.0.1:22", Env: "a", Service: "rdp"},
			{ID: 3, Proto: "tcp", Listener: "https/443", Port: 443, Client: netip.MustParseAddrPort("[2001:db8::1]:1000"), Backend: "10.0.0.2:443", Route: "db", Env: "b"},
			{ID: 4, Proto: "tcp", Listener: "tcp/20023", Port: 20023, Client: netip.MustParseAddrPort("198.51.100.1:1"), Env: "b", HTTP: true},
		},
		mappings: []api.Mapping{
			{Proto: "tcp", Port: 20022, Backend: "10.0.0.1:22", Env: "a\"\\\n", Service: "ssh", Live: 1, Started: 3, Refused: 2, Unreachable: 1, Up: 10, Down: 20},
			{Proto: "tcp", Port: 20023, HTTP: "10.0.0.3:80", Env: "b", Verdict: "degraded: port_busy: :20023 is in use (applied@7)",
				HTTPTargets: []api.Target{{Address: "10.0.0.3:80", Weight: 1, Health: "up"}, {Address: "web:80", Weight: 3, Health: "down", HealthErr: "refused"}}},
			{Proto: "udp", Port: 20022, Backend: "10.0.0.1:22", Env: "a", Service: "rdp"},
		},
	}
}

// filters are queries and the IDs of the flows of newPlane that they pick.
var filters = []struct {
	query string
	want  []uint64
}{
	{"env=a", []uint64{1, 2}},
	{"env=a&proto=udp", []uint64{2}},
	{"port=20022&service=ssh", []uint64{1}},
	{"client=203.0.113.7", []uint64{1}},
	{"client=203.0.113.0/24", []uint64{1, 2}},
	{"client=203.0.113.99/24", []uint64{1, 2}},
	{"client=2001:db8::/32", []uint64{3}},
	{"client=::ffff:203.0.113.8", []uint64{2}},
	{"listener=https/443", []uint64{3}},
	{"route=db", []uint64{3}},
	{"backend=10.0.0.1:22", []uint64{1, 2}},
	{"id=4", []uint64{4}},
	{"env=nobody", nil},
}

func TestFlowsAreListed(t *testing.T) {
	p := newPlane()
	url := serveWith(t, api.Config{Live: p})
	for _, tc := range append(filters, filters[0], struct {
		query string
		want  []uint64
	}{"", []uint64{1, 2, 3, 4}}) {
		status, body := get(t, url+"/flows?"+tc.query)
		var got []uint64
		for line := range strings.Lines(body) {
			var f api.Flow
			if err := json.Unmarshal([]byte(line), &f); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			if diff := cmp.Diff(p.flows[f.ID-1], f, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Errorf("flow %d (-want +got):\n%s", f.ID, diff)
			}
			got = append(got, f.ID)
		}
		if status != 200 || !slices.Equal(got, tc.want) {
			t.Errorf("?%s: %d %v, want %v", tc.query, status, got, tc.want)
		}
	}
}

func TestFiltersGoThereAndBack(t *testing.T) {
	for _, tc := range filters {
		var f api.Filter
		for part := range strings.SplitSeq(tc.query, "&") {
			name, value, _ := strings.Cut(part, "=")
			if err := f.Set(name, value); err != nil {
				t.Fatal(err)
			}
		}
		var got []uint64
		again := api.Filter{}
		for name, values := range f.Query() {
			if err := again.Set(name, values[0]); err != nil {
				t.Fatal(err)
			}
		}
		for _, flow := range newPlane().flows {
			if again.Match(flow) {
				got = append(got, flow.ID)
			}
		}
		if !slices.Equal(got, tc.want) || again != f {
			t.Errorf("%s: picks %v, want %v; it became %+v", tc.query, got, tc.want, again)
		}
	}
}

func TestCutPicksWhatTheListShows(t *testing.T) {
	for _, tc := range filters {
		p := newPlane()
		url := serveWith(t, api.Config{Live: p})
		status, body := ask(t, url+"/flows?"+tc.query, nil)
		if want := fmt.Sprintf("{\"cut\":%d}\n", len(tc.want)); status != 200 || body != want || !slices.Equal(p.cut, tc.want) {
			t.Errorf("?%s: %d %s, cut %v, want %v", tc.query, status, body, p.cut, tc.want)
		}
	}
	p := newPlane()
	if status, body := ask(t, serveWith(t, api.Config{Live: p})+"/flows?all=true", nil); status != 200 || len(p.cut) != 4 {
		t.Errorf("all: %d %s, cut %v", status, body, p.cut)
	}
}

func TestWrongQueriesAreRefusedInWords(t *testing.T) {
	p := newPlane()
	url := serveWith(t, api.Config{Live: p})
	for _, tc := range []struct{ query, want string }{
		{"prot=tcp", `there is no parameter "prot"; there are id, proto,`},
		{"env=a&env=b", `give the parameter "env" one value`},
		{"env=", `give the parameter "env" one value`},
		{"proto=sctp", "write tcp or udp"},
		{"port=70000", "ports are numbers from 1 to 65535"},
		{"port=ssh", "ports are numbers from 1 to 65535"},
		{"client=example.com", "neither an address nor a network"},
		{"client=203.0.113.0/33", "neither an address nor a network"},
		{"id=0", "not the ID of a flow"},
		{"listener=20022", `"20022" is none; write tcp/<port>`},
		{"listener=tcp/070", "write tcp/<port>"},
		{"listener=quic/443", "https/<port>"},
		{"backend=10.0.0.1", "write host:port"},
		{"backend=10.0.0.1:ssh", "write host:port"},
		{"backend=:22", "write host:port"},
	} {
		for _, request := range []func() (int, string){
			func() (int, string) { return get(t, url+"/flows?"+tc.query) },
			func() (int, string) { return ask(t, url+"/flows?"+tc.query, nil) },
		} {
			status, body := request()
			var refusal struct{ Error string }
			if err := json.Unmarshal([]byte(body), &refusal); err != nil || status != 400 || !strings.Contains(refusal.Error, tc.want) {
				t.Errorf("?%s: %d %s, want 400 and %q", tc.query, status, body, tc.want)
			}
		}
	}
	for _, query := range []string{"", "all=yes", "all=true&env=a", "all=", "all=true&prot=tcp"} {
		if status, body := ask(t, url+"/flows?"+query, nil); status != 400 {
			t.Errorf("cut ?%s: %d %s, want 400", query, status, body)
		}
	}
	if status, body := get(t, url+"/mappings?client=203.0.113.7"); status != 400 || !strings.Contains(body, "there are proto, port, env, service") {
		t.Errorf("mappings of a client: %d %s", status, body)
	}
	if len(p.cut) > 0 {
		t.Errorf("wrong queries cut %v", p.cut)
	}
}

// ask sends DELETE, with the given fields; Host is one of them.
func ask(t *testing.T, url string, fields map[string]string) (status int, body string) {
	t.Helper()
	return do(t, http.MethodDelete, url, fields)
}

func do(t *testing.T, method, url string, fields map[string]string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range fields {
		if name == "Host" {
			req.Host = value
		}
		req.Header.Set(name, value)
	}
	return read(t, req)
}

// TestWebPagesCannotAct sends what a browser would on behalf of a page.
func TestWebPagesCannotAct(t *testing.T) {
	p := newPlane()
	url := serveWith(t, api.Config{Live: p, Name: "Edge-1.x-gpu.com"})
	for _, tc := range []struct {
		name   string
		method string
		path   string
		fields map[string]string
		want   int
	}{
		{"another origin", "DELETE", "/flows?all=true", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"another port of this host", "DELETE", "/flows?all=true", map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		{"an old browser", "DELETE", "/flows?all=true", map[string]string{"Origin": "https://example.com"}, 403},
		{"a rebound name", "DELETE", "/flows?all=true", map[string]string{"Host": "rebound.example.com:9180", "Sec-Fetch-Site": "same-origin"}, 403},
		{"a rebound name that reads", "GET", "/flows", map[string]string{"Host": "rebound.example.com"}, 403},
		{"a rebound name that reads mappings", "GET", "/mappings", map[string]string{"Host": "127.0.0.1.example.com"}, 403},
		{"a preflight", "OPTIONS", "/flows", map[string]string{"Origin": "https://example.com", "Access-Control-Request-Method": "DELETE"}, 405},
		{"a form", "POST", "/flows?all=true", map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, 405},
		{"a rebound name that reads metrics of mappings", "GET", "/metrics/mappings", map[string]string{"Host": "rebound.example.com"}, 403},
		{"a rebound name that has a profile made", "GET", "/debug/pprof/profile?seconds=1", map[string]string{"Host": "rebound.example.com"}, 403},
		{"localhost", "GET", "/flows", map[string]string{"Host": "LOCALHOST:9180"}, 200},
		{"an IPv6 address", "GET", "/flows", map[string]string{"Host": "[::1]:9180"}, 200},
		{"its own name", "GET", "/flows", map[string]string{"Host": "edge-1.x-gpu.com.:9180"}, 200},
		{"monitoring by name", "GET", "/metrics", map[string]string{"Host": "edge-1.internal"}, 200},
		{"a page of the address itself", "DELETE", "/flows?id=1", map[string]string{"Sec-Fetch-Site": "same-origin"}, 200},
	} {
		if status, body := do(t, tc.method, url+tc.path, tc.fields); status != tc.want {
			t.Errorf("%s: %d %s, want %d", tc.name, status, body, tc.want)
		}
	}
	if !slices.Equal(p.cut, []uint64{1}) {
		t.Errorf("cut %v, want the flow that the address's own page may cut", p.cut)
	}
}

func TestMappingsAreListed(t *testing.T) {
	p := newPlane()
	url := serveWith(t, api.Config{Live: p})
	for query, want := range map[string]int{"": 3, "env=b": 1, "port=20022": 2, "port=20022&proto=udp": 1, "service=ssh": 1, "service=none": 0} {
		status, body := get(t, url+"/mappings?"+query)
		got := 0
		for line := range strings.Lines(body) {
			var m api.Mapping
			if err := json.Unmarshal([]byte(line), &m); err != nil || !slices.ContainsFunc(p.mappings, func(have api.Mapping) bool { return cmp.Equal(have, m) }) {
				t.Errorf("line %q: %v", line, err)
			}
			got++
		}
		if status != 200 || got != want {
			t.Errorf("?%s: %d, %d mappings, want %d", query, status, got, want)
		}
	}
}

func TestMetricsOfMappings(t *testing.T) {
	url := serveWith(t, api.Config{Live: newPlane()})
	status, body := get(t, url+"/metrics/mappings")
	labels := `{proto="tcp",port="20022",env="a\"\\\n",service="ssh"`
	for _, want := range []string{
		"# TYPE sluice_mapping_flows_active gauge\nsluice_mapping_flows_active" + labels + "} 1\n",
		"sluice_mapping_flows_started_total" + labels + "} 3\n",
		"sluice_mapping_flows_refused_total" + labels + "} 2\n",
		"sluice_mapping_flows_unreachable_total" + labels + "} 1\n",
		"# TYPE sluice_mapping_bytes_total counter\nsluice_mapping_bytes_total" + labels + `,direction="up"} 10` + "\n" +
			"sluice_mapping_bytes_total" + labels + `,direction="down"} 20` + "\n",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("there is no\n%s", want)
		}
	}
	if status != 200 || strings.Contains(body, "20023") {
		t.Errorf("%d, with mappings that nobody used:\n%s", status, body)
	}
	reference, err := os.ReadFile("../../METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if help, ok := strings.CutPrefix(line, "# HELP "); ok {
			if name, _, _ := strings.Cut(help, " "); !strings.Contains(string(reference), "`"+name+"`") {
				t.Errorf("METRICS.md does not describe %s", name)
			}
		}
	}
}

func TestQuestions(t *testing.T) {
	for _, tc := range []struct{ query, want string }{
		{"url=https://a.b/c&method=POST&header=X-A:1&header=X-A:+2&client=203.0.113.7", ""},
		{"port=udp/53", ""},
		{"", "give one of url"},
		{"url=https://a.b/&port=tcp/1", "give one of url"},
		{"url=ftp://a.b/", "url: "},
		{"url=https:///x", "url: "},
		{"url=%zz", ""},
		{"port=22", "port: "},
		{"port=tcp/70000", "port: "},
		{"port=sctp/1", "port: "},
		{"url=https://a.b/&header=nonsense", "header: "},
		{"url=https://a.b/&client=me", "client: "},
		{"url=https://a.b/&verbose=1", "verbose: there is no such parameter"},
	} {
		query, err := url.ParseQuery(tc.query)
		if err != nil {
			continue
		}
		q, err := api.ParseQuestion(query)
		if tc.want != "" {
			if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("%s: error %v, want %q", tc.query, err, tc.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.query, err)
			continue
		}
		again, err := api.ParseQuestion(q.Query())
		if diff := cmp.Diff(q, again, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || diff != "" {
			t.Errorf("%s: error %v, %s", tc.query, err, diff)
		}
	}
}
