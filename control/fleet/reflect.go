package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// A Reflector says at which address it is asked from.
type Reflector struct {
	text string
	// ask asks over IPv4 or IPv6; network is tcp4 or tcp6.
	ask func(ctx context.Context, network string) (netip.Addr, error)
}

// ParseReflector reads where a reflector is: a URL whose answer is an address and
// nothing else, http://host/path or https://host/path; or a name that a DNS server
// answers with the address of who asks, dns://server/name, or
// dns://server/name?type=TXT where it is a text.
func ParseReflector(text string) (Reflector, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return Reflector{}, fmt.Errorf("%q is no reflector; write https://host/path or dns://server/name", text)
	}
	r := Reflector{text: text}
	switch u.Scheme {
	case "http", "https":
		r.ask = func(ctx context.Context, network string) (netip.Addr, error) { return askHTTP(ctx, network, text) }
	case "dns":
		kind, known := map[string]dnsmessage.Type{"": 0, "TXT": dnsmessage.TypeTXT}[strings.ToUpper(u.Query().Get("type"))]
		name, err := dnsmessage.NewName(strings.TrimSuffix(strings.TrimPrefix(u.Path, "/"), ".") + ".")
		if err != nil || !known || len(u.Path) < 2 {
			return Reflector{}, fmt.Errorf("%q is no reflector; write dns://server/name, with ?type=TXT where the answer is a text", text)
		}
		server := u.Host
		if u.Port() == "" {
			server = net.JoinHostPort(u.Hostname(), "53")
		}
		r.ask = func(ctx context.Context, network string) (netip.Addr, error) {
			return askDNS(ctx, strings.Replace(network, "tcp", "udp", 1), server, name, kind)
		}
	default:
		return Reflector{}, fmt.Errorf("%q is no reflector; write https://host/path or dns://server/name", text)
	}
	return r, nil
}

// maxReflection bounds what a reflector answers; an address takes 39 bytes.
const maxReflection = 256

func askHTTP(ctx context.Context, network, text string) (netip.Addr, error) {
	transport := &http.Transport{
		Proxy: nil, // which has another address
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
		DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10,
	}
	client := http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, text, nil)
	if err != nil {
		return netip.Addr{}, err
	}
	req.Header.Set("Accept", "text/plain")
	resp, err := client.Do(req)
	if err != nil {
		return netip.Addr{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return netip.Addr{}, fmt.Errorf("it answers %s", resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReflection+1))
	if err != nil {
		return netip.Addr{}, err
	}
	return parseReflection(string(body))
}

func parseReflection(text string) (netip.Addr, error) {
	if len(text) > maxReflection {
		return netip.Addr{}, errors.New("it answers more than an address")
	}
	addr, err := netip.ParseAddr(strings.TrimSpace(text))
	if err != nil {
		return netip.Addr{}, errors.New("it answers something that is no address")
	}
	return addr.Unmap(), nil
}

// askDNS asks one server one question, and believes an answer to that alone.
func askDNS(ctx context.Context, network, server string, name dnsmessage.Name, kind dnsmessage.Type) (netip.Addr, error) {
	if kind == 0 {
		if kind = dnsmessage.TypeA; network == "udp6" {
			kind = dnsmessage.TypeAAAA
		}
	}
	c, err := new(net.Dialer).DialContext(ctx, network, server)
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	question := dnsmessage.Question{Name: name, Type: kind, Class: dnsmessage.ClassINET}
	ask := dnsmessage.Message{Header: dnsmessage.Header{ID: randomID(), RecursionDesired: true}, Questions: []dnsmessage.Question{question}}
	packed, err := ask.Pack()
	if err != nil {
		return netip.Addr{}, err
	}
	if _, err := c.Write(packed); err != nil {
		return netip.Addr{}, err
	}
	buf := make([]byte, 1500)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return netip.Addr{}, err
		}
		if addr, err := reflectionIn(buf[:n], ask.ID, question); err == nil || !errors.Is(err, errNotAsked) {
			return addr, err
		}
	}
}

var errNotAsked = errors.New("that was not asked")

// reflectionIn returns the address that a DNS message has in answer to a question.
func reflectionIn(message []byte, id uint16, question dnsmessage.Question) (netip.Addr, error) {
	var p dnsmessage.Parser
	head, err := p.Start(message)
	if err != nil || head.ID != id || !head.Response {
		return netip.Addr{}, errNotAsked
	}
	if q, err := p.Question(); err != nil || q.Type != question.Type || !strings.EqualFold(q.Name.String(), question.Name.String()) {
		return netip.Addr{}, errNotAsked
	}
	if err := p.SkipAllQuestions(); err != nil {
		return netip.Addr{}, errNotAsked
	}
	if head.RCode != dnsmessage.RCodeSuccess {
		return netip.Addr{}, fmt.Errorf("it answers %v", head.RCode)
	}
	for {
		h, err := p.AnswerHeader()
		if err != nil {
			return netip.Addr{}, errors.New("its answer has no address")
		}
		if h.Type == question.Type {
			return reflectionOf(&p, h.Type)
		}
		if err := p.SkipAnswer(); err != nil { // a CNAME on the way
			return netip.Addr{}, errors.New("its answer has no address")
		}
	}
}

