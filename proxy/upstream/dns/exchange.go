package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// maxAliases bounds how often a CNAME is looked up for a server that does not.
	maxAliases = 8
	// maxStray bounds the datagrams that are looked at for one answer.
	maxStray = 64
	// suspicion is how long a name server that did not answer is asked last.
	suspicion = 10 * time.Second
)

// one asks for the addresses of one family.
func (c *Client) one(ctx context.Context, cf *conf, fqdn string, kind dnsmessage.Type) answer {
	name, err := dnsmessage.NewName(fqdn)
	if err != nil {
		return answer{err: &net.DNSError{Err: err.Error(), Name: fqdn}}
	}
	least := time.Duration(-1)
	for range maxAliases {
		r, failed := c.ask(ctx, cf, name, kind)
		if failed != nil {
			return answer{err: failed}
		}
		if least < 0 || r.ttl < least {
			least = r.ttl
		}
		// A server that recurses says what is behind an alias, or that there is
		// nothing. Some do neither.
		if len(r.addrs) == 0 && r.isAlias && !r.hasSOA && r.code == dnsmessage.RCodeSuccess {
			name = r.alias
			continue
		}
		return answer{addrs: r.addrs, none: r.code == dnsmessage.RCodeNameError, ttl: least}
	}
	return answer{err: &net.DNSError{Err: "its aliases lead on and on", Name: fqdn, IsTemporary: true}}
}

// ask puts a question to the name servers, one after the other, until one gives
// an answer or all had as many attempts as they get.
func (c *Client) ask(ctx context.Context, cf *conf, name dnsmessage.Name, kind dnsmessage.Type) (reply, *net.DNSError) {
	servers := c.inOrder(cf)
	failed := &net.DNSError{Err: "no name server answers", Name: name.String(), IsTimeout: true, IsTemporary: true}
	for try := range cf.attempts * len(servers) {
		server := netip.AddrPortFrom(servers[try%len(servers)], c.port)
		limit := shareOf(ctx, cf.attempts*len(servers)-try, cf.timeout)
		bounded, cancel := context.WithTimeout(ctx, limit)
		r, err := exchange(bounded, server, name, kind, cf.tcp)
		cancel()
		if err == nil {
			if err = r.verdict(); err == nil {
				c.dead.absolve(server.Addr())
				return r, nil
			}
		}
		if ctx.Err() != nil && try > 0 {
			break // what was wrong before says more
		}
		failed = inWords(err, name, server)
		if failed.IsTimeout && ctx.Err() == nil {
			c.dead.suspect(server.Addr())
		}
		if ctx.Err() != nil {
			break
		}
	}
	return reply{}, failed
}

// shareOf returns how long the next of n tries may take: an equal share of the
// time that is left, at most limit.
func shareOf(ctx context.Context, n int, limit time.Duration) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return limit
	}
	return min(limit, time.Until(deadline)/time.Duration(n))
}

// serverError is an answer by which a server says that it has none.
type serverError struct{ code dnsmessage.RCode }

func (e serverError) Error() string {
	switch e.code {
	case dnsmessage.RCodeServerFailure:
		return "the name server cannot find out (SERVFAIL)"
	case dnsmessage.RCodeRefused:
		return "the name server refuses to answer (REFUSED)"
	case dnsmessage.RCodeSuccess:
		return "the name server refers to others and does not ask them itself"
	}
	return fmt.Sprintf("the name server answers with an error (%v)", e.code)
}

// verdict returns the reason to ask another server, if there is one.
func (r *reply) verdict() error {
	switch {
	case r.code != dnsmessage.RCodeSuccess && r.code != dnsmessage.RCodeNameError,
		r.referral && len(r.addrs) == 0:
		return serverError{r.code}
	}
	return nil
}

