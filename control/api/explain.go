package api

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/remotegpu/sluice/control/wire"
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

// What GET /explain answers with is described where the control API has it too.
type (
	// Explanation says what would become of a request or connection.
	Explanation = wire.Explanation
	// Certificate is what a TLS client would be shown.
	Certificate = wire.Certificate
	// ClientAuth is what clients of a host are asked for.
	ClientAuth = wire.ClientAuth
	// Loser is a route that was not taken.
	Loser = wire.Loser
)

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
		if _, err := http.NewRequest(value, "/", nil); err != nil {
			return fmt.Errorf("%q is no method of a request, such as GET", value)
		}
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
