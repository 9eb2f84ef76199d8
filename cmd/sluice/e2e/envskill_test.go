package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// platform is a client of the control API of several nodes that makes and ends
// environments, and asks again, another node, when it does not get an answer.
type platform struct {
	nodes []*node
	token string
	rng   *rand.Rand
	// has are the environments that it has been told of, by name, with their ssh
	// ports.
	has map[string]int
}

// again is a conflict that goes by: somebody else's changes came first, or the
// node that was asked first has not answered, and may be dead.
var again = regexp.MustCompile(`"code":"(conflict|under_way)"`)

// ask asks some node until it gets an answer that tells what became of the change.
func (p *platform) ask(ctx context.Context, method, path, body string) (status int, answer []byte, err error) {
	key := fmt.Sprintf("%d", p.rng.Uint64())
	for range 400 {
		status, answer, err = p.once(ctx, key, method, path, body)
		if err == nil && status < 500 && (status != http.StatusConflict || !again.Match(answer)) {
			return status, answer, nil
		}
		select {
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		case <-time.After(time.Duration(20+p.rng.IntN(50)) * time.Millisecond): // as clients do
		}
	}
	return 0, nil, fmt.Errorf("no answer to %s %s: %d %s, %w", method, path, status, answer, err)
}

func (p *platform) once(ctx context.Context, key, method, path, body string) (status int, answer []byte, err error) {
	limit := 5 * time.Second
	if p.rng.IntN(10) == 0 { // it is killed, and begins anew
		limit = time.Duration(p.rng.IntN(20)) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	n := p.nodes[p.rng.IntN(len(p.nodes))]
	req, err := http.NewRequestWithContext(ctx, method, "http://"+n.Admin+"/api/v1"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+p.token)
	req.Header.Set("Idempotency-Key", key)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// step makes an environment, or ends one that there is.
func (p *platform) step(ctx context.Context, name string) error {
	for there := range p.has {
		if p.rng.IntN(2) == 0 {
			break
		}
		status, answer, err := p.ask(ctx, "DELETE", "/environments/"+there, "")
		if err != nil {
			return err
		}
		if status != http.StatusOK && status != http.StatusNotFound {
			return fmt.Errorf("end %s: %d %s", there, status, answer)
		}
		delete(p.has, there)
		return nil
	}
	status, answer, err := p.ask(ctx, "POST", "/environments", fmt.Sprintf(`{"id":%q,"backend":"127.0.0.1","services":{"ssh":{},"jupyter":{},"code":{},"rdp":{}}}`, name))
	if err != nil {
		return err
	}
	var made struct {
		Code     string
		Services map[string]struct{ Port int }
	}
	if err := json.Unmarshal(answer, &made); err != nil {
		return fmt.Errorf("make %s: %d %s: %w", name, status, answer, err)
	}
	switch {
	case status == http.StatusCreated:
		p.has[name] = made.Services["ssh"].Port
	case made.Code != "exhausted":
		return fmt.Errorf("make %s: %d %s", name, status, answer)
	}
	return nil
}

// TestEnvironmentsSurviveKills has eight clients make and end environments of four
// services on three nodes while nodes are killed and clients give up, and then
// wants just those that clients were told of, each with ports of its own.
func TestEnvironmentsSurviveKills(t *testing.T) {
	host := startHost(t)
	x := &issuing{t: t, etcd: host}
	for i := range 3 {
		n := newNode(t)
		n.edit("node: test\n", fmt.Sprintf("node: hk%d\n", i+1))
		n.edit(fmt.Sprintf(`ports: ["%d-%d"]`, n.Ports[0], n.Ports[1]), `ports: ["12000-12499"]`)
		n.useEtcdOf(host)
		if i > 0 {
			shareClusterKey(x.t, x.nodes[0], n)
		}
		n.start()
		x.nodes = append(x.nodes, n)
	}
	for i, service := range []string{"ssh", "jupyter", "code", "rdp"} {
		proto := "tcp"
		if service == "rdp" {
			proto = "tcp+udp"
		}
		x.nodes[0].keyCommand(0, "pool", "put", service, fmt.Sprintf(`{"ports": "%d-%d", "backend_port": 22, "protocol": %q, "quarantine": "0s"}`, 12000+100*i, 12039+100*i, proto))
	}
	token := x.nodes[0].newToken("platform", "--role", "operator")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var clients []*platform
	var running sync.WaitGroup
	var busy atomic.Int32
	for c := range 8 {
		p := &platform{nodes: x.nodes, token: token, rng: rand.New(rand.NewPCG(7, uint64(c))), has: map[string]int{}}
		clients = append(clients, p)
		busy.Add(1)
		running.Go(func() {
			defer busy.Add(-1)
			for i := range 25 {
				if err := p.step(ctx, fmt.Sprintf("env-%d-%d", c, i)); err != nil {
					t.Errorf("client %d: %v", c, err)
					return
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(7, 100))
	kills := 0
	for busy.Load() > 0 {
		n := x.nodes[rng.IntN(3)]
		time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond) // kills come when they come
		n.signal(syscall.SIGKILL)
		n.wait()
		n.start()
		kills++
	}
	running.Wait()
	t.Logf("%d kills", kills)

	want := map[string]int{}
	for _, p := range clients {
		for name, port := range p.has {
			want[name] = port
		}
	}
	seen := map[int]string{}
	out, _ := x.nodes[0].keyCommand(0, "env", "ls", "-o", "json")
	for line := range strings.Lines(out) {
		var e struct {
			ID       string
			Services map[string]struct{ Port int }
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if port, told := want[e.ID]; !told || port != e.Services["ssh"].Port {
			t.Errorf("there is %s with %v, of which clients were told %d", e.ID, e.Services, port)
		}
		delete(want, e.ID)
		for _, s := range e.Services {
			if other := seen[s.Port]; other != "" {
				t.Errorf("%s and %s both have port %d", other, e.ID, s.Port)
			}
			seen[s.Port] = e.ID
		}
	}
	if len(want) > 0 {
		t.Errorf("clients were told of %v, and there are none", want)
	}
	if len(seen) == 0 {
		t.Error(errors.New("no environment is left to look at"))
	}
	x.nodes[0].keyCommand(0, "port", "audit")
}
