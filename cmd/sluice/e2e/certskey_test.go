package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// keyUses returns what `sluice certs key ls` lists, by ID.
func (n *node) keyUses() (roles map[string]string, values map[string]int, first string) {
	n.t.Helper()
	out, _ := n.keyCommand(0, "certs", "key", "ls", "-o", "json")
	roles, values = map[string]string{}, map[string]int{}
	for line := range strings.Lines(out) {
		var k struct {
			ID, Role string
			Values   int
			LackedBy []string `json:"lacked_by"`
		}
		if err := json.Unmarshal([]byte(line), &k); err != nil {
			n.t.Fatalf("%v: %s", err, line)
		}
		if first == "" {
			first = k.ID
		}
		roles[k.ID], values[k.ID] = k.Role, k.Values
		if len(k.LackedBy) > 0 {
			roles[k.ID] += ", lacked by " + strings.Join(k.LackedBy, ", ")
		}
	}
	return roles, values, first
}

// roleOf waits until `sluice certs key ls` shows a key in a role.
func (n *node) roleOf(id, want string) {
	n.t.Helper()
	eventually(n.t, "key "+id+" is one that "+want, func() error {
		roles, _, _ := n.keyUses()
		if roles[id] != want {
			return fmt.Errorf("key ls: %v", roles)
		}
		return nil
	})
}

// TestClusterKeyByCommands rotates the key that a node made by itself, while it
// and another one run.
func TestClusterKeyByCommands(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	file := filepath.Join(n.dir, "data", "cluster.key")
	eventually(t, "the node has made a key", func() error {
		info, err := os.Stat(file)
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Fatalf("its file has mode %v", info.Mode())
		}
		return err
	})
	other := newNode(t)
	other.useEtcdOf(n)
	other.edit("node: test", "node: other")
	shareClusterKey(t, n, other)
	other.start()
	roles, values, before := n.keyUses()
	if len(roles) != 1 || roles[before] != "seals" || values[before] == 0 {
		t.Fatalf("key ls: %v, %v", roles, values)
	}
	var added struct{ Key string }
	out, _ := n.keyCommand(0, "certs", "key", "add", "-o", "json")
	if err := json.Unmarshal([]byte(out), &added); err != nil {
		t.Fatal(err)
	}
	if _, errOut := n.keyCommand(2, "certs", "key", "rm", before, "--force"); !strings.Contains(errOut, "seals: have another one") {
		t.Errorf("rm of the key that seals: %s", errOut)
	}
	n.roleOf(added.Key, "opens, lacked by other")
	_, errOut := n.keyCommand(1, "certs", "key", "use", added.Key)
	if want := fmt.Sprintf("could not open what key %s seals: other has %s. Copy ", added.Key, before); !strings.Contains(errOut, want) {
		t.Errorf("use of a key that a node lacks: %s, want %s", errOut, want)
	}
	if _, _, first := n.keyUses(); first != before {
		t.Errorf("key %s seals, though a node lacks it", first)
	}
	shareClusterKey(t, n, other)
	n.roleOf(added.Key, "opens")
	n.keyCommand(0, "certs", "key", "use", added.Key)
	other.stop() // it would go on to seal with the old one
	if _, errOut = n.keyCommand(1, "certs", "key", "rm", before); !strings.Contains(errOut, " in etcd sealed with key "+before) {
		t.Errorf("rm of a key that something is sealed with: %s", errOut)
	}
	// The node may write with the old key until it has read the file.
	eventually(t, "nothing is sealed with the old key", func() error {
		n.keyCommand(0, "certs", "reseal")
		code, _, errOut := runSluice(t, n.dir, "certs", "key", "rm", before, "--config", "sluice.yaml")
		if code != 0 {
			return errors.New(errOut)
		}
		return nil
	})
	roles, values, first := n.keyUses()
	if len(roles) != 1 || first != added.Key || values[first] == 0 {
		t.Errorf("key ls after the rotation: %v, %v", roles, values)
	}
	n.keyCommand(2, "certs", "key", "use", before)

	readyz := func() string {
		_, body, err := n.adminGet("/readyz")
		if err != nil {
			return err.Error()
		}
		return body
	}
	// Without its key the node says what it lacks, and serves.
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	n.keyCommand(2, "certs", "reseal")
	n.stop()
	// Without etcd nobody can be asked.
	n.keyCommand(1, "certs", "key", "use", added.Key, "--cluster-key", file+".away")
	n.keyCommand(0, "certs", "key", "use", added.Key, "--cluster-key", file+".away", "--force")
	n.start()
	eventually(t, "the node says that it lacks the key", func() error {
		if body := readyz(); !strings.Contains(body, "lacks the cluster key "+added.Key) {
			return fmt.Errorf("readiness is %s", body)
		}
		return nil
	})
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the node has made another key: %v", err)
	}
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node has its key again", func() error {
		if body := readyz(); strings.Contains(body, "cluster key") {
			return fmt.Errorf("readiness is %s", body)
		}
		return nil
	})
}

// TestGenerateClusterKey makes keys where no node is.
func TestGenerateClusterKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	code, out, errOut := runSluice(t, dir, "certs", "key", "generate")
	if code != 0 || strings.Count(out, "\n") != 3 {
		t.Errorf("generate: exit code %d, %d lines, %s", code, strings.Count(out, "\n"), errOut)
	}
	code, out, errOut = runSluice(t, dir, "certs", "key", "generate", "cluster.key")
	text, err := os.ReadFile(filepath.Join(dir, "cluster.key"))
	if code != 0 || err != nil {
		t.Fatalf("generate to a file: exit code %d, %s, %v", code, errOut, err)
	}
	secret := strings.Fields(string(text))[len(strings.Fields(string(text)))-1]
	if strings.Contains(out+errOut, secret) {
		t.Error("the key is printed although it goes to a file")
	}
	code, _, errOut = runSluice(t, dir, "certs", "key", "generate", "cluster.key")
	if again, err := os.ReadFile(filepath.Join(dir, "cluster.key")); code != 1 || err != nil || string(again) != string(text) || !strings.Contains(errOut, "key add") {
		t.Errorf("generate over a file: exit code %d, %s, %v", code, errOut, err)
	}
}
