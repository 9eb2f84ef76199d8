package http_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// rawRequest is a request as it goes into the frames of HTTP/2 and HTTP/3,
// whether they allow it or not.
type rawRequest struct {
	fields  [][2]string // in front of which ordinary pseudo-fields stand, see head
	body    []string    // a DATA frame each
	trailer [][2]string
	// may is what the backend may have seen of it all the same.
	may string
}

// head returns the whole head: the pseudo-fields of a POST to /up, but for those
// that q has of its own; a field with an empty name takes all of them away.
func (q rawRequest) head() (head [][2]string) {
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "app.x.test"}, {":path", "/up"}} {
		own := false
		for _, mine := range q.fields {
			own = own || mine[0] == f[0] || mine[0] == ""
		}
		if !own {
			head = append(head, f)
		}
	}
	for _, f := range q.fields {
		if f[0] != "" {
			head = append(head, f)
		}
	}
	return head
}

// hiddenRequest is what a second reader would take for a request.
const hiddenRequest = "GET /smuggled HTTP/1.1\r\nHost: app.x.test\r\n\r\n"

// malformed are requests of HTTP/2 and HTTP/3 that are none (RFC 9113 section
// 8.1.1, RFC 9114 section 4.1.2).
var malformed = map[string]rawRequest{
	"length below the body":        {fields: [][2]string{{"content-length", "5"}}, body: []string{"hello" + hiddenRequest}},
	"length below it in two":       {fields: [][2]string{{"content-length", "5"}}, body: []string{"hello", hiddenRequest}, may: "POST /up hello"},
	"length of nothing":            {fields: [][2]string{{"content-length", "0"}}, body: []string{hiddenRequest}},
	"length above the body":        {fields: [][2]string{{"content-length", "50"}}, body: []string{"hello"}},
	"length without a body":        {fields: [][2]string{{"content-length", "45"}}},
	"two lengths":                  {fields: [][2]string{{"content-length", "5"}, {"content-length", "45"}}, body: []string{"hello"}},
	"a list of lengths":            {fields: [][2]string{{"content-length", "5, 45"}}, body: []string{"hello"}},
	"a signed length":              {fields: [][2]string{{"content-length", "+5"}}, body: []string{"hello"}},
	"a length in hex":              {fields: [][2]string{{"content-length", "0x5"}}, body: []string{"hello"}},
	"chunked":                      {fields: [][2]string{{"transfer-encoding", "chunked"}}, body: []string{"0\r\n\r\n" + hiddenRequest}},
	"chunked with a length":        {fields: [][2]string{{"transfer-encoding", "chunked"}, {"content-length", "5"}}, body: []string{"hello"}},
	"Connection":                   {fields: [][2]string{{"connection", "content-length"}, {"content-length", "5"}}, body: []string{"hello"}},
	"Upgrade":                      {fields: [][2]string{{"connection", "upgrade"}, {"upgrade", "h2c"}}},
	"Keep-Alive":                   {fields: [][2]string{{"keep-alive", "timeout=5"}}},
	"Proxy-Connection":             {fields: [][2]string{{"proxy-connection", "keep-alive"}}},
	"TE other than trailers":       {fields: [][2]string{{"te", "chunked"}}},
	"CR LF in a value":             {fields: [][2]string{{"x", "a\r\nTransfer-Encoding: chunked"}}, body: []string{"0\r\n\r\n" + hiddenRequest}},
	"LF in a value":                {fields: [][2]string{{"x", "a\nX-Injected: yes"}}},
	"CR in a value":                {fields: [][2]string{{"x", "a\rX-Injected: yes"}}},
	"NUL in a value":               {fields: [][2]string{{"x", "a\x00b"}}},
	"two CR LF in a value":         {fields: [][2]string{{"x", "a\r\n\r\n" + hiddenRequest}}},
	"CR LF in a name":              {fields: [][2]string{{"x: y\r\nx-injected", "yes"}}},
	"colon in a name":              {fields: [][2]string{{"transfer-encoding:", "chunked"}}},
	"space in a name":              {fields: [][2]string{{"transfer-encoding ", "chunked"}}},
	"NUL in a name":                {fields: [][2]string{{"x\x00y", "z"}}},
	"capitals in a name":           {fields: [][2]string{{"Transfer-Encoding", "chunked"}}},
	"CR LF in the method":          {fields: [][2]string{{":method", "GET /smuggled HTTP/1.1\r\nX-Injected: yes\r\n\r\nPOST"}}},
	"space in the method":          {fields: [][2]string{{":method", "GET /smuggled HTTP/1.1"}}},
	"no method":                    {fields: [][2]string{{":method", ""}}},
	"CR LF in the path":            {fields: [][2]string{{":path", "/up HTTP/1.1\r\nX-Injected: yes\r\nX: y"}}},
	"space in the path":            {fields: [][2]string{{":path", "/smuggled HTTP/1.1"}}},
	"NUL in the path":              {fields: [][2]string{{":path", "/up\x00"}}},
	"tab in the path":              {fields: [][2]string{{":path", "/up\tx"}}},
	"DEL in the path":              {fields: [][2]string{{":path", "/up\x7f"}}},
	"no path":                      {fields: [][2]string{{":path", ""}}},
	"path without a slash":         {fields: [][2]string{{":path", "smuggled"}}},
	"absolute-form for a path":     {fields: [][2]string{{":path", "https://other.x.test/smuggled"}}},
	"CR LF in the authority":       {fields: [][2]string{{":authority", "app.x.test\r\nX-Injected: yes"}}},
	"space in the authority":       {fields: [][2]string{{":authority", "app.x.test /smuggled"}}},
	"userinfo in the authority":    {fields: [][2]string{{":authority", "u:p@app.x.test"}}},
	"path in the authority":        {fields: [][2]string{{":authority", "app.x.test/smuggled"}}},
	"another Host":                 {fields: [][2]string{{"host", "other.x.test"}}},
	"two other Hosts":              {fields: [][2]string{{"host", "app.x.test"}, {"host", "other.x.test"}}},
	"two authorities":              {fields: [][2]string{{":authority", "app.x.test"}, {":authority", "other.x.test"}}},
	"two paths":                    {fields: [][2]string{{":path", "/up"}, {":path", "/smuggled"}}},
	"two methods":                  {fields: [][2]string{{":method", "GET"}, {":method", "POST"}}},
	"no pseudo-field":              {fields: [][2]string{{"", ""}, {"host", "app.x.test"}}},
	"one of a response":            {fields: [][2]string{{":status", "200"}}},
	"an unknown one":               {fields: [][2]string{{":smuggled", "yes"}}},
	"one behind a field":           {fields: [][2]string{{"x", "y"}, {":path", "/smuggled"}}},
	"CR LF in the scheme":          {fields: [][2]string{{":scheme", "https\r\nX-Injected: yes"}}},
	"pseudo-field in the trailer":  {body: []string{"hello"}, trailer: [][2]string{{":path", "/smuggled"}}},
	"CR LF in the trailer":         {body: []string{"hello"}, trailer: [][2]string{{"x", "y\r\nX-Injected: yes"}}},
	"a trailer's name with spaces": {body: []string{"hello"}, trailer: [][2]string{{"x y", "z"}}},
}

