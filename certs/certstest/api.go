package certstest

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"
)

// Record is a DNS record that a fake API holds.
type Record struct {
	ID   string
	Type string
	Name string // relative to the zone
	Data string
	TTL  int
}

// Reply is an answer that a fake gives in place of its usual one.
type Reply struct {
	Status int    // 0: 200
	Type   string // Content-Type; empty: application/json
	Retry  string // Retry-After; empty: none
	Body   string
	After  bool // carry the request out first, and give this answer instead of the true one
	Hang   bool // give no answer until the fake ends
}

// api is what the fakes have in common: a server, scripted replies, a log.
type api struct {
	url string

	ended context.Context
	end   func()

	mu      sync.Mutex // guards the following
	script  map[string][]Reply
	log     []string
	records []Record
}

// start serves handle, which gets the name of what is asked for from name.
func (a *api) start(t testing.TB, name func(*http.Request) string, handle http.HandlerFunc) {
	t.Helper()
	ended, end := context.WithCancel(context.Background())
	a.ended, a.end, a.script = ended, end, map[string][]Reply{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call := name(r)
		a.mu.Lock()
		a.log = append(a.log, call)
		var scripted *Reply
		if queue := a.script[call]; len(queue) > 0 {
			scripted, a.script[call] = &queue[0], queue[1:]
		}
		a.mu.Unlock()
		if scripted == nil {
			handle(w, r)
			return
		}
		if scripted.After {
			handle(httptest.NewRecorder(), r)
		}
		scripted.write(w, a.ended)
	}))
	a.url = srv.URL
	t.Cleanup(srv.Close)
	t.Cleanup(end) // before Close, which waits for replies that hang
}

func (r *Reply) write(w http.ResponseWriter, ended context.Context) {
	if r.Hang {
		<-ended.Done()
		return
	}
	contentType := r.Type
	if contentType == "" {
		contentType = "application/json"
	}
	w.Header().Set("Content-Type", contentType)
	if r.Retry != "" {
		w.Header().Set("Retry-After", r.Retry)
	}
	w.WriteHeader(max(r.Status, http.StatusOK))
	w.Write([]byte(r.Body))
}

// End gives the replies that hang, now and later, an empty end.
func (a *api) End() { a.end() }

// Next scripts the answers to the next requests of that name.
func (a *api) Next(call string, replies ...Reply) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.script[call] = append(a.script[call], replies...)
}

// Calls returns the names of all requests so far.
func (a *api) Calls() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.log)
}

// Records returns what the zone holds.
func (a *api) Records() []Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.records)
}

// Transport sends every request to the fake, whatever host it is for, and
// leaves the Host header, which may be signed, as it is.
func (a *api) Transport() http.RoundTripper {
	to, _ := url.Parse(a.url) // from httptest: always a URL
	return redirect{to: to, rt: &http.Transport{DisableKeepAlives: true}}
}

type redirect struct {
	to *url.URL
	rt http.RoundTripper
}

func (d redirect) RoundTrip(r *http.Request) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.Host = r.URL.Host
	out.URL.Scheme, out.URL.Host = d.to.Scheme, d.to.Host
	return d.rt.RoundTrip(out)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// clockSkew is how far a signature's time may be off.
const clockSkew = 15 * time.Minute
