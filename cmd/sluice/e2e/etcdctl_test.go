package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestEveryEtcdctl has both the etcdctl of Debian, which is 3.4, and that of the
// node's own etcd do what the documents have people do.
func TestEveryEtcdctl(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	current, err := currentEtcdctl()
	if err != nil {
		t.Fatal(err)
	}
	debian, err := exec.LookPath("etcdctl")
	if err != nil {
		t.Fatal(err)
	}
	for i, program := range []string{debian, current} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			n := n.in(t)
			if program != debian {
				n.etcdctlProgram = program
			}
			t.Log(n.etcdctl("version"))
			key := fmt.Sprintf("ports/tcp/%d", n.port(i))
			n.mustPut(key, startLines(t, "first"))
			openSession(t, n.port(i)).want("first", "hello")
			n.mustPut(key, startLines(t, "second"))
			openSession(t, n.port(i)).want("second", "hello")
			if v := n.put(key, "nonsense"); !strings.HasPrefix(v, "refused: ") {
				t.Errorf("the verdict on nonsense is %s", v)
			}
			if out := n.etcdctl("get", "--prefix", "/sluice/verdicts/"); !strings.Contains(out, "refused: ") {
				t.Errorf("the verdicts are\n%s", out)
			}
			if out := n.etcdctl("get", "--prefix", "--keys-only", "/sluice/ports/"); !strings.Contains(out, "/sluice/"+key) {
				t.Errorf("the keys are\n%s", out)
			}
			n.delete(key)
			eventually(t, "the port is closed", func() error { return dialRefused(n.port(i)) })

			// One deletes by a prefix; the script of what was in force brings it back.
			for j := range 4 {
				n.etcdctl("put", fmt.Sprintf("/sluice/routes/r%d", j), fmt.Sprintf(`{"host": "r%d.localhost", "respond": {"body": "it's $HOME %d"}}`, j, j))
			}
			n.wantVerdict("routes/r3", "applied@")
			last, script := n.modRevision("/sluice/routes/r3"), ""
			eventually(t, "the state is on disk", func() error {
				_, script, _ = runSluice(t, n.dir, "state", "data/state", "--endpoints", n.Etcd)
				var keys, rev int64
				if _, err := fmt.Sscanf(script, "# %d keys as of revision %d", &keys, &rev); err != nil || rev < last {
					return fmt.Errorf("it is as of revision %d, not %d, %v", rev, last, err)
				}
				return nil
			})
			n.etcdctl("del", "--prefix", "/sluice/routes/")
			sh := exec.Command("sh")
			bin := t.TempDir()
			if err := os.Symlink(program, filepath.Join(bin, "etcdctl")); err != nil {
				t.Fatal(err)
			}
			sh.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
			sh.Stdin = strings.NewReader(script)
			if out, err := sh.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			n.wantVerdict("routes/r3", "applied@")
			eventually(t, "a route is back", func() error {
				if body := n.curl(n.url("r3.localhost", "/")); body != "it's $HOME 3" {
					return fmt.Errorf("it answers %q", body)
				}
				return nil
			})
			n.etcdctl("compact", fmt.Sprint(n.modRevision("/sluice/routes/r3")))
			n.etcdctl("snapshot", "save", filepath.Join(t.TempDir(), "snap"))
			n.etcdctl("endpoint", "health")
			n.etcdctl("del", "--prefix", "/sluice/routes/r")
		})
	}
}
