package api

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// The admin address asks nobody for a password, so what can be asked of it
// decides who may ask:
//
//   - Anybody who can connect may read metrics and health.
//   - A browser on the machine can connect as well, and the page that it shows
//     may be anybody's. The browser hides answers from pages of other origins,
//     but a page whose name was made to lead to 127.0.0.1 after it was loaded
//     (DNS rebinding) is of the same origin. Its requests carry that name in
//     Host. So the lists of flows and mappings, with clients and
//     services, the metrics of each mapping and profiles are given only to requests for an IP address, for localhost, or for the name that
//     sluice.yaml gives the admin address.
//   - What changes anything must moreover not come from a page of another
//     origin, which the browser says in Sec-Fetch-Site or Origin, and must come
//     from this machine.

// guarded has next answer only requests that no foreign web page can make.
func (s *Server) guarded(next http.Handler) http.Handler {
	return answering(func(w http.ResponseWriter, r *http.Request) error {
		if !s.knowsHost(r.Host) {
			return refuse(http.StatusForbidden, "asked for %q; ask this address by its IP address, by localhost, or by the name in sluice.yaml, "+
				"so that no web page can under a name of its own", r.Host)
		}
		next.ServeHTTP(w, r)
		return nil
	})
}

// acting is guarded for what changes anything.
func (s *Server) acting(next http.Handler) http.Handler {
	origins := http.NewCrossOriginProtection()
	return s.guarded(answering(func(w http.ResponseWriter, r *http.Request) error {
		if err := origins.Check(r); err != nil {
			return refuse(http.StatusForbidden, "refused a web page's request: %w", err)
		}
		if !fromHere(r) {
			return refuse(http.StatusForbidden, "this is answered only on the machine itself; you come from %s", r.RemoteAddr)
		}
		next.ServeHTTP(w, r)
		return nil
	}))
}

// knowsHost reports whether a request's Host is one that no web page can have
// for its own name.
func (s *Server) knowsHost(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]")
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "localhost" || s.name != "" && host == s.name {
		return true
	}
	_, err = netip.ParseAddr(host)
	return err == nil
}

// fromHere reports whether a request comes from this machine: from loopback, or
// from the very address that it was sent to.
func fromHere(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	if peer.Addr().Unmap().IsLoopback() {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.AddrPort().Addr().Unmap() == peer.Addr().Unmap()
}