// sender sends a request over a connection of its own and returns its status, or
// in words how it was refused.
type sender func(t *testing.T, q rawRequest) string

func (r *rig) senders() map[string]sender {
	return map[string]sender{"h2": r.sendH2, "h3": r.sendH3}
}

// TestMalformedRequestsAreRefused sends what HTTP/1.1 would frame or read in
// another way, each between two ordinary requests: the backend sees these alone,
// each once, and what came of a body at most as a request without an end.
func TestMalformedRequestsAreRefused(t *testing.T) {
	rec := &recorder{}
	r := toBackend(t, rawBackend(t, rec.serve))(t)
	for version, send := range r.senders() {
		for name, q := range malformed {
			t.Run(version+" "+name, func(t *testing.T) {
				rec.reset()
				ask := func(path string) {
					t.Helper()
					if status := send(t, rawRequest{fields: [][2]string{{":path", path}}, body: []string{"content"}}); status != "200" {
						t.Fatalf("%s: %s", path, status)
					}
				}
				ask("/before")
				if status := send(t, q); !refusal(status) {
					t.Errorf("answered by %s", status)
				}
				ask("/after")
				got := rec.requests()
				if len(got) == 3 && got[1] == q.may {
					got = slices.Delete(got, 1, 2)
				}
				if !slices.Equal(got, []string{"POST /before content", "POST /after content"}) {
					t.Errorf("the backend saw %q", got)
				}
				if sent := rec.text(); strings.Contains(sent, "X-Injected: yes") || strings.Contains(sent, "smuggled HTTP") {
					t.Errorf("the backend was sent %q", sent)
				}
			})
		}
	}
}

