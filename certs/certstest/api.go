package certstest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
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
	// Weight, Line and Status are Aliyun's, "" standing for its usual ones, and
	// Proxied Cloudflare's.
	Weight  int
	Line    string
	Status  string
	Proxied bool
}

// Reply is an answer that a fake gives in place of its usual one.
type Reply struct {
	Status int           // 0: 200
	Type   string        // Content-Type; empty: application/json
	Retry  string        // Retry-After; empty: none
	Body   string        // empty, with After: the true one
	After  bool          // carry the request out first, and give this answer instead of the true one
	Slow   time.Duration // before the answer
	Wire   Wire
}

// Wire is what becomes of an answer on its way.
type Wire int

const (
	Whole Wire = iota // it arrives
	Hang              // it does not come until the fake ends
	Reset             // the connection is reset before it
	Half              // the connection ends in the middle of the body
	Short             // the length in the header is that of half of the body
)

// api is what the fakes have in common: a server, scripted replies, a log.
type api struct {
	url   string
	serve http.Handler

	ended context.Context
	end   func()

	mu      sync.Mutex // guards the following
	names   *DNS       // shows the records too; nil: nobody does
	script  map[string][]Reply
	log     []string
	records []Record
}

// start serves handle, which gets the name of what is asked for from name.
func (a *api) start(t testing.TB, name func(*http.Request) string, handle http.HandlerFunc) {
	t.Helper()
	ended, end := context.WithCancel(context.Background())
	a.ended, a.end, a.script = ended, end, map[string][]Reply{}
	a.serve = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
			rec := httptest.NewRecorder()
			handle(rec, r)
			if scripted.Body == "" {
				scripted.Body = rec.Body.String()
			}
		}
		scripted.write(w, a.ended)
	})
	srv := httptest.NewServer(a.serve)
	a.url = srv.URL
	t.Cleanup(srv.Close)
	t.Cleanup(end) // before Close, which waits for replies that hang
}

func (r *Reply) write(w http.ResponseWriter, ended context.Context) {
	if r.Slow > 0 {
		select {
		case <-time.After(r.Slow):
		case <-ended.Done():
		}
	}
	body := []byte(r.Body)
	switch r.Wire {
	case Hang:
		<-ended.Done()
		return
	case Reset, Half:
		r.breakOff(w, body)
		return
	case Short:
		body = body[:len(body)/2]
	}
	r.head(w.Header())
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(max(r.Status, http.StatusOK))
	w.Write(body)
}

func (r *Reply) head(h http.Header) {
	h.Set("Content-Type", cmp.Or(r.Type, "application/json"))
	if r.Retry != "" {
		h.Set("Retry-After", r.Retry)
	}
}

// breakOff ends the connection before the answer or in the middle of it.
func (r *Reply) breakOff(w http.ResponseWriter, body []byte) {
	conn, out, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err) // the fakes speak HTTP/1.1, where it always works
	}
	defer conn.Close()
	if r.Wire == Reset {
		conn.(*net.TCPConn).SetLinger(0)
		return
	}
	h := http.Header{}
	r.head(h)
	fmt.Fprintf(out, "HTTP/1.1 %d -\r\nContent-Length: %d\r\n", max(r.Status, http.StatusOK), len(body))
	h.Write(out)
	fmt.Fprintf(out, "\r\n%s", body[:len(body)/2])
	out.Flush()
}

// End gives the replies that hang, now and later, an empty end.
func (a *api) End() { a.end() }

// Next scripts the answers to the next requests of that name.
func (a *api) Next(call string, replies ...Reply) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.script[call] = append(a.script[call], replies...)
}

// Forget drops the answers that Next has scripted and that were not given yet.
func (a *api) Forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.script)
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

// Put adds a record as somebody else does.
func (a *api) Put(rec Record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	rec.ID = fmt.Sprintf("hand-%d", len(a.log)+len(a.records))
	a.records = append(a.records, rec)
}

// PublishAt has names, a server for the fake's domain, answer with its records.
func (a *api) PublishAt(names *DNS) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.names = names
}

// putLocked and dropLocked change what the zone holds.
func (a *api) putLocked(rec Record, domain string) {
	a.records = append(a.records, rec)
	if a.names != nil && rec.Type == "TXT" {
		a.names.put(rec.Name+"."+domain+".", unquote(rec.Data), true)
	}
}

func (a *api) dropLocked(i int, domain string) {
	rec := a.records[i]
	a.records = slices.Delete(a.records, i, i+1)
	if a.names != nil && rec.Type == "TXT" {
		a.names.put(rec.Name+"."+domain+".", unquote(rec.Data), false)
	}
}

// unquote returns the text of a TXT record that may be in quotes.
func unquote(data string) string {
	if text, err := strconv.Unquote(data); err == nil {
		return text
	}
	return data
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
