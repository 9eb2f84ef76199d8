package dns

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// updater keeps records at a server that takes dynamic updates, and asks that
// server. All that it changes has the condition that it is as it was read (RFC
// 2136 section 2.4): what somebody else does in between is never overwritten, nor
// is what a leader does that has been replaced.
type updater struct {
	server, key, alg, secret string
}

// exchange sends messages that are signed, over one connection, and returns the
// answers.
func (u *updater) exchange(ctx context.Context, messages ...*dns.Msg) ([]*dns.Msg, error) {
	client := &dns.Client{Net: "tcp", TsigSecret: map[string]string{u.key: u.secret}}
	conn, err := client.DialContext(ctx, u.server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	answers := make([]*dns.Msg, len(messages))
	for i, m := range messages {
		m.SetTsig(u.key, u.alg, 300, time.Now().Unix())
		// The library would sign the second message of one of its connections as if it
		// went on with the first.
		fresh := &dns.Conn{Conn: conn.Conn, TsigSecret: client.TsigSecret}
		if answers[i], _, err = client.ExchangeWithConnContext(ctx, m, fresh); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

// rcodeError is what the server says by the code of an answer. Its text is what
// libdns/rfc2136 makes of it, by which errors are told apart.
func rcodeError(m *dns.Msg) error {
	if m.Rcode == dns.RcodeSuccess {
		return nil
	}
	return fmt.Errorf("dns response error code %q (%d)", dns.RcodeToString[m.Rcode], m.Rcode)
}

// read asks for the records of each name. What a wildcard answers with is left out.
func (u *updater) read(ctx context.Context, zone string, names []string) ([]Host, error) {
	kinds := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT}
	var questions []*dns.Msg
	for _, name := range names {
		for _, kind := range kinds {
			questions = append(questions, query(name, kind))
		}
	}
	answers, err := u.exchange(ctx, questions...)
	if err != nil {
		return nil, err
	}
	var all []Host
	for i, m := range answers {
		name := names[i/len(kinds)]
		if m.Rcode != dns.RcodeNameError && rcodeError(m) != nil {
			return nil, rcodeError(m)
		}
		if !m.Authoritative {
			return nil, fmt.Errorf("dns response error code %q: it answers for %s without authority; server has to be one of the zone's own", "NOTAUTH", name)
		}
		found := hostsIn(m, name)
		if len(found) > 0 && !strings.HasPrefix(name, "*.") && name != zone {
			if found, err = u.own(ctx, zone, name, m, found); err != nil {
				return nil, err
			}
		}
		for _, h := range found {
			if !slices.Contains(all, h) { // a CNAME answers each question
				all = append(all, h)
			}
		}
	}
	return all, nil
}

func query(name string, kind uint16) *dns.Msg {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	m.RecursionDesired = false
	return m
}

// hostsIn returns the records of name in an answer.
func hostsIn(m *dns.Msg, name string) []Host {
	var found []Host
	for _, rr := range m.Answer {
		h := Host{Name: name, Type: dns.TypeToString[rr.Header().Rrtype], TTL: int(rr.Header().Ttl)}
		if !strings.EqualFold(rr.Header().Name, dns.Fqdn(name)) {
			continue
		}
		switch rr := rr.(type) {
		case *dns.A:
			h.Data = rr.A.String()
		case *dns.AAAA:
			h.Data = rr.AAAA.String()
		case *dns.CNAME:
			h.Data = strings.ToLower(strings.TrimSuffix(rr.Target, "."))
		case *dns.TXT:
			h.Data = strings.Join(rr.Txt, "")
		default:
			continue
		}
		found = append(found, h)
	}
	return found
}

// own returns found, unless those are what a wildcard answers with: then a name
// that nobody has gets the same answer, and the zone has no such records of name
// itself, which the server is asked by an update that changes nothing.
func (u *updater) own(ctx context.Context, zone, name string, m *dns.Msg, found []Host) ([]Host, error) {
	nobody := strings.ToLower("_"+rand.Text()) + name[strings.IndexByte(name, '.'):]
	answers, err := u.exchange(ctx, query(nobody, m.Question[0].Qtype))
	if err != nil {
		return nil, err
	}
	if len(answers[0].Answer) == 0 {
		return found, nil
	}
	look := new(dns.Msg).SetUpdate(dns.Fqdn(zone))
	look.RRsetUsed([]dns.RR{&dns.ANY{Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: dns.StringToType[found[0].Type]}}})
	if answers, err = u.exchange(ctx, look); err != nil {
		return nil, err
	}
	switch answers[0].Rcode {
	case dns.RcodeSuccess:
		return found, nil
	case dns.RcodeNXRrset, dns.RcodeNameError:
		return nil, nil
	}
	return nil, rcodeError(answers[0])
}

func (h Host) rr() dns.RR {
	head := dns.RR_Header{Name: dns.Fqdn(h.Name), Rrtype: dns.StringToType[h.Type], Class: dns.ClassINET, Ttl: uint32(h.TTL)}
	if h.Type == "TXT" {
		return &dns.TXT{Hdr: head, Txt: []string{h.Data}}
	}
	rr, err := dns.NewRR(fmt.Sprintf("%s %d IN %s %s", head.Name, h.TTL, h.Type, h.Data))
	if err != nil || rr == nil {
		return &dns.ANY{Hdr: head}
	}
	return rr
}

// send sends one update, and says where its conditions do not hold.
func (u *updater) send(ctx context.Context, m *dns.Msg) error {
	answers, err := u.exchange(ctx, m)
	if err != nil {
		return err
	}
	switch answers[0].Rcode {
	case dns.RcodeYXDomain, dns.RcodeYXRrset, dns.RcodeNXRrset, dns.RcodeNameError:
		return errOvertaken
	}
	return rcodeError(answers[0])
}

// swap makes all of swaps in one message.
func (u *updater) swap(ctx context.Context, zone string, swaps []HostSwap) error {
	m := new(dns.Msg).SetUpdate(dns.Fqdn(zone))
	for _, s := range swaps {
		require(m, s.Name, s.Before, dns.TypeA, dns.TypeAAAA)
		require(m, s.Marker.Name, s.Found, dns.TypeTXT)
		m.RRsetNotUsed([]dns.RR{&dns.ANY{Hdr: dns.RR_Header{Name: dns.Fqdn(s.Name), Rrtype: dns.TypeCNAME}}})
	}
	for _, s := range swaps {
		replace(m, s.Found, []Host{s.Marker})
		replace(m, s.Before, s.After)
	}
	return u.send(ctx, m)
}

// require makes it a condition that name has these records of each type, and no
// others.
func require(m *dns.Msg, name string, records []Host, kinds ...uint16) {
	for _, kind := range kinds {
		var set []dns.RR
		for _, r := range records {
			if rr := r.rr(); rr.Header().Rrtype == kind {
				set = append(set, rr)
			}
		}
		if len(set) == 0 {
			m.RRsetNotUsed([]dns.RR{&dns.ANY{Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: kind}}})
			continue
		}
		m.Used(set)
	}
}