// refusal reports whether status is an error of the client's, or none at all.
func refusal(status string) bool {
	return strings.HasPrefix(status, "4") || status == "501" || !strings.ContainsAny(status[:1], "0123456789")
}

// TestOddRequestsGoOnAsTheyAre sends what HTTP/2 and HTTP/3 allow and HTTP/1.1
// frames otherwise.
func TestOddRequestsGoOnAsTheyAre(t *testing.T) {
	for name, tc := range map[string]struct {
		q    rawRequest
		want string // that the backend sees
	}{
		"body without a length": {rawRequest{body: []string{"he", "llo"}}, "POST /up hello"},
		"body of a hidden request": {rawRequest{fields: [][2]string{{"content-length", fmt.Sprint(len(hiddenRequest))}},
			body: []string{hiddenRequest}}, "POST /up " + hiddenRequest},
		"chunks in the body":      {rawRequest{body: []string{"0\r\n\r\n", hiddenRequest}}, "POST /up 0\r\n\r\n" + hiddenRequest},
		"GET with a body":         {rawRequest{fields: [][2]string{{":method", "GET"}}, body: []string{hiddenRequest}}, "GET /up " + hiddenRequest},
		"the same Host":           {rawRequest{fields: [][2]string{{"host", "app.x.test"}}}, "POST /up "},
		"TE: trailers":            {rawRequest{fields: [][2]string{{"te", "trailers"}}, body: []string{"a"}}, "POST /up a"},
		"crumbs of a cookie":      {rawRequest{fields: [][2]string{{"cookie", "a=b"}, {"cookie", "c=d"}}}, "POST /up "},
		"a trailer":               {rawRequest{body: []string{"a"}, trailer: [][2]string{{"x-sum", "1"}}}, "POST /up a"},
		"a trailer that frames":   {rawRequest{body: []string{"a"}, trailer: [][2]string{{"x-sum", "1"}, {"content-length", "9"}, {"transfer-encoding", "chunked"}, {"host", "other"}}}, "POST /up a"},
		"Expect":                  {rawRequest{fields: [][2]string{{"expect", "100-continue"}}, body: []string{"a"}}, "POST /up a"},
		"empty frames":            {rawRequest{body: []string{"", "a", "", "b", ""}}, "POST /up ab"},
		"Content-Length: 0":       {rawRequest{fields: [][2]string{{"content-length", "0"}}}, "POST /up "},
		"underscores in a name":   {rawRequest{fields: [][2]string{{"transfer_encoding", "chunked"}, {"content_length", "0"}}, body: []string{"a"}}, "POST /up a"},
		"a Trailer field of lies": {rawRequest{fields: [][2]string{{"trailer", "Content-Length, Transfer-Encoding"}}, body: []string{"a"}}, "POST /up a"},
	} {
		rec := &recorder{}
		r := toBackend(t, rawBackend(t, rec.serve))(t)
		for version, send := range r.senders() {
			t.Run(version+" "+name, func(t *testing.T) {
				rec.reset()
				status := send(t, tc.q)
				if status != "200" && !(name == "a trailer that frames" && refusal(status)) {
					t.Fatalf("answered by %s", status)
				}
				if again := send(t, rawRequest{fields: [][2]string{{":path", "/after"}}}); again != "200" {
					t.Errorf("the next one: %s", again)
				}
				got := rec.requests()
				if status == "200" && (len(got) == 0 || got[0] != tc.want) || got[len(got)-1] != "POST /after " || len(got) > 2 {
					t.Errorf("the backend saw %q", got)
				}
				if n := strings.Count(rec.text(), "\r\nHost: "); status == "200" && n != len(got) && !slices.Contains(tc.q.body, hiddenRequest) {
					t.Errorf("%d Host fields for %d requests: %q", n, len(got), rec.text())
				}
			})
		}
	}
}

func (r *recorder) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = nil
	r.sent.Reset()
}

func (r *recorder) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent.String()
}
