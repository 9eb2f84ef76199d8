package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The backends of the platform's files, on the backends' host.
const (
	platformEnv   = "10.2.0.11" // all containers
	platformAPI   = "10.8.0.2"
	platformRDP   = "10.8.0.7"
	nginxModule   = "/usr/lib/nginx/modules/ngx_stream_module.so"
	platformFiles = "../nginx/testdata/platform"
)

// TestImportFromNginxAnswersAlike asks nginx with the platform's files, and then
// a node with what sluice import nginx has made of them, the same questions.
func TestImportFromNginxAnswersAlike(t *testing.T) {
	net := newNetwork(t)
	net.backends.ip("addr add " + platformAPI + "/32 dev tono\naddr add " + platformRDP + "/32 dev tono")
	net.node.ip("route add 10.8.0.0/24 dev tobe")
	names := startNameServer(t, net.backends)
	for _, name := range []string{"env-abc123", "k2v9d0m4x7qz1b3c-container", "6hiflzwte2xnkroq-container", "foo-container"} {
		names.set(name, platformEnv)
	}
	startPlatformBackends(t, net.backends)

	n := newNode(t, withHost(net.node, backendAddr(0)))
	stop := startNginx(t, n)
	before := askPlatform(t, net)
	stop()

	importPlatform(t, n)
	after := askPlatform(t, net)

	// What import says that it differs.
	for _, known := range []struct{ question, nginx, sluice string }{
		{"GET https://env-abc123.remotegpu.com/code/x?y=1", "200 8080 GET / ", "200 8080 GET /x?y=1 "},
		{"GET https://other.example.com/", "200 Environment: \n", "404 no route answers for this host and path\n"},
		{"GET https://env-abc123.remotegpu.com/jupyterlab", "200 8888 GET /jupyterlab env-abc123.remotegpu.com", "200 Environment: abc123\n"},
	} {
		if !strings.HasPrefix(before[known.question], known.nginx) || !strings.HasPrefix(after[known.question], known.sluice) {
			t.Errorf("%s: nginx %q, sluice %q", known.question, before[known.question], after[known.question])
		}
		delete(before, known.question)
		delete(after, known.question)
	}
	if len(before) < 20 {
		t.Errorf("only %d questions", len(before))
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("answers (-nginx +sluice):\n%s", diff)
	}
}

// startPlatformBackends starts what the platform's files lead to.
func startPlatformBackends(t *testing.T, h *host) {
	t.Helper()
	for _, addr := range []string{at(platformEnv, 8888), at(platformEnv, 8080), at(platformAPI, 3000)} {
		_, port, _ := net.SplitHostPort(addr)
		ln := h.listen(addr)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") == "websocket" {
				upgradeAndEcho(w)
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			host := r.Host
			if port != "8888" {
				host = "" // nginx has it the upstream's there, which import tells
			}
			fmt.Fprintf(w, "%s %s %s %s %d", port, r.Method, r.RequestURI, host, len(body))
		})}
		serve(t, srv, ln)
	}
	serveRaw(t, h.listen(at(platformEnv, 22)), func(c net.Conn) {
		fmt.Fprint(c, "SSH-2.0-there\r\n")
		io.Copy(c, c)
	})
	serveRaw(t, h.listen(at(platformRDP, 3389)), func(c net.Conn) { io.Copy(c, c) })
	serveRaw(t, h.listen(at(platformEnv, 8443)), func(c net.Conn) {
		line, err := bufio.NewReader(c).ReadString('\n')
		if words := strings.Fields(line); err == nil && len(words) > 4 {
			fmt.Fprintf(c, "%s %s %s %s", words[0], words[1], words[2], words[5])
		}
	})
	var pc net.PacketConn
	if err := h.do(func() (err error) {
		pc, err = net.ListenPacket("udp", at(platformRDP, 3389))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for buf := make([]byte, 2048); ; {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(buf[:n], from)
		}
	}()
	t.Cleanup(func() {
		pc.Close()
		<-ended
	})
}

func upgradeAndEcho(w http.ResponseWriter) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	io.Copy(c, rw)
}

