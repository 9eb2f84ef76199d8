package proxy_test

import (
	"fmt"
	"net"
	"testing"

	"github.com/remotegpu/sluice/router"
)

// TestHealthFollowsTheTable wants exactly the targets checked that the table in
// force wants checked, of mappings and of routes.
func TestHealthFollowsTheTable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	e := newEdge(t)
	backend := fmt.Sprintf(`{"targets":["%v","127.0.0.1:1"],"health":{"interval":"1s"}}`, ln.Addr())
	checked := func(want int) {
		t.Helper()
		if got := e.Health(); len(got) != want {
			t.Errorf("%d targets are checked, want %d: %v", len(got), want, got)
		}
	}
	port := freePort(t)
	e.put(t, port, `{"backend":`+backend+`}`)
	checked(2)
	r, err := router.ParseRoute("web", []byte(`{"host":"web.x.test","backend":{"targets":["127.0.0.1:2"],"health":true}}`))
	if err != nil {
		t.Fatal(err)
	}
	e.builder.SetRoute(r)
	e.apply()
	checked(3)
	eventually(t, "one target is up and another is down", func() error {
		up, down := 0, 0
		for _, h := range e.Health() {
			switch {
			case h.Checked.IsZero():
			case h.Up:
				up++
			default:
				down++
			}
		}
		if up == 1 && down >= 1 {
			return nil
		}
		return fmt.Errorf("%d up, %d down: %v", up, down, e.Health())
	})
	e.put(t, port, `{"backend":`+backend+`,"env":"edited"}`)
	checked(3)
	for _, h := range e.Health() {
		if h.Endpoint.Port == ln.Addr().(*net.TCPAddr).Port && h.Checked.IsZero() {
			t.Error("an edit of something else began the checks anew")
		}
	}
	e.builder.DeleteRoute("web")
	e.apply()
	checked(2)
	e.put(t, port, `127.0.0.1:1`)
	checked(0)
	e.put(t, port, `{"http":`+backend+`}`)
	checked(2) // and Shutdown ends them
}
