package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// ask sends a request to the node's control API.
func (n *node) ask(token, method, path, body string) (status int, answer string) {
	n.t.Helper()
	req, err := http.NewRequestWithContext(n.t.Context(), method, "http://"+n.Admin+"/api/v1"+path, strings.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// newToken makes a token that the node knows when it returns.
func (n *node) newToken(name string, args ...string) string {
	n.t.Helper()
	out, _ := n.keyCommand(0, append([]string{"token", "create", name}, args...)...)
	token := strings.TrimSpace(out)
	eventually(n.t, "the node to know the token "+name, func() error {
		if status, answer := n.ask(token, "GET", "/environments", ""); status != http.StatusOK {
			return fmt.Errorf("%d %s", status, answer)
		}
		return nil
	})
	return token
}

// TestControlAPI has a program make an environment and end it.
func TestControlAPI(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.edit("data: ./data", "data: ./data\napi: {deny_backends: []}") // environments are on this machine
	n.start()
	_, port, err := net.SplitHostPort(startLines(t, "env"))
	if err != nil {
		t.Fatal(err)
	}
	n.keyCommand(0, "pool", "put", "ssh", fmt.Sprintf(`{"ports": "%d-%d", "backend_port": %s, "access": {"command": "ssh -p ${port} root@${env}.ssh.x-gpu.com"}}`, n.port(0), n.port(3), port))
	token := n.newToken("platform", "--role", "operator", "--envs", "a")
	admin := n.newToken("admin", "--role", "admin")

	status, answer := n.ask(token, "POST", "/environments?wait=applied", `{"id": "a1", "backend": "127.0.0.1", "services": {"ssh": {"secrets": {"password": "hunter2"}}}}`)
	if status != http.StatusCreated {
		t.Fatalf("%d %s", status, answer)
	}
	s := openSession(t, n.port(0))
	s.want("env", "the port is open when the answer comes")
	for path, want := range map[string]string{"/flows?env=a1": `"env":"a1"`, fmt.Sprintf("/explain?port=tcp/%d", n.port(0)): "127.0.0.1:" + port, "/status": `"name":"test"`} {
		if status, answer := n.ask(admin, "GET", path, ""); status != http.StatusOK || !strings.Contains(answer, want) {
			t.Errorf("%s: %d %s", path, status, answer)
		}
	}
	if value, _ := n.get("envs/a1"); value == "" || strings.Contains(value, "hunter2") {
		t.Errorf("the record is %s", value)
	}
	status, answer = n.ask(token, "GET", "/environments/a1/access", "")
	var access struct {
		Data struct {
			Info map[string]struct {
				Port    int
				Command string
				Secrets map[string]string
			} `json:"access_info"`
		}
	}
	if err := json.Unmarshal([]byte(answer), &access); err != nil || status != http.StatusOK {
		t.Fatalf("%d %s: %v", status, answer, err)
	}
	if a := access.Data.Info["ssh"]; a.Port != n.port(0) || a.Command != fmt.Sprintf("ssh -p %d root@a1.ssh.x-gpu.com", n.port(0)) || a.Secrets["password"] != "hunter2" {
		t.Errorf("access: %s", answer)
	}
	if status, answer := n.ask(token, "POST", "/environments", `{"id": "b1", "backend": "127.0.0.1", "services": {"ssh": {}}}`); status != http.StatusForbidden {
		t.Errorf("out of its scope: %d %s", status, answer)
	}
	out, _ := n.keyCommand(0, "history", fmt.Sprintf("ports/tcp/%d", n.port(0)))
	eventually(t, "the history", func() error {
		if out, _ = n.keyCommand(0, "history", fmt.Sprintf("ports/tcp/%d", n.port(0))); !strings.Contains(out, "token platform") {
			return fmt.Errorf("history said %s", out)
		}
		return nil
	})

	// A port that another program has is one of the environment, and dead.
	holder, err := net.Listen("tcp", loopback(n.port(3)))
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	busy := fmt.Sprintf(`{"id": "abusy", "backend": "127.0.0.1", "services": {"ssh": {"port": %d}}}`, n.port(3))
	status, answer = n.ask(token, "POST", "/environments?wait=applied", busy)
	if want := fmt.Sprintf(`"answers":[{"node":"test","key":"ports/tcp/%d","verdict":{"state":"degraded",`, n.port(3)); status != http.StatusCreated || !strings.Contains(answer, want) {
		t.Errorf("%d %s, want %s", status, answer, want)
	}
	out, errOut := n.keyCommand(1, "env", "create", "--file", n.write("busy.json", busy))
	if !strings.Contains(out, "degraded: port_busy: ") || !strings.Contains(errOut, "environment abusy is there, and nodes do not serve all of it") {
		t.Errorf("env create said %s%s", out, errOut)
	}

	// Another token in its place: both are good, and then neither.
	out, _ = n.keyCommand(0, "token", "rotate", "platform")
	renewed := strings.TrimSpace(out)
	eventually(t, "the new token", func() error {
		if status, answer := n.ask(renewed, "GET", "/environments/a1", ""); status != http.StatusOK {
			return fmt.Errorf("%d %s", status, answer)
		}
		return nil
	})
	if status, answer := n.ask(token, "DELETE", "/environments/a1?wait=applied", ""); status != http.StatusOK {
		t.Errorf("with the former token: %d %s", status, answer)
	}
	s.wantCut()
	out, _ = n.keyCommand(0, "token", "ls")
	if !strings.Contains(out, "platform") || strings.Contains(out, renewed) {
		t.Errorf("token ls said %s", out)
	}
	n.keyCommand(0, "token", "rm", "platform")
	eventually(t, "the end of the token", func() error {
		if status, answer := n.ask(renewed, "GET", "/environments", ""); status != http.StatusUnauthorized {
			return fmt.Errorf("%d %s", status, answer)
		}
		return nil
	})
}
