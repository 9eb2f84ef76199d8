package main

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// row is a line of the table: something that every contender does, and how it
// is measured. A new row is one more entry in allRows; what it needs beyond the
// services there are is one more service, in the origin and the three
// configurations.
type row struct {
	name    string // for -rows
	title   string // for the report
	cost    string // unit of sample.Cost
	rate    string // unit of sample.Rate
	service service
	tools   []tool
	limits  []limits
	// reference is whom ratios are taken to; "": nginx.
	reference string
	without   []string // contenders that it leaves out
	// half has the load at half of what the reference can do, instead of measure.
	half    *laneLoad
	measure func(ctx context.Context, e *edge, ph phases) (sample, error)
}

// takes reports whether the contender has a turn in the row.
func (r row) takes(e *edge) bool {
	_, has := e.addrs[r.service]
	return has && !slices.Contains(r.without, e.name)
}

// referenceOr returns whom the row's ratios are taken to, to if it has no view.
func (r row) referenceOr(to string) string { return cmp.Or(r.reference, to) }

// sample is what one turn of one contender gave.
type sample struct {
	Cost    float64 `json:"cost"` // in the row's unit, per unit of work
	Rate    float64 `json:"rate"` // in the row's unit
	Units   float64 `json:"units"`
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpu_seconds"`
	// Latency of a unit in microseconds; 0 where a unit has none.
	P50 float64 `json:"p50_us"`
	P99 float64 `json:"p99_us"`
	// TLS is the protocol and cipher suite the load got, to be the same for all.
	TLS string `json:"tls,omitempty"`
	// Error says why the sample does not count; "" if it does.
	Error string `json:"error,omitempty"`
}

