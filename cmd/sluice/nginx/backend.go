package nginx

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// backend is the long form of a backend in a key.
type backend struct {
	Targets       []any  `json:"targets"`
	Balance       string `json:"balance,omitempty"`
	Hash          *hash  `json:"hash,omitempty"`
	Eject         *eject `json:"eject,omitempty"`
	TLS           any    `json:"tls,omitempty"`
	H2C           bool   `json:"h2c,omitempty"`
	ProxyProtocol string `json:"proxy_protocol,omitempty"`
}

type hash struct {
	Header string `json:"header,omitempty"`
	Cookie string `json:"cookie,omitempty"`
}

type eject struct {
	Failures int    `json:"failures,omitempty"`
	Time     string `json:"time,omitempty"`
}

type target struct {
	Address string `json:"address"`
	Weight  int    `json:"weight,omitempty"`
}

// value returns b as keys have it: short where that says it all.
func (b *backend) value() any {
	if b.Balance == "" && b.Hash == nil && b.Eject == nil && b.TLS == nil && !b.H2C && b.ProxyProtocol == "" && len(b.Targets) == 1 {
		if address, plain := b.Targets[0].(string); plain {
			return address
		}
	}
	return b
}

// splitPass splits what proxy_pass says: scheme, host and port (or the name of an
// upstream), and path; hasPath is true where there is one, be it "/".
func splitPass(s string) (scheme, host, path string, hasPath bool, err error) {
	scheme, rest, found := strings.Cut(s, "://")
	if !found {
		return "", "", "", false, fmt.Errorf("%q has no scheme", s)
	}
	if strings.HasPrefix(rest, "unix:") {
		return "", "", "", false, fmt.Errorf("backends are reached by TCP, not by a socket of the machine")
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		return scheme, rest, "", false, nil
	}
	return scheme, rest[:end], rest[end:], true, nil
}

// withPort returns host with a port.
func withPort(host, port string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	if i := strings.LastIndex(host, ":"); i >= 0 && !strings.HasSuffix(host, "]") {
		return host // ends in a port that is a variable
	}
	return host + ":" + port
}

// backendOf makes a backend of a host, or of the upstream of that name. port is
// for hosts that name none.
func (im *importer) backendOf(host, port string, upstreams map[string]*Directive, raw bool) (*backend, error) {
	up, is := upstreams[host]
	if !is {
		if u, err := url.Parse("//" + host); err == nil && u.User != nil {
			return nil, fmt.Errorf("%q holds a user", host)
		}
		return &backend{Targets: []any{withPort(host, port)}}, nil
	}
	b := &backend{}
	failures, pause := "", ""
	for _, d := range up.Block {
		if d.Name == "server" {
			t, f, p := im.server(d, port)
			if t != nil {
				b.Targets = append(b.Targets, t)
			}
			failures, pause = cmp.Or(failures, f), cmp.Or(pause, p)
			continue
		}
		im.balance(d, b, raw)
	}
	up.done = true
	if len(b.Targets) == 0 {
		return nil, fmt.Errorf("the upstream %q has no server that is used", host)
	}
	if n, err := strconv.Atoi(failures); err == nil && n > 0 && len(b.Targets) > 1 && !raw {
		b.Eject = &eject{Failures: n}
		if text, err := durationText(pause); err == nil {
			b.Eject.Time = text
		}
	}
	return b, nil
}

// server makes a target of a server of an upstream; nil where none is to be.
func (im *importer) server(d *Directive, port string) (t any, failures, pause string) {
	d.done = true
	if strings.HasPrefix(d.arg(0), "unix:") {
		im.lost(d, "backends are reached by TCP, not by a socket of the machine", "have the service listen on an address")
		return nil, "", ""
	}
	address, weight := withPort(d.arg(0), port), 0
	for _, arg := range d.Args[min(1, len(d.Args)):] {
		name, value, _ := strings.Cut(arg, "=")
		switch name {
		case "weight":
			weight, _ = strconv.Atoi(value)
		case "max_fails":
			failures = value
		case "fail_timeout":
			pause = value
		case "down":
			im.note(Unneeded, d, "it is down, and left out", "")
			return nil, "", ""
		case "backup":
			im.lost(d, "a backend has no target that waits until all others have failed, and as an ordinary one it would get its share at once",
				"add it to `targets` of the routes to this upstream if it may take traffic, or put it there when the others fail")
			return nil, "", ""
		case "resolve":
		default:
			im.lost(d, fmt.Sprintf("%s has no counterpart", arg), "see `backend` in KEYS.md for what targets can have")
		}
	}
	if weight > 1 {
		return target{address, weight}, failures, pause
	}
	return address, failures, pause
}

// balance takes a directive of an upstream other than its servers.
func (im *importer) balance(d *Directive, b *backend, raw bool) {
	d.done = true
	switch d.Name {
	case "least_conn":
		b.Balance = "least_connections"
		if !raw {
			b.Balance = "least_requests"
		}
	case "ip_hash":
		b.Balance = "source_hash"
	case "random":
		b.Balance = "p2c"
	case "hash":
		im.hash(d, b, raw)
	case "keepalive", "keepalive_timeout", "keepalive_requests", "keepalive_time", "zone", "resolver", "resolver_timeout":
		im.note(Unneeded, d, "connections to backends are kept and names are resolved by themselves", "")
	default:
		im.lost(d, "it has no counterpart in a backend", "see `backend` in KEYS.md")
	}
}

func (im *importer) hash(d *Directive, b *backend, raw bool) {
	key := d.arg(0)
	header, isHeader := strings.CutPrefix(key, "$http_")
	cookie, isCookie := strings.CutPrefix(key, "$cookie_")
	switch {
	case key == "$remote_addr" || key == "$binary_remote_addr":
		b.Balance = "source_hash"
	case isHeader && !raw && header != "host":
		b.Balance, b.Hash = "hash", &hash{Header: headerName(header)}
	case isCookie && !raw:
		b.Balance, b.Hash = "hash", &hash{Cookie: cookie}
	default:
		im.lost(d, fmt.Sprintf("targets are chosen by the client's address, a header or a cookie, not by %s; they take turns", key),
			"choose one of `balance` in KEYS.md")
	}
}

// headerName turns the tail of a variable such as http_x_api_key into a name.
func headerName(s string) string {
	words := strings.Split(s, "_")
	for i, w := range words {
		if w != "" {
			words[i] = strings.ToUpper(w[:1]) + w[1:]
		}
	}
	return strings.Join(words, "-")
}