// startNginx starts Debian's nginx on the node's host, with the platform's files
// as far as it knows them; what they leave to the machine is filled in. The
// function returned ends it.
func startNginx(t *testing.T, n *node) (stop func()) {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile(filepath.Join(platformFiles, "nginx.conf"))
	if err != nil {
		t.Fatal(err)
	}
	makeCertificate(t, dir)
	conf := strings.NewReplacer(
		"user www-data;", "load_module "+nginxModule+"; daemon off; pid "+dir+"/pid; error_log "+dir+"/error.log; user root;",
		"http2 on;", "", "listen 443 quic;", "", // newer than Debian's
		"/etc/nginx/ssl/remotegpu.com", dir+"/cert", "/etc/nginx/ssl/newapi", dir+"/cert", "/etc/nginx/", dir+"/", "/var/log/nginx/", dir+"/",
		"stream {\n", "stream {\n resolver "+backendAddr(0)+" ipv6=off;\n", // which the platform's files lack
		"http {\n", "http {\n resolver "+backendAddr(0)+" ipv6=off; access_log off; client_body_temp_path "+dir+"/b; proxy_temp_path "+dir+"/p; fastcgi_temp_path "+dir+"/f; uwsgi_temp_path "+dir+"/u; scgi_temp_path "+dir+"/s;\n",
	).Replace(string(text))
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "stream.d"), os.DirFS(filepath.Join(platformFiles, "stream.d"))); err != nil {
		t.Fatal(err)
	}
	// Which has nginx drop the answers of the backend, as import tells.
	rdp := filepath.Join(dir, "stream.d", "port-55389.conf")
	if text, err = os.ReadFile(rdp); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(rdp, bytes.ReplaceAll(text, []byte("proxy_responses 0;"), nil), 0o644); err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx" // which the PATH of ordinary users lacks
	}
	own := *n
	own.cmd = exec.Command(program, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"))
	output := &syncBuffer{}
	own.cmd.Stdout, own.cmd.Stderr = output, output
	if err := own.startOnHost(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		own.cmd.Wait() // it is told to end
		close(exited)
	}()
	stop = func() {
		own.cmd.Process.Signal(os.Interrupt) // which it takes for a fast end
		await(t, exited, "the end of nginx")
	}
	t.Cleanup(func() {
		own.cmd.Process.Kill()
		<-exited
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
			t.Logf("nginx said:\n%s%s", output, log)
		}
	})
	eventually(t, "nginx listens", func() error {
		select {
		case <-exited:
			t.Fatalf("nginx ended: %s", output)
		default:
		}
		c, err := n.host.dial(nodeAddr, at(nodeAddr, 443))
		if err == nil {
			c.Close()
		}
		return err
	})
	return stop
}

// makeCertificate writes a certificate that nobody trusts.
func makeCertificate(t *testing.T, dir string) {
	t.Helper()
	out, err := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=test",
		"-keyout", dir+"/cert.key", "-out", dir+"/cert.crt").CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
}

