package upstream_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remotegpu/sluice/router"
)

// TestChecksByHTTP asks servers of each kind as their backend says, and follows
// what they answer.
func TestChecksByHTTP(t *testing.T) {
	for _, kind := range []string{"clear", "h2c", "tls"} {
		t.Run(kind, func(t *testing.T) {
			var status atomic.Int64
			status.Store(204)
			asked := make(chan string, 1)
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				select {
				case asked <- fmt.Sprintf("%s %s at %s by HTTP/%d", r.Method, r.RequestURI, r.Host, r.ProtoMajor):
				default:
				}
				if status.Load() == 0 { // says nothing
					<-r.Context().Done()
					return
				}
				w.WriteHeader(int(status.Load()))
			}))
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			extra, major := "", 1
			switch kind {
			case "h2c":
				s.Config.Protocols = new(http.Protocols)
				s.Config.Protocols.SetUnencryptedHTTP2(true)
				s.Start()
				extra, major = `,"h2c":true`, 2
			case "tls":
				s.EnableHTTP2 = true
				s.StartTLS()
				ca, err := json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
				if err != nil {
					t.Fatal(err)
				}
				extra, major = `,"tls":{"server_name":"example.com","ca":`+string(ca)+`}`, 2
			default:
				s.Start()
			}
			t.Cleanup(func() {
				s.CloseClientConnections()
				s.Close()
			})
			addr := s.Listener.Addr().String()
			r := newCheckRig(t)
			value := `{"targets":["` + addr + `"],"health":{"path":"/healthz?full=1","method":"HEAD","host":"app.example.com","status":"200-299,404","rise":1,"fall":2}` + extra + `}`
			one, two := httpBackend(t, value), httpBackend(t, value)
			for _, b := range []*router.Backend{one, two} { // values cannot be so impatient
				b.Health.Interval, b.Health.Timeout = 5*time.Millisecond, 500*time.Millisecond
			}
			r.SetChecked([]*router.Backend{one, two}, nil)
			if n := len(r.Health()); n != 1 {
				t.Errorf("two backends that check alike have %d checks", n)
			}
			r.await(addr + " up")
			if got, want := <-asked, fmt.Sprintf("HEAD /healthz?full=1 at app.example.com by HTTP/%d", major); got != want {
				t.Errorf("asked %q, want %q", got, want)
			}
			for _, step := range []struct {
				status int64
				want   string
				err    string
			}{{503, "down", "HEAD /healthz?full=1: status 503, and 200-299,404 is wanted"}, {404, "up", ""}, {0, "down", "no answer in time"}, {200, "up", ""}} {
				status.Store(step.status)
				r.await(addr + " " + step.want)
				if err := r.Health()[0].Err; step.err != "" && (err == nil || !strings.Contains(err.Error(), step.err)) {
					t.Errorf("with status %d: %v, want %s", step.status, err, step.err)
				}
			}
		})
	}
}

// TestChecksByHTTPVerify has a server down whose certificate is not good.
func TestChecksByHTTPVerify(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	r := newCheckRig(t)
	b := httpBackend(t, `{"targets":["`+s.Listener.Addr().String()+`"],"health":{"path":"/"},"tls":true}`)
	b.Health.Interval, b.Health.Timeout = 5*time.Millisecond, 10*time.Second
	r.SetChecked([]*router.Backend{b}, nil)
	r.await(s.Listener.Addr().String() + " down")
	if err := r.Health()[0].Err; err == nil || !strings.Contains(err.Error(), "x509") {
		t.Errorf("%v, want that the certificate is not good", err)
	}
}

func TestStatuses(t *testing.T) {
	for text, want := range map[string]string{"200": "200", "200-299": "200-299", "404, 200-204,205": "200-205,404", "100-599": "100-599"} {
		var s router.Statuses
		if err := s.UnmarshalText([]byte(text)); err != nil || s.String() != want {
			t.Errorf("%s: %v, %v, want %s", text, s, err, want)
		}
	}
	for _, field := range []string{`"status":"2xx"`, `"status":"99"`, `"status":"300-200"`, `"status":600`, `"path":"healthz"`, `"path":"/a b"`,
		`"path":"/","method":"POST"`, `"path":"/","host":"a b"`, `"host":"x"`, `"method":"GET"`, `"status":200`} {
		if _, err := router.ParseRoute("r", []byte(`{"host":"x.test","backend":{"targets":["a:1"],"health":{`+field+`}}}`)); err == nil || !strings.Contains(err.Error(), "backend.health.") {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := router.ParseMapping(router.TCP, 22, []byte(`{"backend":{"targets":["a:1"],"health":{"path":"/"}}}`)); err == nil || !strings.Contains(err.Error(), "backend.health.path") {
		t.Errorf("for raw bytes: %v", err)
	}
}