func inWords(err error, name dnsmessage.Name, server netip.AddrPort) *net.DNSError {
	out := &net.DNSError{Err: err.Error(), Name: name.String(), Server: server.String(), IsTemporary: true}
	var op *net.OpError
	if errors.As(err, &op) {
		out.Err = op.Err.Error()
	}
	var network net.Error
	if errors.As(err, &network) && network.Timeout() || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		out.Err, out.IsTimeout = "no answer", true
	}
	return out
}

// exchange asks one server once: by UDP, and again by TCP where the answer does
// not fit (RFC 7766 section 5), or without EDNS where that is not understood.
func exchange(ctx context.Context, server netip.AddrPort, name dnsmessage.Name, kind dnsmessage.Type, tcp bool) (reply, error) {
	edns := true
	for {
		var id [2]byte
		_, _ = rand.Read(id[:]) // never fails
		q := question{id: binary.BigEndian.Uint16(id[:]), name: name, kind: kind}
		msg, err := q.pack(edns)
		if err != nil {
			return reply{}, err
		}
		network := "udp"
		if tcp {
			network = "tcp"
		}
		r, err := transact(ctx, network, server, msg, q)
		switch {
		case err != nil:
			return r, err
		case r.truncated && tcp:
			return r, errMalformed
		case r.truncated:
			tcp = true
		case edns && (r.code == dnsmessage.RCodeFormatError || r.code == dnsmessage.RCodeNotImplemented):
			edns = false // RFC 6891 section 7
		default:
			return r, nil
		}
	}
}

// transact sends msg and reads the answer. The socket is connected, so that the
// kernel takes datagrams from the server alone, and new for each question, so
// that its port is as hard to guess as the ID (RFC 5452 section 9.2).
func transact(ctx context.Context, network string, server netip.AddrPort, msg []byte, q question) (reply, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, server.String())
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if network == "tcp" {
		return transactTCP(conn, msg, q)
	}
	if _, err := conn.Write(msg); err != nil {
		return reply{}, err
	}
	buf := make([]byte, 4<<10)
	for range maxStray {
		n, err := conn.Read(buf)
		if err != nil {
			return reply{}, err
		}
		if r, err := parseReply(buf[:n], q); err != errNotMine {
			return r, err
		}
	}
	return reply{}, errors.New("the name server sends anything but the answer")
}

// transactTCP puts the length before each message (RFC 1035 section 4.2.2).
func transactTCP(conn net.Conn, msg []byte, q question) (reply, error) {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)); err != nil {
		return reply{}, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return reply{}, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return reply{}, err
	}
	return parseReply(buf, q)
}

// inOrder returns the servers in the order to ask them.
func (c *Client) inOrder(cf *conf) []netip.Addr {
	if !cf.rotate || len(cf.servers) < 2 {
		return c.dead.last(cf.servers)
	}
	first := int(c.turn.Add(1)) % len(cf.servers)
	return c.dead.last(append(append([]netip.Addr{}, cf.servers[first:]...), cf.servers[:first]...))
}

// suspects are name servers that did not answer lately. They are asked last,
// since waiting for them would take the time that the others need. There are as
// many as resolv.conf has named at a time, so few.
type suspects struct {
	mu    sync.Mutex // guards the following field
	until map[netip.Addr]time.Time
}

func (s *suspects) suspect(server netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil {
		s.until = map[netip.Addr]time.Time{}
	}
	now := time.Now()
	for a, t := range s.until {
		if now.After(t) {
			delete(s.until, a)
		}
	}
	s.until[server] = now.Add(suspicion)
}

func (s *suspects) absolve(server netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.until, server)
}

// last returns servers with the suspects at the end.
func (s *suspects) last(servers []netip.Addr) []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.until) == 0 {
		return servers
	}
	now := time.Now()
	var good, bad []netip.Addr
	for _, a := range servers {
		if now.Before(s.until[a]) {
			bad = append(bad, a)
		} else {
			good = append(good, a)
		}
	}
	return append(good, bad...)
}
