package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	upgradesTimes    = 50 // at most
	upgradesSessions = 500
	upgradesClients  = 4 // of each version of HTTP
	// upgradesSettle is how long the load goes on between two upgrades.
	upgradesSettle = 300 * time.Millisecond
	// upgradesEnd is how long processes that were replaced may be there once no
	// client is.
	upgradesEnd = time.Minute
)

// upgradesResult is what clients of a node noticed that was replaced over and over.
type upgradesResult struct {
	Upgrades int              `json:"upgrades"`
	Took     []float64        `json:"upgrade_ms"`
	Requests map[string]int64 `json:"requests"` // by client; "mapped": connections to mapped ports
	Failed   map[string]int64 `json:"failed"`
	Sessions int              `json:"sessions"`
	Cut      int64            `json:"sessions_cut"`
	Lines    int64            `json:"session_lines"`
	Errors   []string         `json:"errors,omitempty"` // the first of them
	Left     int              `json:"processes_left"`   // besides the last
	// Again is how many requests over HTTP/3 were made twice, see h3Client.
	Again int64 `json:"h3_requests_made_again"`
	// Files are those open of the first process before there is load, and of one
	// that took over once there was none any more.
	Files [2]int `json:"open_files"`
}

// upgradesTrial is the clients, and what they noticed.
type upgradesTrial struct {
	node    *sluiceNode
	site    *site
	end     chan struct{} // closed when clients are to go
	running sync.WaitGroup

	mu  sync.Mutex // guards the following field
	res *upgradesResult

	lines, cut, again atomic.Int64
}

func (t *upgradesTrial) note(what string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.res.Requests[what]++
	if err == nil {
		return
	}
	t.res.Failed[what]++
	t.tell(fmt.Errorf("%s: %w", what, err))
}

// tell keeps the first errors. t.mu is held.
func (t *upgradesTrial) tell(err error) {
	if len(t.res.Errors) < 10 {
		t.res.Errors = append(t.res.Errors, err.Error())
	}
}

func (t *upgradesTrial) over() bool {
	select {
	case <-t.end:
		return true
	default:
		return false
	}
}

func runUpgrades(ctx context.Context, b *bench) error {
	s, err := b.site("upgrades")
	if err != nil {
		return err
	}
	n, err := startSluice(ctx, s, len(services())+b.options.upgrades)
	if err != nil {
		return err
	}
	pgid := n.edge.root
	defer endGroup(pgid)
	if err := n.loadServices(ctx, s.origin); err != nil {
		return err
	}
	t := &upgradesTrial{node: n, site: s, end: make(chan struct{}), res: &upgradesResult{
		Sessions: upgradesSessions, Requests: map[string]int64{}, Failed: map[string]int64{},
	}}
	if t.res.Files[0], err = filesOf(n.edge.root); err != nil {
		return err
	}
	err = t.replaceOften(ctx)
	close(t.end)
	t.running.Wait()
	if err != nil {
		return err
	}
	t.res.Lines, t.res.Cut, t.res.Again = t.lines.Load(), t.cut.Load(), t.again.Load()
	if t.res.Left, err = othersIn(ctx, pgid, n.edge.root); err != nil {
		return err
	}
	if t.res.Files[1], err = t.filesAtRest(ctx, pgid); err != nil {
		return err
	}
	b.result.Upgrades = t.res
	return nil
}

