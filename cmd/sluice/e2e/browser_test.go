package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
)

// A real browser shows the demo page, and the page's WebSocket works.
func TestBrowser(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	page := n.url("demo.localhost", "/")

	t.Run("trusting the development CA", func(t *testing.T) {
		b := startBrowser(t, n.caFile())
		b.shows(page, "It flows.", "by h2.", "WebSocket: hello through the edge")
	})
	t.Run("trusting nobody in particular", func(t *testing.T) {
		b := startBrowser(t, "")
		b.shows(page, "ERR_CERT_AUTHORITY_INVALID")
	})
	t.Run("by HTTP/3", func(t *testing.T) {
		// Chromium speaks QUIC only with certificates of public authorities,
		// or with those whose key it is told of. A key says nothing of names,
		// so the CA is trusted as well, for the WebSocket's own connection.
		n := n.in(t)
		leaf := n.dialTLS("demo.localhost").ConnectionState().PeerCertificates[0]
		key := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
		b := startBrowser(t, n.caFile(),
			fmt.Sprintf("--origin-to-force-quic-on=demo.localhost:%d", n.HTTPS),
			"--ignore-certificate-errors-spki-list="+base64.StdEncoding.EncodeToString(key[:]))
		b.shows(page, "It flows.", "by h3.", "WebSocket: hello through the edge")
	})
	for _, proto := range []string{"h2", "h3"} {
		n.accessRecord(map[string]any{"route": "demo", "path": "/", "proto": proto, "status": 200})
	}
}

// browser is a headless Chromium with a home and a profile of its own, driven
// by the DevTools protocol.
type browser struct {
	t    *testing.T
	conn *websocket.Conn
	last int // id of the last command
}

// startBrowser starts a browser that trusts the root certificate in caFile, if
// it is not empty, as a user would have it do: by the store of roots in their
// home.
func startBrowser(t *testing.T, caFile string, flags ...string) *browser {
	t.Helper()
	home, err := os.MkdirTemp("", "sluice-browser-") // t.TempDir would fail the test if a child still wrote
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	if caFile != "" {
		trust(t, home, caFile)
	}
	cmd := exec.Command("chromium", append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--no-proxy-server",
		"--user-data-dir=" + filepath.Join(home, "profile"), "--remote-debugging-port=0",
	}, append(flags, "about:blank")...)...)
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME=", "XDG_CACHE_HOME=", "XDG_DATA_HOME=")
	p := startProcess(t, cmd)
	var address string
	eventually(t, "the browser says where it is driven", func() error {
		select {
		case <-p.exited:
			t.Fatalf("the browser exited with %d", p.code)
		default:
		}
		m := regexp.MustCompile(`DevTools listening on (ws://\S+)`).FindStringSubmatch(p.stderr.String())
		if m == nil {
			return fmt.Errorf("it said %q", p.stderr)
		}
		address = m[1]
		return nil
	})
	conn, _, err := websocket.Dial(within(t), address, nil)
	if err != nil {
		t.Fatalf("drive the browser: %v", err)
	}
	conn.SetReadLimit(-1)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		conn.Write(ctx, websocket.MessageText, []byte(`{"id":0,"method":"Browser.close"}`))
		select {
		case <-p.exited: // its children too: nothing writes to its home any more
		case <-ctx.Done():
		}
		conn.CloseNow()
	})
	return &browser{t: t, conn: conn}
}

// trust puts a root certificate into the store that Chromium reads.
func trust(t *testing.T, home, caFile string) {
	t.Helper()
	store := filepath.Join(home, ".pki", "nssdb")
	if err := os.MkdirAll(store, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-N", "--empty-password"},
		{"-A", "-t", "C,,", "-n", "Sluice development CA", "-i", caFile},
	} {
		if out, err := exec.Command("certutil", append([]string{"-d", "sql:" + store}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("certutil %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// shows opens a page and waits until its text holds all of want.
func (b *browser) shows(url string, want ...string) {
	b.t.Helper()
	b.open(url).shows(want...)
}

// page is one that a browser has open.
type page struct {
	*browser
	url, session string
}

// open opens a page.
func (b *browser) open(url string) *page {
	b.t.Helper()
	var target struct{ TargetID string }
	var session struct{ SessionID string }
	err := b.command("", "Target.createTarget", map[string]any{"url": url}, &target)
	if err == nil {
		err = b.command("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &session)
	}
	if err != nil {
		b.t.Fatalf("open a page: %v", err)
	}
	return &page{b, url, session.SessionID}
}

// shows waits until the page's text holds all of want.
func (p *page) shows(want ...string) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%s shows %q", p.url, want), func() error {
		var answer struct{ Result struct{ Value string } }
		err := p.command(p.session, "Runtime.evaluate",
			map[string]any{"expression": "document.documentElement.textContent", "returnByValue": true}, &answer)
		if err != nil {
			return err // the page may be on its way
		}
		for _, text := range want {
			if !strings.Contains(answer.Result.Value, text) {
				return fmt.Errorf("%q is not in %q", text, answer.Result.Value)
			}
		}
		return nil
	})
}

// command has the browser do something and waits for the outcome.
func (b *browser) command(session, method string, params map[string]any, result any) error {
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	b.last++
	command := map[string]any{"id": b.last, "method": method, "params": params}
	if session != "" {
		command["sessionId"] = session
	}
	if err := wsjson.Write(ctx, b.conn, command); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	for {
		var answer struct {
			ID     int
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		if err := wsjson.Read(ctx, b.conn, &answer); err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		switch {
		case answer.ID != b.last: // an event
		case answer.Error != nil:
			return fmt.Errorf("%s: %s", method, answer.Error.Message)
		default:
			return json.Unmarshal(answer.Result, result)
		}
	}
}
