package clienttls

import (
	"bytes"
	"crypto/tls"
)

// SetTicketKeys has tickets sealed with the first key and opened with any, from
// the next handshake on, over TCP and QUIC. There is one key at least.
func (t *Terms) SetTicketKeys(keys [][32]byte) {
	ring := &tls.Config{}
	ring.SetSessionTicketKeys(keys)
	t.tickets.Store(ring)
}

// markPrefix begins what a ticket says, besides the session, of what its client
// was asked for; the tag of that follows. Tickets of who was asked for nothing
// say nothing.
const markPrefix = "sluice client_auth "

// markOf returns the tag in a session.
func markOf(session *tls.SessionState) (of tag) {
	for _, extra := range session.Extra {
		if rest, ok := bytes.CutPrefix(extra, []byte(markPrefix)); ok {
			copy(of[:], rest)
		}
	}
	return of
}

// wrapper returns the WrapSession of connections whose clients are asked as auth
// has it; nil: for nothing.
func (t *Terms) wrapper(auth *Auth) func(tls.ConnectionState, *tls.SessionState) ([]byte, error) {
	return func(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
		if auth != nil {
			session.Extra = append(session.Extra, append([]byte(markPrefix), auth.tag[:]...))
		}
		return t.tickets.Load().EncryptTicket(state, session)
	}
}

// unwrapper returns the UnwrapSession likewise. A session that another host gave,
// or the same one when it asked for something else, is none here: the handshake
// is a full one then, and no error.
func (t *Terms) unwrapper(auth *Auth) func([]byte, tls.ConnectionState) (*tls.SessionState, error) {
	return func(ticket []byte, state tls.ConnectionState) (*tls.SessionState, error) {
		if len(ticket) == 0 {
			return nil, nil // a client of TLS 1.2 that says it could take one
		}
		session, err := t.tickets.Load().DecryptTicket(ticket, state)
		if session == nil || err != nil {
			t.metrics.unknownTickets.Inc()
			return nil, err
		}
		if markOf(session) != auth.tagOf() {
			t.metrics.foreignTickets.Inc()
			return nil, nil
		}
		if auth != nil {
			session.EarlyData = false
		}
		t.metrics.resumed.Inc()
		return session, nil
	}
}