// perUnit makes a sample of the CPU time and work of a window. costIn is the
// time that Cost counts in.
func perUnit(w window, units float64, costIn time.Duration, latency []time.Duration) sample {
	s := sample{
		Cost:    float64(w.cpu) / float64(costIn) / units,
		Rate:    units / w.length().Seconds(),
		Units:   units,
		Seconds: w.length().Seconds(),
		CPU:     w.cpu.Seconds(),
	}
	if len(latency) > 0 {
		p := percentiles(latency, 50, 99)
		s.P50, s.P99 = micros(p[0]), micros(p[1])
	}
	return s
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func allRows() []row {
	return slices.Concat(httpRows(), http3Rows(), bodyRows(), handshakeRows(), halfRows(), socketRows(), webSocketRows())
}

func httpRows() []row {
	load := []tool{h2loadTool}
	perRequest := func(r row) row {
		r.cost, r.rate, r.tools = "µs/req", "req/s", load
		return r
	}
	return []row{
		perRequest(row{name: "h1", limits: []limits{{Cost: 1}}, title: "HTTP/1.1 clear, 64 connections", service: serviceHTTP,
			measure: h2load{scheme: "http", service: serviceHTTP, alpn: "http/1.1", clients: 64, streams: 1}.measure}),
		perRequest(row{name: "h1tls", limits: []limits{{Cost: 0.95}}, title: "HTTP/1.1 TLS, 64 connections", service: serviceHTTPS,
			measure: h2load{scheme: "https", service: serviceHTTPS, alpn: "http/1.1", clients: 64, streams: 1}.measure}),
		perRequest(row{name: "h2-16x16", limits: []limits{{Cost: 1}}, title: "HTTP/2, 16 connections × 16 streams", service: serviceHTTPS,
			measure: h2load{scheme: "https", service: serviceHTTPS, alpn: "h2", clients: 16, streams: 16}.measure}),
		perRequest(row{name: "h2-64x1", limits: []limits{{Cost: 1}}, title: "HTTP/2, 64 connections × 1 stream", service: serviceHTTPS,
			measure: h2load{scheme: "https", service: serviceHTTPS, alpn: "h2", clients: 64, streams: 1}.measure}),
	}
}

// bodyRows have bodies that are longer than a head. Their costs are of whole
// requests; what goes over the loopback and through the cipher is most of them.
func bodyRows() []row {
	body := func(name, title, cost string, in time.Duration, l h2load) row {
		l.scheme, l.service, l.costIn = "https", serviceHTTPS, in
		return row{name: name, title: title, service: serviceHTTPS, cost: cost, rate: "req/s", tools: []tool{h2loadTool},
			limits: []limits{{Cost: 1}}, measure: l.measure}
	}
	large := func(name, title string, l h2load) row {
		l.path, l.body = largePath, largeSize
		return body(name, "100 KB from the origin, "+title, "µs/req", time.Microsecond, l)
	}
	upload := func(name, title string, l h2load) row {
		l.path, l.upload = uploadPath, uploadSize
		return body(name, "10 MB to the origin, "+title, "ms/req", time.Millisecond, l)
	}
	return []row{
		large("large-h1tls", "HTTP/1.1 TLS, 16 connections", h2load{alpn: "http/1.1", clients: 16, streams: 1}),
		large("large-h2", "HTTP/2, 4 × 4 streams", h2load{alpn: "h2", clients: 4, streams: 4}),
		upload("upload-h1tls", "HTTP/1.1 TLS, 4 connections", h2load{alpn: "http/1.1", clients: 4, streams: 1}),
		upload("upload-h2", "HTTP/2, 4 × 1 stream", h2load{alpn: "h2", clients: 4, streams: 1}),
	}
}

// handshakeRows are connections that bring nothing but a handshake.
func handshakeRows() []row {
	shake := func(name, title string, l handshakes, limit limits) row {
		return row{name: name, title: title, service: serviceHTTPS, cost: "µs/conn", rate: "conn/s",
			limits: []limits{limit}, measure: l.measure}
	}
	return []row{
		shake("tls-full", "TLS 1.3 handshake, full, 8 at once", handshakes{atOnce: 8}, limits{Cost: 0.5, To: "caddy"}),
		shake("tls-resumed", "TLS 1.3 handshake, resumed, 8 at once", handshakes{atOnce: 8, resumed: true}, limits{Cost: 1}),
	}
}

// http3Rows are judged beside Caddy, which has HTTP/3 from the same library as
// sluice, and a current nginx.
func http3Rows() []row {
	row3 := func(name, title string, l h3load) row {
		return row{name: name, title: title, service: serviceH3, cost: "µs/req", rate: "req/s", measure: l.measure,
			reference: "caddy", limits: []limits{{Cost: 0.25}, {Cost: 2, To: nginxH3Name}}}
	}
	return []row{
		row3("h3-16x16", "HTTP/3, 16 connections × 16 streams", h3load{clients: 16, streams: 16}),
		row3("h3-64x1", "HTTP/3, 64 connections × 1 stream", h3load{clients: 64, streams: 1}),
	}
}

// halfRows have a constant rate, half of what nginx can do with this load. What
// takes several times nginx's CPU time could not keep it; sluice is judged by
// nginx alone.
func halfRows() []row {
	half := func(name, title string, load laneLoad) row {
		return row{name: name, title: title + ", half load", service: load.service, cost: "µs/req", rate: "req/s",
			limits: []limits{{P99: 1}}, without: []string{"haproxy", "caddy"}, half: &load}
	}
	h3 := half("h3-half", "HTTP/3, 64 connections × 1 stream", laneLoad{service: serviceH3, dial: dialAskH3, clients: 64, streams: 1})
	h3.reference = nginxH3Name
	return []row{
		half("h1-half", "HTTP/1.1 clear, 64 connections", laneLoad{service: serviceHTTP, dial: dialAskH1, clients: 64, streams: 1}),
		half("h1tls-half", "HTTP/1.1 TLS, 64 connections", laneLoad{service: serviceHTTPS, dial: dialAskH1TLS, clients: 64, streams: 1}),
		half("h2-16x16-half", "HTTP/2, 16 connections × 16 streams", laneLoad{service: serviceHTTPS, dial: dialAskH2, clients: 16, streams: 16}),
		half("h2-64x1-half", "HTTP/2, 64 connections × 1 stream", laneLoad{service: serviceHTTPS, dial: dialAskH2, clients: 64, streams: 1}),
		h3,
	}
}

func socketRows() []row {
	return []row{
		{name: "pingpong", title: "TCP ping-pong 64 B, 64 connections", service: serviceEcho, limits: []limits{{Cost: 1.05, P99: 1.1}},
			cost: "µs/msg", rate: "msg/s", measure: pingPong(64).measure},
		{name: "connect", title: "TCP connect + echo + close, 16 at once", service: serviceEcho, limits: []limits{{Cost: 1.1}},
			cost: "µs/conn", rate: "conn/s", measure: connectEchoClose(16).measure},
		{name: "bulk", title: "TCP bulk to the client, 4 connections", service: serviceBlast, limits: []limits{{Cost: 0.3}},
			cost: "ms/Gbit", rate: "Gbit/s", measure: bulk(4).measure},
		{name: "udp", title: "UDP ping-pong 64 B, 64 clients", service: serviceUDP, limits: []limits{{Cost: 1}},
			cost: "µs/msg", rate: "msg/s", measure: udpPingPong(64).measure},
	}
}
