package v1_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/sluice/control/api/client"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/control/wire"
)

// dial returns a client of a server that has its requests pass through between.
func (r *rig) dial(secret string, between func(next http.Handler) http.Handler) *client.Client {
	r.t.Helper()
	web := httptest.NewServer(between(r.handler))
	r.t.Cleanup(web.Close)
	c, err := client.New(client.Config{URL: web.URL, Token: secret})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return c
}

func asIs(next http.Handler) http.Handler { return next }

// losing answers the first attempts of each request to nobody: it is done, and
// the connection ends.
type losing struct {
	next http.Handler
	mu   sync.Mutex
	seen map[string]int
	lose int
}

func (l *losing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	l.seen[r.Method+" "+r.URL.Path]++
	lost := l.seen[r.Method+" "+r.URL.Path] <= l.lose
	l.mu.Unlock()
	if !lost {
		l.next.ServeHTTP(w, r)
		return
	}
	l.next.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

// TestClientLosesAnswers wants each change made once, though its answer is lost
// twice.
func TestClientLosesAnswers(t *testing.T) {
	r := newRig(t)
	admin := r.token("admin", func(t *tokens.Token) { t.Role = tokens.Admin })
	lost := &losing{seen: map[string]int{}, lose: 2}
	c := r.dial(admin, func(next http.Handler) http.Handler { lost.next = next; return lost })
	ctx := t.Context()
	e, err := c.CreateEnvironment(ctx, wire.NewEnvironment{ID: "a", Backend: "10.0.0.1", Services: map[string]wire.ServiceSpec{"ssh": {}}})
	if err != nil || e.Services["ssh"].Port != 20000 || e.Revision == 0 {
		t.Fatalf("created %+v, %v", e, err)
	}
	if rev, err := c.DeleteEnvironment(ctx, "a", client.IfRevision(e.Revision)); err != nil || rev <= e.Revision {
		t.Errorf("deleted at %d, %v: want it done once, and said so", rev, err)
	}
	if _, err := c.Environment(ctx, "a"); client.ProblemOf(err) == nil || client.ProblemOf(err).Code != wire.NotFound {
		t.Errorf("afterwards %v", err)
	}
	if put, err := c.PutKey(ctx, "ports/tcp/20100", wire.ValueOf("10.0.0.1:22")); err != nil || !put.Changed {
		t.Errorf("put %+v, %v", put, err)
	}
	for path, n := range lost.seen {
		if n != 3 {
			t.Errorf("%s was sent %d times, want 3", path, n)
		}
	}
	// A token that nobody was shown is not made again behind one's back.
	if made, err := c.CreateToken(ctx, wire.NewToken{Name: "lost", Role: "viewer"}); err == nil || lost.seen["POST /api/v1/tokens"] != 1 {
		t.Errorf("made %+v, %v, sent %d times", made, err, lost.seen["POST /api/v1/tokens"])
	}
}

// TestClientSaysWhatIsWrong wants problems with their code and field.
func TestClientSaysWhatIsWrong(t *testing.T) {
	r := newRig(t)
	op := r.token("op", func(t *tokens.Token) { t.Role, t.Envs = tokens.Operator, "prod-" })
	c, ctx := r.dial(op, asIs), t.Context()
	for _, tc := range []struct {
		err         error
		code, field string
		status      int
	}{
		{second(c.CreateEnvironment(ctx, wire.NewEnvironment{ID: "prod-a", Services: map[string]wire.ServiceSpec{"ssh": {Port: 70}}, Backend: "10.0.0.1"})), wire.Invalid, "services.ssh.port", 400},
		{second(c.CreateEnvironment(ctx, wire.NewEnvironment{ID: "dev-a", Services: map[string]wire.ServiceSpec{"ssh": {}}, Backend: "10.0.0.1"})), wire.Forbidden, "", 403},
		{second(c.Status(ctx)), wire.Forbidden, "", 403},
		{second(c.Environment(ctx, "prod-a")), wire.NotFound, "", 404},
		{second(r.dial("sluice_nobody_x", asIs).Status(ctx)), wire.Unauthorized, "", 401},
	} {
		p := client.ProblemOf(fmt.Errorf("in the program: %w", tc.err))
		if p == nil || p.Code != tc.code || p.Field != tc.field || p.Status != tc.status || p.Detail == "" {
			t.Errorf("%+v (%v), want %d %s of %q", p, tc.err, tc.status, tc.code, tc.field)
		}
	}
	for url, want := range map[string]string{"127.0.0.1:9180": "write https://host:port", "ftp://x": "write https://host:port", "http://127.0.0.1:1": "connection refused"} {
		c, err := client.New(client.Config{URL: url, Attempts: 1})
		if err == nil {
			_, err = c.Nodes(ctx)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	c, err := client.New(client.Config{URL: other.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Nodes(ctx); err == nil || !strings.Contains(err.Error(), "no answer of the control API") {
		t.Errorf("of another server: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestClientOverASocket reads its token anew, and pages through lists.
func TestClientOverASocket(t *testing.T) {
	r := newRig(t)
	path, file := filepath.Join(t.TempDir(), "api.sock"), filepath.Join(t.TempDir(), "token")
	ln, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	web := &httptest.Server{Listener: ln, Config: &http.Server{Handler: r.handler}}
	web.Start()
	defer web.Close()
	c, err := client.New(client.Config{URL: "unix://" + path, TokenFile: file})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := client.Collect(c.Keys(t.Context(), "pools/")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the file: %v", err)
	}
	if err := os.WriteFile(file, []byte(r.token("op", func(t *tokens.Token) { t.Role = tokens.Operator })+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var wishes []wire.KeyWish
	for i := range 120 {
		wishes = append(wishes, wire.KeyWish{Key: fmt.Sprintf("ports/tcp/%d", 21000+i), Value: wire.ValueOf("10.0.0.1:22")})
	}
	if plan, err := c.ChangeKeys(t.Context(), wire.KeyWishes{Keys: wishes}); err != nil || len(plan.Changes) != 120 {
		t.Fatalf("changed %+v, %v", plan, err)
	}
	all, err := client.Collect(c.Keys(t.Context(), "ports/tcp/210"))
	if err != nil || len(all) != 100 || all[99].Key != "ports/tcp/21099" || all[0].Text() != "10.0.0.1:22" {
		t.Errorf("%d keys, %v", len(all), err)
	}
	for e, err := range c.Keys(t.Context(), "ports/") { // and no more
		if err != nil || e.Key != "ports/tcp/21000" {
			t.Errorf("the first is %+v, %v", e, err)
		}
		break
	}
}

// cutting ends each event stream after some bytes.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(b []byte) (int, error) {
	n := min(len(b), c.left)
	if _, err := c.ResponseWriter.Write(b[:n]); err != nil {
		return 0, err
	}
	if c.left -= n; c.left == 0 {
		http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

func (c *cutting) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *cutting) Flush() { http.NewResponseController(c.ResponseWriter).Flush() }

// TestClientWatches wants each revision once and whole, however the stream is cut.
func TestClientWatches(t *testing.T) {
	r := newRig(t)
	op := r.token("op", func(t *tokens.Token) { t.Role = tokens.Operator })
	var mu sync.Mutex
	size, streams := 150, 0
	c := r.dial(op, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			mu.Lock()
			left := size
			size, streams = size+97, streams+1
			mu.Unlock()
			next.ServeHTTP(&cutting{w, left}, req)
		})
	})
	direct := r.dial(op, asIs)
	const revisions = 12
	begin, err := direct.ChangeKeys(t.Context(), wire.KeyWishes{Keys: []wire.KeyWish{{Key: "ports/tcp/22000", Value: wire.ValueOf("10.0.0.1:22")}}})
	if err != nil {
		t.Fatal(err)
	}
	var want []int64
	for i := range revisions {
		var wishes []wire.KeyWish
		for j := range 3 {
			wishes = append(wishes, wire.KeyWish{Key: fmt.Sprintf("ports/tcp/%d", 22100+10*i+j), Value: wire.ValueOf("10.0.0.1:22")})
		}
		made, err := direct.ChangeKeys(t.Context(), wire.KeyWishes{Keys: wishes})
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, made.Committed)
	}
	var got []int64
	for ch, err := range c.Watch(t.Context(), begin.Committed, "mappings", "routes") {
		if err != nil {
			t.Fatal(err)
		}
		if len(ch.Changes) != 3 {
			t.Errorf("revision %d comes with %d changes, want 3", ch.Revision, len(ch.Changes))
		}
		if got = append(got, ch.Revision); len(got) == revisions {
			break
		}
	}
	if !slices.Equal(got, want) || streams < 3 {
		t.Errorf("over %d streams came %v, want %v", streams, got, want)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for ch, err := range direct.Watch(ctx, 0, "mappings") {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %+v, %v, want the end of the context", ch, err)
		}
	}
	for _, err := range direct.Watch(t.Context(), 0, "secrets") {
		if p := client.ProblemOf(err); p == nil || p.Code != wire.Invalid {
			t.Errorf("of a topic that there is not: %v", err)
		}
	}
}

// TestClientHasEveryCall makes each call of the document, and no other.
func TestClientHasEveryCall(t *testing.T) {
	r := newRig(t)
	admin := r.token("admin", func(t *tokens.Token) { t.Role = tokens.Admin })
	var mu sync.Mutex
	made := map[string]bool{}
	c := r.dial(admin, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			mu.Lock()
			made[req.Method+" "+req.URL.Path] = true
			mu.Unlock()
			if strings.HasSuffix(req.URL.Path, "/flows") || strings.HasSuffix(req.URL.Path, "/explain") {
				http.Error(w, "this rig has no data plane", http.StatusTeapot)
				return
			}
			next.ServeHTTP(w, req)
		})
	})
	everyCall(t, c)
	text, err := os.ReadFile("api.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc document
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	known := 0
	for path, ops := range doc.Paths {
		form := regexp.MustCompile("^" + regexp.MustCompile(`\\\{[a-z]+\\\}`).ReplaceAllString(regexp.QuoteMeta(path), "[^/]+") + "$")
		for method := range ops {
			known++
			if !slices.ContainsFunc(slices.Collect(maps.Keys(made)), func(m string) bool {
				at, is, _ := strings.Cut(m, " ")
				return at == strings.ToUpper(method) && form.MatchString(is)
			}) {
				t.Errorf("the client has no call for %s %s", strings.ToUpper(method), path)
			}
		}
	}
	if known < 40 {
		t.Errorf("the document has %d calls", known)
	}
}

// everyCall makes each call, and wants those that can come to something to do so.
func everyCall(t *testing.T, c *client.Client) {
	ctx := t.Context()
	good := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := c.CreateEnvironment(ctx, wire.NewEnvironment{ID: "a", Backend: "10.0.0.1", Services: map[string]wire.ServiceSpec{"ssh": {}}}, client.Once("mine"))
	good("create", err)
	_, err = client.Collect(c.Environments(ctx, ""))
	good("list", err)
	_, err = c.Environment(ctx, "a")
	good("get", err)
	moved := "10.0.0.2"
	e, err := c.PatchEnvironment(ctx, "a", wire.EnvironmentPatch{Backend: &moved, Services: map[string]*wire.ServiceSpec{"jupyter": {}}})
	good("patch", err)
	e, err = c.PatchEnvironment(ctx, "a", wire.EnvironmentPatch{Services: map[string]*wire.ServiceSpec{"jupyter": nil}}, client.IfRevision(e.Revision))
	good("drop", err)
	if len(e.Services) != 1 || e.Backend != moved {
		t.Errorf("patched %+v", e)
	}
	access, err := c.Access(ctx, "a", true)
	good("access", err)
	if access["ssh"].Command != "ssh -p 20000 root@a.ssh.x-gpu.com" {
		t.Errorf("access %+v", access)
	}
	_, err = c.AllocatePort(ctx, wire.PortRequest{Env: "b", Service: "ssh"})
	good("allocate", err)
	ports, err := client.Collect(c.Ports(ctx, "ssh"))
	good("ports", err)
	if len(ports) != 2 {
		t.Errorf("ports %+v", ports)
	}
	_, err = c.Reserve(ctx, wire.Reservation{Ports: "20009", For: "us"})
	good("reserve", err)
	_, err = c.Unreserve(ctx, "tcp", "20009")
	good("unreserve", err)
	_, err = c.Audit(ctx)
	good("audit", err)
	_, err = c.Usage(ctx)
	good("usage", err)
	_, err = c.ReleasePort(ctx, "b", "ssh")
	good("release", err)
	_, err = c.DeleteEnvironment(ctx, "a")
	good("delete", err)
	for key, value := range map[string]string{"ports/tcp/20100": "10.0.0.1:22", "routes/web": `{"host":"web.x-gpu.com","backend":"10.0.0.1:80"}`, "domains/*.x-gpu.com": "{}", "names/*.edge.x-gpu.com": `{"zone":"x-gpu.com","ttl":60}`, "pools/rdp": `{"ports":"31000-31001","backend_port":3389}`} {
		folder, _, _ := strings.Cut(key, "/")
		_, err := client.Collect(c.Keys(ctx, folder+"/"))
		good("list "+folder, err)
		_, err = c.PutKey(ctx, key, wire.ValueOf(value), client.DryRun())
		good("try "+key, err)
		_, err = c.PutKey(ctx, key, wire.ValueOf(value))
		good("put "+key, err)
		k, err := c.Key(ctx, key)
		good("get "+key, err)
		if k == nil || k.Text() != value {
			t.Errorf("%s is %+v", key, k)
		}
		_, err = c.DeleteKey(ctx, key, client.IfThere())
		good("delete "+key, err)
	}
	_, err = c.ChangeKeys(ctx, wire.KeyWishes{Keys: []wire.KeyWish{{Key: "ports/tcp/20101", Value: wire.ValueOf("10.0.0.1:22")}}})
	good("change", err)
	_, err = c.Status(ctx)
	good("status", err)
	_, err = c.Nodes(ctx)
	good("nodes", err)
	if _, err = c.Node(ctx, "nobody"); client.ProblemOf(err) == nil {
		t.Errorf("a node that there is not: %v", err)
	}
	for _, err := range []error{second(c.DrainNode(ctx, "nobody", wire.Drain{Reason: "new disk"})), second(c.UndrainNode(ctx, "nobody"))} {
		if client.ProblemOf(err) == nil || client.ProblemOf(err).Code != wire.NotFound {
			t.Errorf("a drain of a node that there is not: %v", err)
		}
	}
	_, err = client.Collect(c.Verdicts(ctx, client.VerdictFilter{State: "refused"}))
	good("verdicts", err)
	if _, err := c.WaitApplied(ctx, 0, time.Second); client.ProblemOf(err) == nil || client.ProblemOf(err).Code != wire.NotApplied {
		t.Errorf("wait: %v", err)
	}
	var gap bool
	_, err = client.Collect(c.History(ctx, 0, "ports/", &gap))
	good("history", err)
	if _, err = c.Diff(ctx, 1<<40, 0, ""); client.ProblemOf(err) == nil || client.ProblemOf(err).Code != wire.NotFound {
		t.Errorf("diff: %v", err)
	}
	if _, err = c.Rollback(ctx, wire.Rollback{To: 1 << 40}); client.ProblemOf(err) == nil || client.ProblemOf(err).Code != wire.NotFound {
		t.Errorf("rollback: %v", err)
	}
	for _, err := range []error{second(c.Flows(ctx, url.Values{"env": {"a"}})), second(c.CutFlows(ctx, url.Values{"all": {"true"}})), second(c.Explain(ctx, url.Values{"port": {"tcp/20022"}}))} {
		if err == nil || !strings.Contains(err.Error(), "418") {
			t.Errorf("of the data plane: %v", err)
		}
	}
	_, err = c.CreateToken(ctx, wire.NewToken{Name: "x", Role: "viewer"})
	good("create a token", err)
	_, err = c.Tokens(ctx)
	good("tokens", err)
	for _, err := range []error{second(c.RotateToken(ctx, "y", time.Minute)), second(c.DeleteToken(ctx, "y"))} {
		if client.ProblemOf(err) == nil {
			t.Errorf("of a token that there is not: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	for _, err := range c.Watch(ctx, 0, "nodes") {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("watch: %v", err)
		}
	}
}
