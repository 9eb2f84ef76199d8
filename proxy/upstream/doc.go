// Package upstream connects to backends: which target a flow gets, what a
// target's name stands for, and the TCP or UDP connection to it, with the PROXY
// header that names the client where one is wanted.
//
// It owns the resolving of names, the balance between a backend's targets and the
// memory of targets that failed a moment ago. It never carries a flow's bytes,
// keeps no connection and knows nothing of HTTP. proxy/l4 and proxy/http call
// it, and proxy for the PROXY headers that come in.
package upstream
