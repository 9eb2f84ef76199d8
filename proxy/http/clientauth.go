package http

import (
	"time"

	"github.com/remotegpu/sluice/proxy/clienttls"
	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/router"
)

// The fields by which backends are told of clients' certificates. Nobody else's
// word under such a name reaches them.
const (
	certPrefix      = "x-client-cert-"
	certVerify      = "X-Client-Cert-Verify"
	certSubject     = "X-Client-Cert-Subject"
	certSAN         = "X-Client-Cert-San"
	certSerial      = "X-Client-Cert-Serial"
	certFingerprint = "X-Client-Cert-Fingerprint"
)

// identified is what the client of a connection was found to be.
type identified struct {
	by *clienttls.Auth
	*clienttls.Identity
}

// identify finds out who asks, where the host wants to know. It returns the
// answer for who may not. A connection serves hosts that it was not opened for,
// and outlives what was in force then: so this is asked for each exchange, and
// whoever has shown nothing for this host has to come by another connection.
func (s *Server) identify(x *exchange, table *router.Table) *answer {
	asks := table.ClientAuth(x.req.host)
	if asks == nil {
		return nil
	}
	auth := s.cfg.Terms.Auth(asks)
	switch {
	case !x.conn.info.TLS && auth.Required():
		return plain(403, "this host takes a certificate of the client, which there is over TLS only\n")
	case !x.conn.info.TLS:
		x.identity = &clienttls.Identity{Why: "none"}
		return nil
	case !x.conn.asked.Load().Like(auth):
		return plain(421, "this connection was opened without the certificate that this host asks clients for; open one for this host\n")
	case x.req.early:
		return tooEarly()
	}
	x.identity = x.conn.identify(auth, x.began)
	if auth.Required() && !x.identity.Verified {
		return plain(421, "the certificate of this connection is not accepted any more; open another one\n")
	}
	return nil
}

// identify returns who the client is by auth, now. The handshake is complete.
func (c *conn) identify(auth *clienttls.Auth, now time.Time) *clienttls.Identity {
	if last := c.identity.Load(); last != nil && last.by == auth && last.Holds(now) {
		return last.Identity
	}
	id := &identified{auth, auth.Identify(c.shown(), now)}
	c.identity.Store(id)
	return id.Identity
}

// tellIdentity has the backend know what the client's certificate is worth.
func (x *exchange) tellIdentity(h *field.List) {
	id := x.identity
	if id == nil {
		return
	}
	if !id.Verified {
		h.Add(certVerify, id.Why)
		return
	}
	h.Add(certVerify, "verified")
	h.Add(certSubject, id.Subject)
	if id.SANs != "" {
		h.Add(certSAN, id.SANs)
	}
	h.Add(certSerial, id.Serial)
	h.Add(certFingerprint, id.Fingerprint)
}
