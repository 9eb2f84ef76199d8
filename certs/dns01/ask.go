package dns01

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// answerLimit is how long one server may take over one message, by UDP and then
// by TCP.
const answerLimit = 2 * time.Second

// resolvConf is where the system's resolvers stand.
const resolvConf = "/etc/resolv.conf"

// asker sends questions. It keeps nothing between them.
type asker struct {
	resolvers []string // host:port
	limit     time.Duration
	port      string // of the servers that DNS names
}

// resolversOf returns the resolvers with their ports, or the system's.
func resolversOf(listed []string) ([]string, error) {
	if len(listed) == 0 {
		conf, err := dns.ClientConfigFromFile(resolvConf)
		if err != nil || len(conf.Servers) == 0 {
			return []string{"127.0.0.1:53", "[::1]:53"}, nil // as resolv.conf(5) has it
		}
		for _, s := range conf.Servers {
			listed = append(listed, net.JoinHostPort(s, conf.Port))
		}
		return listed, nil
	}
	all := make([]string, len(listed))
	for i, r := range listed {
		host, port, err := net.SplitHostPort(r)
		if err != nil {
			host, port = strings.Trim(r, "[]"), "53"
		}
		if host == "" || port == "" {
			return nil, fmt.Errorf("resolver %q: want host or host:port", r)
		}
		all[i] = net.JoinHostPort(host, port)
	}
	return all, nil
}

// resolve asks the resolvers in turn until one gives an answer that check, which
// may be nil, does not refuse. It returns that resolver's address with it.
func (a asker) resolve(ctx context.Context, name string, kind uint16, check func(*dns.Msg) error) (*dns.Msg, string, error) {
	var errs []string
	for _, r := range a.resolvers {
		m, err := a.exchange(ctx, r, name, kind, true)
		if err == nil && m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
			err = fmt.Errorf("says %s", rcode(m))
		}
		if err == nil && check != nil {
			err = check(m)
		}
		if err == nil {
			return m, r, nil
		}
		if ctx.Err() != nil {
			return nil, "", errStopped
		}
		errs = append(errs, fmt.Sprintf("%s %v", r, err))
	}
	return nil, "", fmt.Errorf("%s", strings.Join(errs, "; "))
}

// exchange asks one server, by UDP and, if that is cut short or unanswered, by TCP.
func (a asker) exchange(ctx context.Context, server, name string, kind uint16, recurse bool) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	q.RecursionDesired = recurse
	q.SetEdns0(1232, false) // what passes everywhere unfragmented
	m, err := a.once(ctx, "udp", server, q)
	if err == nil && m.Rcode == dns.RcodeFormatError {
		q.Extra = nil // a server of before EDNS (RFC 6891 section 7)
		m, err = a.once(ctx, "udp", server, q)
	}
	if err == nil && !m.Truncated || ctx.Err() != nil {
		return m, err
	}
	return a.once(ctx, "tcp", server, q)
}

func (a asker) once(ctx context.Context, network, server string, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, a.limit)
	defer cancel()
	client := &dns.Client{Net: network, Timeout: a.limit}
	m, _, err := client.ExchangeContext(ctx, q, server)
	if err != nil {
		return nil, inWords(err)
	}
	if len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, q.Question[0].Name) || m.Question[0].Qtype != q.Question[0].Qtype {
		return nil, errors.New("answers another question")
	}
	return m, nil
}

// inWords shortens an error of the network to what matters.
func inWords(err error) error {
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return errors.New("does not answer")
	}
	if oe, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Errorf("cannot be reached: %w", oe.Err)
	}
	return fmt.Errorf("gives no proper answer: %w", err)
}

func rcode(m *dns.Msg) string {
	if text, ok := dns.RcodeToString[m.Rcode]; ok {
		return text
	}
	return fmt.Sprintf("RCODE %d", m.Rcode)
}
