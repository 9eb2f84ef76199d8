// Package http proxies HTTP exchanges. It owns client connections from their
// first byte (of TLS, of a request line, of QUIC) to their last, and the pooled
// connections to backends.
//
// A codec reads a request from a connection (HTTP/1.1, HTTP/2 or HTTP/3) and
// makes an exchange of it. What happens then is written once for all of them:
// decide finds the route in the table in force, header policy edits the request
// and the response, the forwarder takes the exchange to a backend and back, and
// the exchange ends in one access log record and a few metrics.
//
// Codecs and forwarder ride on net/http and quic-go's http3 for now. They are
// the files codec_*.go, forward_std.go and pool_std.go, and what they share with
// the rest is the exchange with its small interfaces header and downstream.
//
// The package opens no listening socket, obtains no certificate and parses no
// configuration: the engine in package proxy hands it accepted connections, UDP
// sockets, a tls.Config and the current table.
package http
