package api

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Question is what GET /explain is asked: what would become of a request, or of
// a connection to a port.
type Question struct {
	// URL of a request; its host is the name that TLS and HTTP are told.
	URL    *url.URL
	Method string
	Header http.Header
	// Proto and Port name a mapped port, where URL is nil.
	Proto string
	Port  int
	// Client is who asks; invalid: nobody in particular.
	Client netip.Addr
}

// Explanation says what would become of a request or connection.
type Explanation struct {
	// Outcome says it in a sentence.
	Outcome string `json:"outcome"`
	// Note says where the request would not come to this node at all, though
	// Outcome says what the node would do with it.
	Note string `json:"note,omitempty"`
	Rev  int64  `json:"rev"` // the etcd revision that the node's table is as of
	// Key is what decides, below the prefix, and Verdict what the node says of
	// it; "" where nothing does.
	Key      string            `json:"key,omitempty"`
	Verdict  string            `json:"verdict,omitempty"`
	Host     string            `json:"host,omitempty"` // the pattern that matches
	Captures map[string]string `json:"captures,omitempty"`
	Targets  []Target          `json:"targets,omitempty"`
	// Sent is the path and query that a backend gets, where that is not what the
	// client sends.
	Sent string `json:"sent,omitempty"`
	// First says what is asked before the request goes on, in this order.
	First  []string `json:"first,omitempty"`
	Limits any      `json:"limits,omitempty"` // of the key, as in its value
	// Refused says why this client would be refused, "" if it would not.
	Refused     string       `json:"refused,omitempty"`
	Certificate *Certificate `json:"certificate,omitempty"`
	// Others are the routes that match by host and are not taken, in the order
	// in which they were tried.
	Others []Loser `json:"others,omitempty"`
}

// Certificate is what a TLS client would be shown.
type Certificate struct {
	Names  []string  `json:"names,omitempty"`
	Issuer string    `json:"issuer,omitempty"`
	Until  time.Time `json:"until,omitzero"`
	Err    string    `json:"error,omitempty"` // why there is none
}

// Loser is a route that was not taken.
type Loser struct {
	Route string `json:"route"`
	Host  string `json:"host"`
	Why   string `json:"why"`
}

// explain answers GET /explain.
func (s *Server) explain(w http.ResponseWriter, r *http.Request) error {
	q, err := ParseQuestion(r.URL.Query())
	if err != nil {
		return refusal{http.StatusBadRequest, err}
	}
	writeJSON(w, http.StatusOK, s.live.Explain(q))
	return nil
}

// ParseQuestion reads the parameters of GET /explain.
func ParseQuestion(query url.Values) (q Question, err error) {
	q.Method, q.Header = "GET", http.Header{}
	for name, values := range query {
		for _, v := range values {
			if err := q.set(name, v); err != nil {
				return q, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if (q.URL == nil) == (q.Port == 0) {
		return q, fmt.Errorf("give one of url, such as https://www.x-gpu.com/, and port, such as tcp/20022")
	}
	return q, nil
}

func (q *Question) set(name, value string) (err error) {
	switch name {
	case "url":
		q.URL, err = url.Parse(value)
		if err == nil && (q.URL.Host == "" || q.URL.Scheme != "http" && q.URL.Scheme != "https") {
			err = fmt.Errorf("%q is no URL of a request; write it as https://www.x-gpu.com/path", value)
		}
	case "port":
		proto, port, ok := strings.Cut(value, "/")
		if q.Port, err = strconv.Atoi(port); !ok || err != nil || q.Port < 1 || q.Port > 65535 || proto != "tcp" && proto != "udp" {
			return fmt.Errorf("%q is no port; write it as tcp/20022", value)
		}
		q.Proto = proto
	case "method":
		q.Method = value
	case "header":
		field, content, ok := strings.Cut(value, ":")
		if !ok {
			return fmt.Errorf("%q is no header; write it as Name: value", value)
		}
		q.Header.Add(strings.TrimSpace(field), strings.TrimSpace(content))
	case "client":
		q.Client, err = netip.ParseAddr(value)
	default:
		err = fmt.Errorf("there is no such parameter; there are url, port, method, header and client")
	}
	return err
}

// Query writes q as the parameters that ParseQuestion reads.
func (q *Question) Query() url.Values {
	v := url.Values{}
	if q.URL != nil {
		v.Set("url", q.URL.String())
	} else {
		v.Set("port", fmt.Sprintf("%s/%d", q.Proto, q.Port))
	}
	if q.Method != "" {
		v.Set("method", q.Method)
	}
	for name, values := range q.Header {
		for _, value := range values {
			v.Add("header", name+": "+value)
		}
	}
	if q.Client.IsValid() {
		v.Set("client", q.Client.String())
	}
	return v
}