// importPlatform starts n with what import says that sluice.yaml should have, and
// with the keys.
func importPlatform(t *testing.T, n *node) {
	t.Helper()
	code, _, said := runSluice(t, n.dir, "import", "nginx", absolute(t, platformFiles), "--to", "imported")
	if code != 0 {
		t.Fatalf("import exited with %d: %s", code, said)
	}
	if code, out, said := runSluice(t, n.dir, "check", "imported"); code != 0 {
		t.Errorf("check exited with %d: %s%s", code, out, said)
	}
	part, err := os.ReadFile(filepath.Join(n.dir, "imported", "sluice.yaml.part"))
	if err != nil {
		t.Fatal(err)
	}
	yaml := fmt.Sprintf("node: test\ndata: ./data\netcd: {listen: %q}\nadmin: %q\nlocal_ca: true\ndrain_timeout: 100ms\nlog: {access: none}\n%s", n.Etcd, n.Admin, part)
	if err := os.WriteFile(filepath.Join(n.dir, "sluice.yaml"), []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	n.start()
	apply := func(args ...string) string {
		cmd := exec.Command(binary, append([]string{"import", "nginx", absolute(t, platformFiles), "--config", filepath.Join(n.dir, "sluice.yaml")}, args...)...)
		out, err := n.host.run(cmd)
		if err != nil {
			t.Fatalf("import %v: %v\n%s", args, err, out)
		}
		return out
	}
	if out := apply("--dry-run"); !strings.Contains(out, "15 changes; nothing was written") {
		t.Errorf("import --dry-run says %s", out)
	}
	if out := apply("--apply"); !strings.Contains(out, "15 changes made") {
		t.Errorf("import --apply says %s", out)
	}
	if out := apply("--apply"); !strings.Contains(out, "nothing to change: 15 keys as wanted") {
		t.Errorf("import --apply once more says %s", out)
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// askPlatform asks whoever is at the node's address, and returns the answers by
// their questions.
func askPlatform(t *testing.T, nw *network) map[string]string {
	t.Helper()
	answers := map[string]string{}
	for _, q := range []struct{ method, url, body string }{
		{"GET", "http://env-abc123.remotegpu.com/a/b?c=d", ""},
		{"GET", "http://deep.down.x-gpu.com/", ""},
		{"GET", "http://who.example.org/x", ""},
		{"GET", "https://env-abc123.remotegpu.com/", ""},
		{"GET", "https://env-abc123.remotegpu.com/what/ever?x", ""},
		{"GET", "https://env-abc123.remotegpu.com/jupyter", ""},
		{"GET", "https://env-abc123.remotegpu.com/jupyter/tree?x=1&y=%2f", ""},
		{"GET", "https://env-abc123.remotegpu.com/jupyterlab", ""},
		{"PUT", "https://env-abc123.remotegpu.com/jupyter/api/contents", strings.Repeat("x", 3<<20)},
		{"DELETE", "https://env-abc123.remotegpu.com/jupyter/a%20b", ""},
		{"GET", "https://env-abc123.remotegpu.com/code", ""},
		{"GET", "https://env-abc123.remotegpu.com/code/", ""},
		{"GET", "https://env-abc123.remotegpu.com/code/x?y=1", ""},
		{"GET", "https://newapi.tunecoder.example.com/health-proxy", ""},
		{"POST", "https://newapi.tunecoder.example.com/v1/chat/completions", `{"model": "x"}`},
		{"POST", "https://newapi.tunecoder.example.com/v1/files", strings.Repeat("x", 1<<20+1)},
		{"GET", "https://newapi.tunecoder.example.com/a/./b//c?d", ""},
		{"GET", "https://other.example.com/", ""},
		{"GET", "http://k2v9d0m4x7qz1b3c.code.x-gpu.com:56377/raw", ""},
	} {
		answers[q.method+" "+q.url] = askHTTP(t, nw, q.method, q.url, q.body)
	}
	answers["websocket"] = askWebSocket(t, nw)
	for _, sni := range []string{"foo.tls.x-gpu.com", "unknown.example.com"} {
		answers["tls "+sni] = askTLS(t, nw, sni)
	}
	for _, port := range []int{50001, 56376, 60123, 55389, 50002} {
		answers[fmt.Sprintf("tcp %d", port)] = askRaw(t, nw, port)
	}
	answers["udp 55389"] = askUDP(t, nw)
	return answers
}

func askHTTP(t *testing.T, nw *network, method, url, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(within(t), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.URL.Opaque = ""
	tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return nw.clients.dial(clientAddr(0), net.JoinHostPort(nodeAddr, port))
		}}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "failed"
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return "cut short"
	}
	switch {
	case resp.StatusCode == 413:
		text = nil // the words are each proxy's own
	case resp.Header.Get("Location") != "":
		to, err := resp.Location()
		if err != nil {
			return err.Error()
		}
		text = []byte(to.String())
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, text)
}

func askWebSocket(t *testing.T, nw *network) string {
	t.Helper()
	raw, err := nw.clients.dial(clientAddr(0), at(nodeAddr, 443))
	if err != nil {
		return "failed"
	}
	c := tls.Client(raw, &tls.Config{ServerName: "env-abc123.remotegpu.com", InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(c, "GET /jupyter/ws HTTP/1.1\r\nHost: env-abc123.remotegpu.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return "no response"
	}
	echo := make([]byte, 5)
	fmt.Fprint(c, "hello")
	if _, err := io.ReadFull(r, echo); err != nil {
		return "no echo"
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, echo)
}

// askTLS sends a hello that names sni, and returns what comes back.
func askTLS(t *testing.T, nw *network, sni string) string {
	t.Helper()
	c, err := nw.clients.dial(clientAddr(0), at(nodeAddr, 8444))
	if err != nil {
		return "refused"
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	seen := &recorded{Conn: c}
	if err := tls.Client(seen, &tls.Config{ServerName: sni, InsecureSkipVerify: true}).Handshake(); err == nil {
		return "a handshake"
	}
	rest, _ := io.ReadAll(c) // what is left of it says enough
	return seen.read.String() + string(rest)
}

// recorded keeps what is read from a connection.
type recorded struct {
	net.Conn
	read bytes.Buffer
}

func (r *recorded) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.read.Write(p[:n])
	return n, err
}

func askRaw(t *testing.T, nw *network, port int) string {
	t.Helper()
	c, err := nw.clients.dial(clientAddr(0), at(nodeAddr, port))
	if err != nil {
		return "refused"
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if port == 60123 { // HTTP lies behind it
		fmt.Fprint(c, "GET /raw HTTP/1.0\r\n\r\n")
		text, err := io.ReadAll(c)
		if err != nil {
			return "failed after " + string(text)
		}
		_, body, _ := strings.Cut(string(text), "\r\n\r\n")
		return body
	}
	var text bytes.Buffer
	fmt.Fprint(c, "hello")
	for !strings.HasSuffix(text.String(), "hello") { // nginx ends the other direction too when one is at its end
		if _, err := io.CopyN(&text, c, 1); err != nil {
			return "failed after " + text.String()
		}
	}
	return text.String()
}

func askUDP(t *testing.T, nw *network) string {
	t.Helper()
	var c net.Conn
	if err := nw.clients.do(func() (err error) {
		c, err = net.Dial("udp", at(nodeAddr, 55389))
		return err
	}); err != nil {
		return "failed"
	}
	defer c.Close()
	buf := make([]byte, 100)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); { // a datagram may be lost
		fmt.Fprint(c, "hello")
		c.SetReadDeadline(time.Now().Add(time.Second))
		n, err := c.Read(buf)
		if err == nil {
			return string(buf[:n])
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return "failed"
		}
	}
	return "silence"
}
