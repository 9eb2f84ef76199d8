package dns

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	// aliHost is where libdns/alidns sends all its requests.
	aliHost = "alidns.aliyuncs.com"
	// aliLimit ends a request, since the library sends some without a deadline.
	aliLimit = 15 * time.Second
	// aliReply is how much of a reply is read. The largest, a page of records,
	// has some tens of kilobytes.
	aliReply = 1 << 20
)

// aliTransport stands between libdns/alidns, which takes no client of ours, and
// the network: it ends requests, makes errors of replies that are no JSON, and
// puts the API's error code into the message, the only part of a refusal that
// the library hands on. Requests to other hosts pass through it.
type aliTransport struct {
	next http.RoundTripper // nil: http.DefaultTransport
}

var hooking sync.Mutex // guards http.DefaultClient.Transport while it is replaced

// hookAlidns puts an aliTransport below http.DefaultClient, unless there is one.
func hookAlidns() {
	hooking.Lock()
	defer hooking.Unlock()
	if _, done := http.DefaultClient.Transport.(*aliTransport); !done {
		http.DefaultClient.Transport = &aliTransport{next: http.DefaultClient.Transport}
	}
}

// RoundTrip implements http.RoundTripper.
func (t *aliTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	next := t.next
	if next == nil {
		next = http.DefaultTransport
	}
	if req.URL.Hostname() != aliHost {
		return next.RoundTrip(req)
	}
	ctx, cancel := context.WithTimeout(req.Context(), aliLimit)
	defer cancel() // the body has been read by then
	resp, err := next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, aliReply))
	if err != nil {
		return nil, fmt.Errorf("HTTP %d, and the reply ends too early: %w", resp.StatusCode, err)
	}
	if body, err = aliMark(resp, body); err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return resp, nil
}

// aliMark returns a reply's body with the code of an error in its message.
func aliMark(resp *http.Response, body []byte) ([]byte, error) {
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	var said struct{ RequestID, Code, Message string }
	broken := json.Unmarshal(body, &said)
	switch {
	case resp.StatusCode == http.StatusOK && media == "application/json" && broken != nil:
		return nil, fmt.Errorf("HTTP 200, and the reply is not what it should be: %w", broken)
	case resp.StatusCode == http.StatusOK && said.RequestID != "": // every answer has one
		return body, nil
	case broken != nil || said.Code == "":
		return nil, &httpError{status: resp.StatusCode, media: media, said: oneLine(body[:min(len(body), 300)])}
	}
	// The library reads the message only.
	return json.Marshal(map[string]string{"Message": fmt.Sprintf("[%s] %s", oneLine([]byte(said.Code)), oneLine([]byte(said.Message)))})
}