// filesAtRest returns how many files a process has open that takes over now, when
// there are no clients and no mappings but those that the first process had.
func (t *upgradesTrial) filesAtRest(ctx context.Context, pgid int) (int, error) {
	for i := range t.res.Upgrades {
		if _, err := t.node.etcd.run(ctx, nil, "del", mappingKey(t.node.ports.Low+len(services())+i)); err != nil {
			return 0, err
		}
	}
	port := loopback(t.node.ports.Low + len(services()))
	err := retry(ctx, func() error {
		if t.connect(ctx, port) == nil {
			return errors.New("the port of a mapping that was deleted answers still")
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	if err := t.replace(ctx); err != nil {
		return 0, err
	}
	if _, err := othersIn(ctx, pgid, t.node.edge.root); err != nil {
		return 0, err
	}
	// Its own etcd is there once it answers.
	if err := retry(ctx, func() error { return t.node.etcd.put(ctx, "/bench/rest", "1") }); err != nil {
		return 0, err
	}
	return filesOf(t.node.edge.root)
}

// replaceOften starts the load and has the node replaced under it.
func (t *upgradesTrial) replaceOften(ctx context.Context) error {
	if err := until(ctx, t.node.edge.proc, startLimit, func(ctx context.Context) error { return t.connect(ctx, t.node.edge.addrs[serviceEcho]) }); err != nil {
		return err
	}
	t.begin(ctx)
	for i := range t.site.options.upgrades {
		began := time.Now()
		if err := t.replace(ctx); err != nil {
			return fmt.Errorf("upgrade %d: %w", i+1, err)
		}
		t.res.Took = append(t.res.Took, millis(time.Since(began)))
		t.res.Upgrades++
		port := t.node.ports.Low + len(services()) + i
		if err := t.node.etcd.put(ctx, mappingKey(port), t.site.origin[serviceEcho].String()); err != nil {
			// Its own etcd begins anew with each process.
			if err = retry(ctx, func() error {
				return t.node.etcd.put(ctx, mappingKey(port), t.site.origin[serviceEcho].String())
			}); err != nil {
				return err
			}
		}
		if err := retry(ctx, func() error { return t.connect(ctx, loopback(port)) }); err != nil {
			return fmt.Errorf("a mapping that came after upgrade %d: %w", i+1, err)
		}
		if err := pause(ctx, upgradesSettle); err != nil {
			return err
		}
	}
	return nil
}

// replace has the node replaced.
func (t *upgradesTrial) replace(ctx context.Context) error {
	out, err := command(ctx, t.site.binary, "upgrade", "--config", filepath.Join(t.site.dir, "sluice.yaml")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, tail(out))
	}
	var pid int
	if _, err := fmt.Sscanf(string(out), "process %d serves", &pid); err != nil {
		return fmt.Errorf("sluice upgrade says %q", out)
	}
	t.node.edge.root = pid
	return nil
}

// retry calls do until it succeeds, for as long as a start may take.
func retry(ctx context.Context, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		err := do()
		if err == nil {
			return nil
		}
		if pause(ctx, pollInterval) != nil {
			return err
		}
	}
}

// begin starts the clients.
func (t *upgradesTrial) begin(ctx context.Context) {
	for _, proto := range []string{"h1", "h2", "h3"} {
		for i := range upgradesClients {
			t.running.Go(func() { t.ask(ctx, proto, i%2 == 1) })
		}
	}
	for what, l := range upgradesLoads() {
		t.running.Go(func() { t.load(ctx, what, l) })
	}
	t.running.Go(func() {
		for !t.over() && ctx.Err() == nil {
			t.note("mapped", t.connect(ctx, t.node.edge.addrs[serviceEcho]))
		}
	})
	for range upgradesSessions {
		t.running.Go(func() { t.session(ctx) })
	}
}

// ask makes one request after the other, each by a connection of its own if fresh.
func (t *upgradesTrial) ask(ctx context.Context, proto string, fresh bool) {
	rt, closeIdle := t.transport(proto)
	defer closeIdle()
	url := requestURL("https", t.node.edge.addrs[serviceHTTPS])
	for !t.over() && ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(ctx, verifyLimit)
		t.note(proto, get(ctx, rt, url))
		cancel()
		if fresh {
			closeIdle()
		}
	}
}

func get(ctx context.Context, rt http.RoundTripper, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != bodySize || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d and %d bytes (%w)", resp.StatusCode, n, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return nil
}

func (t *upgradesTrial) transport(proto string) (rt http.RoundTripper, closeIdle func()) {
	conf := &tls.Config{RootCAs: t.node.edge.roots, ServerName: host}
	addr := t.node.edge.addrs[serviceHTTPS]
	if proto == "h3" {
		c := t.h3Client(conf)
		return c, c.CloseIdleConnections
	}
	var protocols http.Protocols
	protocols.SetHTTP1(proto == "h1")
	protocols.SetHTTP2(proto == "h2")
	tr := &http.Transport{Protocols: &protocols, TLSClientConfig: conf, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialTCP(ctx, addr) }}
	return tr, tr.CloseIdleConnections
}

