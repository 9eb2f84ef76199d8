package dns

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// udpSize is the size of answers that is asked for: one that passes every
	// network in one piece (RFC 9715 section 3.1, DNS flag day 2020).
	udpSize = 1232
	// maxRecords bounds what is read of one answer.
	maxRecords = 1024
	// maxChain bounds a chain of CNAMEs.
	maxChain = 16
)

// question is what a server is asked.
type question struct {
	id   uint16
	name dnsmessage.Name
	kind dnsmessage.Type
}

// pack writes q as a message. edns says whether it has an OPT record, which asks
// for bigger answers (RFC 6891 section 6.1).
func (q question) pack(edns bool) ([]byte, error) {
	b := dnsmessage.NewBuilder(make([]byte, 0, 512), dnsmessage.Header{ID: q.id, RecursionDesired: true})
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(dnsmessage.Question{Name: q.name, Type: q.kind, Class: dnsmessage.ClassINET}); err != nil {
		return nil, err
	}
	if edns {
		if err := b.StartAdditionals(); err != nil {
			return nil, err
		}
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(udpSize, dnsmessage.RCodeSuccess, false); err != nil {
			return nil, err
		}
		if err := b.OPTResource(h, dnsmessage.OPTResource{}); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// reply is what a server said to a question.
type reply struct {
	code      dnsmessage.RCode
	truncated bool
	addrs     []netip.Addr
	alias     dnsmessage.Name // what the name is another name for, if addrs is empty
	isAlias   bool
	hasSOA    bool // it says for how long there is nothing
	referral  bool // it does not know and names others
	ttl       time.Duration
}

var (
	errNotMine   = errors.New("not the answer to the question")
	errMalformed = errors.New("the answer is malformed")
)

// parseReply reads p as the answer to q. The error is errNotMine if it is none,
// and may be somebody else's attempt at one; errMalformed if it is, and is
// broken.
func parseReply(p []byte, q question) (reply, error) {
	var parser dnsmessage.Parser
	h, err := parser.Start(p)
	if err != nil || h.ID != q.id || !h.Response || h.OpCode != 0 {
		return reply{}, errNotMine
	}
	asked, err := parser.Question()
	if err != nil || asked.Type != q.kind || asked.Class != dnsmessage.ClassINET || !sameName(asked.Name, q.name) {
		return reply{}, errNotMine
	}
	if _, err := parser.Question(); err != dnsmessage.ErrSectionDone {
		return reply{}, errNotMine
	}
	r := reply{code: h.RCode, truncated: h.Truncated}
	if r.truncated {
		return r, nil // and to be asked again
	}
	records, err := readAnswers(&parser)
	if err != nil {
		return r, errMalformed
	}
	r.follow(records, q)
	if len(r.addrs) > 0 {
		return r, nil
	}
	if err := r.readAuthority(&parser); err != nil {
		return r, errMalformed
	}
	r.referral = r.code == dnsmessage.RCodeSuccess && !r.isAlias && !r.hasSOA && !h.Authoritative && !h.RecursionAvailable
	return r, nil
}

// sameName compares names without regard to case (RFC 4343).
func sameName(a, b dnsmessage.Name) bool {
	return strings.EqualFold(string(a.Data[:a.Length]), string(b.Data[:b.Length]))
}

// record is one of those that lead to addresses.
type record struct {
	owner, alias dnsmessage.Name
	addr         netip.Addr // not valid: a CNAME
	ttl          time.Duration
}

// readAnswers returns the addresses and aliases of the answer section.
func readAnswers(parser *dnsmessage.Parser) ([]record, error) {
	var records []record
	for range maxRecords {
		h, err := parser.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			return records, nil
		}
		if err != nil {
			return nil, err
		}
		r := record{owner: h.Name, ttl: ttlOf(h.TTL)}
		isOurs := h.Class == dnsmessage.ClassINET
		switch {
		case isOurs && h.Type == dnsmessage.TypeA:
			var a dnsmessage.AResource
			a, err = parser.AResource()
			r.addr = netip.AddrFrom4(a.A)
		case isOurs && h.Type == dnsmessage.TypeAAAA:
			var a dnsmessage.AAAAResource
			a, err = parser.AAAAResource()
			r.addr = netip.AddrFrom16(a.AAAA).Unmap()
		case isOurs && h.Type == dnsmessage.TypeCNAME:
			var c dnsmessage.CNAMEResource
			c, err = parser.CNAMEResource()
			r.alias = c.CNAME
		default:
			if err := parser.SkipAnswer(); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil // the rest is of no interest
}

// ttlOf reads a TTL: one with the highest bit set is 0 (RFC 2181 section 8).
func ttlOf(seconds uint32) time.Duration {
	if seconds > 1<<31-1 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// follow goes from the question's name through aliases to addresses. Records of
// other names are no answer, whoever put them there.
func (r *reply) follow(records []record, q question) {
	at := q.name
	least := time.Duration(1<<31) * time.Second
	for range maxChain {
		alias := -1
		for i := range records {
			rec := &records[i]
			if !sameName(rec.owner, at) {
				continue
			}
			switch {
			case !rec.addr.IsValid():
				alias = i
			case rec.addr.Is4() == (q.kind == dnsmessage.TypeA):
				least = min(least, rec.ttl)
				if len(r.addrs) < maxAddrs && !contains(r.addrs, rec.addr) {
					r.addrs = append(r.addrs, rec.addr)
				}
			}
		}
		if len(r.addrs) > 0 || alias < 0 {
			break
		}
		at, least = records[alias].alias, min(least, records[alias].ttl)
		r.alias, r.isAlias = at, true
	}
	r.ttl = least
}

// readAuthority finds for how long there is nothing: the lesser of the TTL of
// the zone's SOA and its minimum (RFC 2308 section 5).
func (r *reply) readAuthority(parser *dnsmessage.Parser) error {
	if err := parser.SkipAllAnswers(); err != nil {
		return err
	}
	if !r.isAlias {
		r.ttl = 0
	}
	for range maxRecords {
		h, err := parser.AuthorityHeader()
		if err == dnsmessage.ErrSectionDone {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Type != dnsmessage.TypeSOA || h.Class != dnsmessage.ClassINET {
			if err := parser.SkipAuthority(); err != nil {
				return err
			}
			continue
		}
		soa, err := parser.SOAResource()
		if err != nil {
			return err
		}
		r.hasSOA = true
		ttl := min(ttlOf(h.TTL), ttlOf(soa.MinTTL))
		if r.isAlias {
			ttl = min(ttl, r.ttl) // the aliases that led here may change sooner
		}
		r.ttl = ttl
		return nil
	}
	return nil
}
