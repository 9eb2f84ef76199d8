package nginx

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// lists turns allow and deny, of which nginx takes the first that fits, into two
// lists of which deny goes before.
func (im *importer) lists(block *Directive) (allow, deny []string) {
	var all []*Directive
	for b := block; b != nil && len(all) == 0; b = b.parent {
		for _, d := range b.Block {
			if d.Name == "allow" || d.Name == "deny" {
				all = append(all, d)
			}
		}
	}
	for _, d := range all {
		d.done = true
	}
	for _, d := range all {
		text, every, err := network(d.arg(0))
		switch {
		case err != nil:
			im.lost(d, err.Error()+"; nobody is let in instead", "write `allow` and `deny` of the key by hand")
			return nil, []string{"0.0.0.0/0", "::/0"}
		case every && d.Name == "deny":
			if len(allow) == 0 {
				return nil, []string{"0.0.0.0/0", "::/0"} // nobody
			}
			return allow, deny
		case every:
			return nil, deny // whom the lists allow besides is none to list
		case d.Name == "allow":
			allow = append(allow, text)
		default:
			if other := overlap(text, allow); other != "" {
				im.differs(d, fmt.Sprintf("nginx lets %s in, which stands before; here `deny` goes first, and those in both are refused", other),
					"write the networks out that are to be let in")
			}
			deny = append(deny, text)
		}
	}
	return nil, deny
}

// overlap returns the network of list that shares addresses with text, or "".
func overlap(text string, list []string) string {
	p, ok := asPrefix(text)
	for _, other := range list {
		if o, valid := asPrefix(other); ok && valid && o.Overlaps(p) {
			return other
		}
	}
	return ""
}

func asPrefix(s string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p, true
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, a.BitLen()), true
}

// zone is what limit_req_zone or limit_conn_zone declares.
type zone struct {
	by       string // of a limit of ours; "": it has none
	requests int
	per      string
	why      string // where by is ""
}

// readZones reads the zones of a http or stream block.
func (im *importer) readZones(block *Directive) {
	for _, d := range block.Block {
		if d.Name != "limit_req_zone" && d.Name != "limit_conn_zone" {
			continue
		}
		d.done = true
		var z zone
		name := ""
		z.by, z.why = limitBy(d.arg(0))
		for _, arg := range d.Args[min(1, len(d.Args)):] {
			key, value, _ := strings.Cut(arg, "=")
			switch key {
			case "zone":
				name, _, _ = strings.Cut(value, ":")
			case "rate":
				number, unit, _ := strings.Cut(value, "r/")
				z.requests, _ = strconv.Atoi(number)
				z.per = map[string]string{"s": "1s", "m": "1m"}[unit]
			}
		}
		im.zones[d.Name+" "+name] = z
	}
}

func limitBy(key string) (by, why string) {
	header, isHeader := strings.CutPrefix(key, "$http_")
	switch {
	case key == "$binary_remote_addr" || key == "$remote_addr":
		return "client", ""
	case key == "$server_name" || key == "$host" || !strings.Contains(key, "$"):
		return "all", ""
	case isHeader && header != "host":
		return "header:" + headerName(header), ""
	}
	return "", fmt.Sprintf("requests are counted by client, header, environment or all together, not by %s", key)
}

type limits struct {
	Body        string             `json:"body,omitempty"`
	Rate        []rateLimit        `json:"rate,omitempty"`
	Concurrency []concurrencyLimit `json:"concurrency,omitempty"`
}

type rateLimit struct {
	Requests int    `json:"requests"`
	Per      string `json:"per,omitempty"`
	Burst    int    `json:"burst,omitempty"`
	By       string `json:"by,omitempty"`
}

type concurrencyLimit struct {
	Requests int    `json:"requests"`
	By       string `json:"by,omitempty"`
}

// limits returns what bounds the requests of a location.
func (im *importer) limits(block *Directive) *limits {
	l := &limits{Body: "1MiB"} // nginx's own default
	if d := near(block, "client_max_body_size"); d != nil {
		text, err := bytesText(d.arg(0))
		if err != nil {
			im.lost(d, err.Error(), "write `limits.body` by hand")
		}
		l.Body = text
	}
	for _, d := range nearAll(block, "limit_req") {
		if r, ok := im.rate(d); ok {
			l.Rate = append(l.Rate, r)
		}
	}
	for _, d := range nearAll(block, "limit_conn") {
		z, known := im.zones["limit_conn_zone "+d.arg(0)]
		n, err := strconv.Atoi(d.arg(1))
		switch {
		case !known || err != nil:
			im.lost(d, "there is no such zone, or no number", "write `limits.concurrency` by hand")
		case z.by == "":
			im.lost(d, z.why, "choose `by` of `limits.concurrency`")
		default:
			l.Concurrency = append(l.Concurrency, concurrencyLimit{n, z.by})
			im.differs(d, "the count is each route's own, and who is over it gets 429", "")
		}
	}
	if l.Body == "" && l.Rate == nil && l.Concurrency == nil {
		return nil
	}
	return l
}

func (im *importer) rate(d *Directive) (r rateLimit, ok bool) {
	name, burst, nodelay := "", 0, false
	for _, arg := range d.Args {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "zone":
			name = value
		case "burst":
			burst, _ = strconv.Atoi(value)
		case "nodelay":
			nodelay = true
		}
	}
	z, known := im.zones["limit_req_zone "+name]
	switch {
	case !known || z.requests == 0 || z.per == "":
		im.lost(d, "there is no such zone, or it has no rate", "write `limits.rate` by hand")
		return r, false
	case z.by == "":
		im.lost(d, z.why, "choose `by` of `limits.rate`")
		return r, false
	}
	why := "the count is each route's own, and who is over it gets 429"
	if burst > 0 && !nodelay {
		why += "; nginx has requests of the burst wait, here they go on at once"
	}
	im.differs(d, why, "")
	return rateLimit{z.requests, z.per, burst + 1, z.by}, true
}

type basicAuth struct {
	File  string `json:"file"`
	Realm string `json:"realm,omitempty"`
}

// basicAuth returns who is let in by password, nil for everybody.
// open is false where somebody would get in who is to be refused.
func (im *importer) basicAuth(block *Directive) (auth *basicAuth, open bool) {
	realm, file := near(block, "auth_basic"), near(block, "auth_basic_user_file")
	if realm == nil || realm.arg(0) == "off" {
		return nil, true
	}
	if file == nil || strings.Contains(file.arg(0), "$") {
		im.lost(realm, "there is no auth_basic_user_file, or one that differs from request to request; the route is left out", "write the route with `basic_auth` by hand")
		return nil, false
	}
	name := ""
	for known, path := range im.Node.PasswordFiles {
		if path == file.arg(0) {
			name = known
		}
	}
	if name == "" {
		name = "passwords"
		if n := len(im.Node.PasswordFiles); n > 0 {
			name += strconv.Itoa(n + 1)
		}
		im.Node.PasswordFiles[name] = file.arg(0)
	}
	im.differs(file, fmt.Sprintf("the route refers to it as %q of password_files in sluice.yaml; of its hashes only bcrypt and Argon2id are taken, not crypt, MD5 ($apr1$) or SHA", name),
		"have the passwords hashed anew where need be: htpasswd -B "+file.arg(0)+" NAME")
	return &basicAuth{name, realm.arg(0)}, true
}
