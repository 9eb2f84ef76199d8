// Package http proxies HTTP exchanges. It owns client connections from their
// first byte (of TLS, of a request line, of QUIC) to their last, and the pooled
// connections to backends.
//
// A codec reads a request from a connection (HTTP/1.1, HTTP/2 or HTTP/3) and
// makes an exchange of it. What happens then is written once for all of them:
// decide finds the route in the table in force, header policy edits the request
// and the response, the forwarder takes the exchange to a backend and back, and
// the exchange ends in one access log record and a few metrics. The seam is the
// exchange with its small interfaces body and downstream; fields cross it as
// field.List, in order and uncopied.
//
// HTTP/1.1 is spoken by this package itself, with clients (codec_h1*.go) and with
// backends (up_*.go), by the parsers of package h1. One goroutine walks a client
// connection, and takes each exchange to the backend and back by itself: an
// ordinary request costs one read and one write on each side, one look for
// whether the idle connection to the backend has ended, and no allocation to
// speak of. A second goroutine is there only while a body is sent that did not
// come with its head, or while a response lets itself be waited for and the
// client might leave. What an exchange needs, it has from pools; a connection
// that waits holds no buffer in clear text, and half a kilobyte besides
// crypto/tls's own over TLS; an upgraded connection holds one only while it has
// something to copy. To a client that asks again as soon as it is
// answered, the answer goes out from within the wait for the next request.
//
// HTTP/2 with clients is spoken on package h2 (codec_h2*.go). One goroutine
// reads a connection's frames, and has each exchange walked by a goroutine that
// the connection keeps while it is busy. Frames of all streams are gathered in one
// buffer; who has something to send writes for all. What a client may do without
// asking for anything (resets, pings, settings, windows, empty frames) has budgets
// that grow with time and with work done.
//
// HTTP/2 is spoken with backends by this package too (up_h2*.go), over frames and
// field blocks of package h2. A connection has one goroutine, which reads for all
// the exchanges on it and wakes one when its response, or more of it, has come;
// there is none that writes: who has something to send appends it to what others
// have, and whoever comes first sends it all, as far as the socket takes it
// without waiting. What is kept of a response that its client does not take is
// bounded by the window of its stream, while that of the connection never runs
// out, so that streams do not hold each other up. A backend that is spoken to by
// TLS chooses HTTP/2 or HTTP/1.1 when it is first connected to.
//
// HTTP/3 is spoken over quic-go's streams (codec_h3*.go), by package h3. One
// goroutine accepts the requests of a connection, and each is then one
// goroutine's from its head to its end. Time limits, and the look for whether a
// client has left, hang on one timer of the connection.
//
// Strings of an exchange may lie in buffers that are used again when it is over.
// With the race detector those are spoiled by then, so that a string that got
// away shows.
//
// What a route or a mapping asks of requests (admit.go) is a nil check for those
// that ask nothing. Limits count in a table of fixed size (buckets.go), passwords
// are verified a few at a time (basicauth.go), a service is asked by an exchange
// whose downstream is a recorder (forwardauth.go), and a body is bounded by a
// body in front of the codec's (bodyguard.go), so that no codec knows of any.
//
// The package opens no listening socket, obtains no certificate and parses no
// configuration: the engine in package proxy hands it accepted connections, UDP
// sockets, a tls.Config and the current table.
package http