// connect opens a connection to a mapped port, and has a line back.
func (t *upgradesTrial) connect(ctx context.Context, addr netip.AddrPort) error {
	c, err := dialTCP(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(verifyLimit))
	return echoLine(c, bufio.NewReader(c))
}

func echoLine(w io.Writer, r *bufio.Reader) error {
	if _, err := io.WriteString(w, "hello\n"); err != nil {
		return err
	}
	got, err := r.ReadString('\n')
	if err == nil && got != "hello\n" {
		err = fmt.Errorf("a line came back as %q", got)
	}
	return err
}

// session is somebody's ssh: a connection that stays, with a line now and then.
func (t *upgradesTrial) session(ctx context.Context) {
	c, err := dialTCP(ctx, t.node.edge.addrs[serviceEcho])
	if err == nil {
		defer c.Close()
		for r := bufio.NewReader(c); err == nil && !t.over() && ctx.Err() == nil; {
			c.SetDeadline(time.Now().Add(verifyLimit))
			if err = echoLine(c, r); err == nil {
				t.lines.Add(1)
				err = pause(ctx, 200*time.Millisecond)
			}
		}
	}
	if err != nil && ctx.Err() == nil {
		t.cut.Add(1)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.tell(fmt.Errorf("a session: %w", err))
	}
}

// filesOf returns how many files a process has open.
func filesOf(pid int) (int, error) {
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(files), err
}

// othersIn returns how many processes of a group there are besides one, once that
// is none or they have had their time.
func othersIn(ctx context.Context, pgid, but int) (n int, err error) {
	for end := time.Now().Add(upgradesEnd); ; {
		all, err := groupOf(pgid)
		if err != nil {
			return 0, err
		}
		n = 0
		for _, pid := range all {
			if pid != but {
				n++
			}
		}
		if n == 0 || time.Now().After(end) {
			return n, nil
		}
		if err := pause(ctx, pollInterval); err != nil {
			return n, err
		}
	}
}

func (r *upgradesResult) total(of map[string]int64) (n int64) {
	for _, some := range of {
		n += some
	}
	return n
}

func (r *upgradesResult) section() string {
	took := percentiles(append([]float64(nil), r.Took...), 50, 100)
	return align([][]string{
		{fmt.Sprintf("%d upgrades in a row under load", r.Upgrades), ""},
		{"sluice upgrade took: p50, longest", figure(took[0]) + " ms, " + figure(took[1]) + " ms"},
		{"requests and connections to mapped ports; failed ones", fmt.Sprintf("%d; %d", r.total(r.Requests), r.total(r.Failed))},
		{"by client", encoded(r.Requests)},
		{"HTTP/3 requests whose client had closed the connection at GOAWAY itself, made again", fmt.Sprint(r.Again)},
		{fmt.Sprintf("of %d sessions were cut; lines over them", r.Sessions), fmt.Sprintf("%d; %d", r.Cut, r.Lines)},
		{"processes left besides the last", fmt.Sprint(r.Left)},
		{"open files: the first process, and one that takes over after the load", fmt.Sprintf("%d, %d", r.Files[0], r.Files[1])},
		{"what went wrong first", orNone(r.Errors)},
	})
}

func encoded(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return strings.NewReplacer(`"`, "", "{", "", "}", "", ",", ", ", ":", " ").Replace(string(b))
}

func (r *upgradesResult) bars() []bar {
	bad := r.total(r.Failed)
	return []bar{
		{"upgrades: failed requests and refused connections", "0", fmt.Sprint(bad), bad == 0},
		{"upgrades: sessions cut", "0", fmt.Sprint(r.Cut), r.Cut == 0},
		{"upgrades: processes left", "0", fmt.Sprint(r.Left), r.Left == 0},
		// The connection to the process before and that for its HTTP/3 packets
		// are closed when it is looked whether it is there still.
		{"upgrades: files more than at the start", "≤ 2", fmt.Sprint(r.Files[1] - r.Files[0]), r.Files[1]-r.Files[0] <= 2},
	}
}

func (r *upgradesResult) failures() []string { return nil }
