package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// TestThousandEditsBesideLiveSessions edits the ports around fifty sessions, and
// what of their own mappings does not withdraw them, a thousand times as fast as
// etcd takes it. No session may be cut or lose a byte, and afterwards every port
// does what was put last.
func TestThousandEditsBesideLiveSessions(t *testing.T) {
	eachPortsMode(t, func(t *testing.T, n *node) {
		const editors, perPort = 10, 5
		n.leavesNoFile()
		backends := map[string]string{"echo": startRaw(t, echoAll), "one": startLines(t, "one"), "two": startLines(t, "two")}
		var finish []func() int64
		for i := range editors {
			n.mustPut(fmt.Sprintf("ports/tcp/%d", n.port(i)), backends["echo"])
			for range perPort {
				c := dial(t, n.port(i))
				c.SetDeadline(time.Time{}) // for as long as it takes
				finish = append(finish, startSlowPump(t, c, 20*time.Millisecond, 2000))
			}
		}
		etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{n.Etcd}, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		defer etcd.Close()
		all := make([]*editor, editors)
		var editing sync.WaitGroup
		for i := range all {
			all[i] = &editor{t: t, etcd: etcd, backends: backends, held: n.port(i), want: map[int]string{}}
			for k := i + editors; k < mappedPerNode-1; k += editors { // the last is of leavesNoFile
				all[i].free = append(all[i].free, n.port(k))
			}
			editing.Go(func() { all[i].edit(100) })
		}
		editing.Wait()
		n.put(fmt.Sprintf("ports/udp/%d", n.port(0)), "192.0.2.1:22") // all edits are in force before it
		for _, ed := range all {
			for port, name := range ed.want {
				if name != "" {
					visit(t, port, name, "after all the edits")
				} else if err := dialRefused(port); err != nil {
					t.Error(err)
				}
			}
		}
		for i, f := range finish {
			if f() == 0 {
				t.Errorf("nothing moved on session %d", i)
			}
		}
	})
}

// editor edits a port with sessions, and some without, that are its alone.
type editor struct {
	t        *testing.T
	etcd     *clientv3.Client
	backends map[string]string
	held     int
	free     []int
	want     map[int]string // who answers on the free ports; "": nobody
}

func (e *editor) edit(times int) {
	for i := range times {
		port, value := e.held, "nonsense" // refused: the last good value stays in force
		switch rand.IntN(6) {
		case 0:
		case 1, 2:
			value = fmt.Sprintf(`{"backend": %q, "idle_timeout": "1h", "env": "e%d"}`, e.backends["echo"], i)
		case 3:
			port, value = e.free[rand.IntN(len(e.free))], ""
			e.want[port] = ""
		default:
			port = e.free[rand.IntN(len(e.free))]
			e.want[port] = []string{"one", "two"}[rand.IntN(2)]
			value = fmt.Sprintf(`{"backend": %q, "limits": {"connections": %d}}`, e.backends[e.want[port]], 1+i)
		}
		var err error
		if key := fmt.Sprintf("/sluice/ports/tcp/%d", port); value == "" {
			_, err = e.etcd.Delete(e.t.Context(), key)
		} else {
			_, err = e.etcd.Put(e.t.Context(), key, value)
		}
		if err != nil {
			e.t.Errorf("edit of port %d: %v", port, err)
			return
		}
	}
}

// echoAll sends back what it gets, and ends where its client does.
func echoAll(c net.Conn) {
	io.Copy(c, c)
	c.(*net.TCPConn).CloseWrite()
}