// reflectionOf returns the address in the record that p is at.
func reflectionOf(p *dnsmessage.Parser, kind dnsmessage.Type) (netip.Addr, error) {
	switch kind {
	case dnsmessage.TypeA:
		r, err := p.AResource()
		return netip.AddrFrom4(r.A), err
	case dnsmessage.TypeAAAA:
		r, err := p.AAAAResource()
		return netip.AddrFrom16(r.AAAA).Unmap(), err
	}
	r, err := p.TXTResource()
	if err != nil {
		return netip.Addr{}, err
	}
	return parseReflection(strings.Join(r.TXT, ""))
}

// public reports whether an address can be one that clients reach a node at, and
// is of the family of network.
func public(a netip.Addr, network string) bool {
	return a.IsValid() && a.IsGlobalUnicast() && !a.IsPrivate() && !sharedSpace.Contains(a) && a.Zone() == "" && a.Is4() == strings.HasSuffix(network, "4")
}

// majority returns the address that more than half of total reflectors have
// answered with.
func majority(answers []netip.Addr, total int) (netip.Addr, bool) {
	counts := map[netip.Addr]int{}
	for _, a := range answers {
		if counts[a]++; a.IsValid() && 2*counts[a] > total {
			return a, true
		}
	}
	return netip.Addr{}, false
}

const (
	// reflectLimit is how long reflectors have to answer.
	reflectLimit = 5 * time.Second
	// reflectEvery is how often they are asked where nothing else tells that the
	// address may have changed: a NAT does not.
	reflectEvery = 30 * time.Second
	// reflectAgain is the pause after a change of the interfaces: addresses come one
	// by one, and a route behind them.
	reflectAgain = 500 * time.Millisecond
)

// Finder finds out by reflectors at which public addresses a machine is.
type Finder struct {
	Reflectors []Reflector
	// Known are the last good addresses that are known already, one of a family.
	Known []netip.Addr
	// Found is told what was found whenever it differs from before, in order.
	Found  func([]netip.Addr)
	Logger *slog.Logger

	known map[string]netip.Addr // by network: the last good one; Run's
	told  []netip.Addr
	quiet map[string]bool // networks of which it was said that there is no majority
}

// Run asks at once, over and over, and when changed is told, until ctx ends; it
// then returns nil. Where there is no majority the last good address stays.
func (f *Finder) Run(ctx context.Context, changed <-chan struct{}) error {
	f.known, f.quiet = map[string]netip.Addr{}, map[string]bool{}
	for _, a := range f.Known {
		f.known[networkOf(a)] = a
	}
	for {
		f.look(ctx)
		again := time.NewTimer(reflectEvery)
		select {
		case <-ctx.Done():
		case <-again.C:
		case <-changed:
			again.Reset(reflectAgain)
			select {
			case <-ctx.Done():
			case <-again.C:
			}
		}
		again.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// look asks all reflectors over both families at once.
func (f *Finder) look(ctx context.Context) {
	networks := []string{"tcp4", "tcp6"}
	found := make([]reflection, len(networks))
	var asking sync.WaitGroup
	for i, network := range networks {
		asking.Go(func() { found[i] = f.reflect(ctx, network) })
	}
	asking.Wait()
	if ctx.Err() != nil {
		return
	}
	var now []netip.Addr
	for i, network := range networks {
		switch r := found[i]; {
		case r.sure:
			f.known[network], f.quiet[network] = r.addr, false
		case f.known[network].IsValid() && !f.quiet[network]:
			f.quiet[network] = true
			f.Logger.Warn("reflectors do not agree where this node is; it keeps the last good address", "address", f.known[network], "answers", r.text)
		case len(f.known) == 0 && network == "tcp4" && !f.quiet[network]:
			f.quiet[network] = true
			f.Logger.Warn("reflectors do not say where this node is", "answers", r.text)
		}
		if a := f.known[network]; a.IsValid() {
			now = append(now, a)
		}
	}
	if len(now) > 0 && !slices.Equal(now, f.told) {
		f.told = now
		f.Found(slices.Clone(now))
	}
}

// reflection is what reflectors say over one family.
type reflection struct {
	addr netip.Addr
	sure bool
	text string // what each said
}

func (f *Finder) reflect(ctx context.Context, network string) reflection {
	ctx, cancel := context.WithTimeout(ctx, reflectLimit)
	defer cancel()
	answers, texts := make([]netip.Addr, len(f.Reflectors)), make([]string, len(f.Reflectors))
	var asking sync.WaitGroup
	for i, r := range f.Reflectors {
		asking.Go(func() {
			a, err := r.ask(ctx, network)
			if err == nil && !public(a, network) {
				err = fmt.Errorf("%v is no public address of that family", a)
			}
			if texts[i] = r.text + ": " + a.String(); err != nil {
				texts[i] = r.text + ": " + err.Error()
				return
			}
			answers[i] = a
		})
	}
	asking.Wait()
	a, sure := majority(answers, len(answers))
	return reflection{a, sure, strings.Join(texts, "; ")}
}

func randomID() uint16 { return uint16(rand.Uint32()) }