// replace removes what is not to be there, or not with that TTL, and adds what is:
// an update is made whole, and Knot takes another TTL of a record that is there
// for no change.
func replace(m *dns.Msg, before, after []Host) {
	var add, remove []dns.RR
	for _, r := range before {
		if !slices.Contains(after, r) {
			remove = append(remove, r.rr())
		}
	}
	for _, r := range after {
		if !slices.Contains(before, r) {
			add = append(add, r.rr())
		}
	}
	m.Remove(remove)
	m.Insert(add)
}

func (u *updater) add(ctx context.Context, zone string, r Host) error {
	m := new(dns.Msg).SetUpdate(dns.Fqdn(zone))
	m.Insert([]dns.RR{r.rr()})
	return u.send(ctx, m)
}

func (u *updater) update(ctx context.Context, zone string, r Host) error {
	m := new(dns.Msg).SetUpdate(dns.Fqdn(zone))
	m.Remove([]dns.RR{r.rr()})
	m.Insert([]dns.RR{r.rr()})
	return u.send(ctx, m)
}

func (u *updater) remove(ctx context.Context, zone string, r Host) error {
	m := new(dns.Msg).SetUpdate(dns.Fqdn(zone))
	m.Remove([]dns.RR{r.rr()})
	return u.send(ctx, m)
}

func (u *updater) leastTTL(context.Context, string) (int, error) { return 1, nil }

func (u *updater) weighted() bool { return false }
