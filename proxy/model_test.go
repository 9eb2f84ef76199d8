package proxy_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"

	"github.com/remotegpu/sluice/router"
)

// ports of the model test, which has a network of its own.
const modelFirst, modelPorts = 20000, 12

// portModel is what each port should do, and who else has some of them.
type portModel struct {
	mapped  map[int]string // the name that the mapping's backend says
	foreign map[int]*foreignServer
	// settling are the ports that somebody else has let go of: they are opened
	// soon, not at once.
	settling map[int]bool
}

// TestEngineAgainstModel applies random batches of edits, while other programs
// come and go, and wants every port after each to do what a map says.
func TestEngineAgainstModel(t *testing.T) {
	eachMode(t, func(t *testing.T, e *edge) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		m := &portModel{map[int]string{}, map[int]*foreignServer{}, map[int]bool{}}
		t.Cleanup(func() {
			for _, f := range m.foreign {
				f.close()
			}
		})
		names := []string{"one", "two", "three"}
		backends := map[string]string{}
		for _, name := range names {
			backends[name] = greeter(t, name)
		}
		for range 60 {
			for range 1 + random.IntN(6) {
				m.edit(t, e, random, names[random.IntN(len(names))], backends)
			}
			e.apply()
			m.check(t, e.rev)
		}
	})
}

// edit makes one edit of a random port, in the engine's next table and here.
func (m *portModel) edit(t *testing.T, e *edge, random *rand.Rand, name string, backends map[string]string) {
	t.Helper()
	port := modelFirst + random.IntN(modelPorts)
	switch random.IntN(7) {
	case 0:
		e.builder.DeleteMapping(router.TCP, port)
		delete(m.mapped, port)
	case 1: // over before it began
		e.set(t, port, fmt.Sprintf(`{"backend": %q, "expires_at": "2020-01-01T00:00:00Z"}`, backends[name]))
		delete(m.mapped, port)
	case 2: // another program comes, or goes
		m.visit(t, e, port)
	case 3: // deleted and put again in one batch
		e.builder.DeleteMapping(router.TCP, port)
		fallthrough
	default:
		e.set(t, port, fmt.Sprintf(`{"backend": %q, "on_delete": %q}`, backends[name], []string{"cut", "keep"}[random.IntN(2)]))
		m.mapped[port] = name
	}
}

// visit has another program take a port that nothing is mapped to, or leave it.
func (m *portModel) visit(t *testing.T, e *edge, port int) {
	t.Helper()
	if f := m.foreign[port]; f != nil {
		f.close()
		delete(m.foreign, port)
		m.settling[port] = true
		return
	}
	e.apply() // the edits so far, so that the port is free if it should be
	if m.mapped[port] == "" {
		m.foreign[port] = newForeignServer(t, port)
	}
}

// check compares what every port does with what it should do.
func (m *portModel) check(t *testing.T, rev int64) {
	t.Helper()
	for port := modelFirst; port < modelFirst+modelPorts; port++ {
		want := m.mapped[port]
		if m.foreign[port] != nil {
			want = "foreign"
		}
		err := doesAs(port, want)
		if err != nil && m.settling[port] {
			eventually(t, fmt.Sprintf("port %d settles", port), func() error { return doesAs(port, want) })
			err = nil
		}
		delete(m.settling, port)
		if err != nil {
			t.Fatalf("revision %d: %v", rev, err)
		}
	}
}

// doesAs reports whether a port greets by a name, or refuses where that is "".
func doesAs(port int, want string) error {
	got, err := greeting(port)
	switch {
	case want == "" && errors.Is(err, syscall.ECONNREFUSED), want != "" && got == want && err == nil:
		return nil
	case want == "":
		return fmt.Errorf("port %d answers %q, %v, want a refusal", port, got, err)
	}
	return fmt.Errorf("port %d answers %q, %v, want %q", port, got, err, want)
}

// set puts a mapping without applying it.
func (e *edge) set(t *testing.T, port int, value string) {
	t.Helper()
	m, err := router.ParseMapping(router.TCP, port, []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	e.builder.SetMapping(m)
}

// foreignServer greets on a port of its own choice.
type foreignServer struct {
	ln      net.Listener
	running sync.WaitGroup
}

func newForeignServer(t *testing.T, port int) *foreignServer {
	t.Helper()
	ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	f := &foreignServer{ln: ln}
	f.running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "foreign\n")
			c.Close()
		}
	})
	return f
}

func (f *foreignServer) close() {
	f.ln.Close()
	f.running.Wait()
}
