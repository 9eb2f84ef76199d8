package nginx

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// route is the value of a key below routes/.
type route struct {
	Host            []string    `json:"host"`
	Ports           string      `json:"ports,omitempty"`
	Path            string      `json:"path,omitempty"`
	Priority        int         `json:"priority,omitempty"`
	Backend         any         `json:"backend,omitempty"`
	Respond         *respond    `json:"respond,omitempty"`
	Redirect        *redirect   `json:"redirect,omitempty"`
	TLS             string      `json:"tls,omitempty"`
	Protocol        string      `json:"protocol,omitempty"`
	StripPrefix     bool        `json:"strip_prefix,omitempty"`
	Rewrite         *rewrite    `json:"rewrite,omitempty"`
	RequestHeaders  *headerEdit `json:"request_headers,omitempty"`
	ResponseHeaders *headerEdit `json:"response_headers,omitempty"`
	Timeouts        *timeouts   `json:"timeouts,omitempty"`
	Limits          *limits     `json:"limits,omitempty"`
	Compress        *compress   `json:"compress,omitempty"`
	HSTS            *hsts       `json:"hsts,omitempty"`
	BasicAuth       *basicAuth  `json:"basic_auth,omitempty"`
	Allow           []string    `json:"allow,omitempty"`
	Deny            []string    `json:"deny,omitempty"`
}

type respond struct {
	Status  int               `json:"status"`
	Body    string            `json:"body,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
}

type redirect struct {
	To     string `json:"to"`
	Status int    `json:"status"`
}

type rewrite struct {
	Prefix string `json:"prefix,omitempty"`
	Regex  string `json:"regex,omitempty"`
	To     string `json:"to,omitempty"`
}

type headerEdit struct {
	Set    map[string]string `json:"set,omitempty"`
	Add    map[string]string `json:"add,omitempty"`
	Remove []string          `json:"remove,omitempty"`
}

type timeouts struct {
	Connect   string `json:"connect,omitempty"`
	FirstByte string `json:"first_byte,omitempty"`
	Idle      string `json:"idle,omitempty"`
}

type compress struct {
	Types   []string `json:"types,omitempty"`
	MinSize string   `json:"min_size,omitempty"`
}

type hsts struct {
	MaxAge            string `json:"max_age"`
	IncludeSubdomains bool   `json:"include_subdomains,omitempty"`
	Preload           bool   `json:"preload,omitempty"`
}

// main takes what stands in no block, or in the blocks around it.
func (im *importer) main(all []*Directive) {
	// Parts of a configuration have servers without a block around them.
	blocks := map[string][]*Directive{}
	parts := map[string]*Directive{"http": {Name: "http", IsBlock: true}, "stream": {Name: "stream", IsBlock: true}}
	for _, d := range all {
		switch d.Name {
		case "http", "stream":
			blocks[d.Name] = append(blocks[d.Name], d)
		case "server", "upstream", "map":
			kind := "stream"
			if d.Name == "server" && ofHTTP(d) {
				kind = "http"
			}
			if d.Name == "server" {
				d.parent = parts[kind]
				parts[kind].Block = append(parts[kind].Block, d)
				continue
			}
			for _, p := range parts { // whose it is only its use tells
				p.Block = append(p.Block, d)
			}
		}
	}
	for kind, part := range parts {
		if len(part.own("server")) > 0 {
			blocks[kind] = append(blocks[kind], part)
		}
	}
	for _, block := range blocks["stream"] {
		im.stream(block)
	}
	im.https = slices.Clone(im.Node.HTTPS) // on which routes of HTTP answer only if they say so
	for _, block := range blocks["http"] {
		im.http(block)
	}
}

// ofHTTP reports whether a server by itself is one of HTTP.
func ofHTTP(server *Directive) bool {
	for _, d := range server.Block {
		switch d.Name {
		case "location", "server_name", "return", "root":
			return true
		case "proxy_pass":
			return strings.Contains(d.arg(0), "://")
		}
	}
	return false
}

// http takes the servers of a http block.
func (im *importer) http(block *Directive) {
	block.done = true
	im.readZones(block)
	upstreams := named(block, "upstream")
	servers := block.own("server")
	expressions := 0
	for _, d := range servers {
		for _, l := range im.listens(d) {
			if l.tls {
				im.https = append(im.https, l.first)
			}
		}
		for _, names := range d.own("server_name") {
			if slices.ContainsFunc(names.Args, func(n string) bool { return strings.HasPrefix(n, "~") || strings.HasSuffix(n, ".*") }) {
				expressions++
				break
			}
		}
	}
	slices.Sort(im.https)
	im.https = slices.Compact(im.https)
	im.implicitDefaults(servers)
	for i, d := range servers {
		d.done = true
		left := 0
		if expressions > 1 {
			left = len(servers) - i
		}
		im.httpServer(d, upstreams, left)
	}
}

// implicitDefaults notes servers that answer, since they come first on a port,
// hosts that no server is for.
func (im *importer) implicitDefaults(servers []*Directive) {
	first := map[int]*Directive{}
	for _, named := range []bool{true, false} {
		for _, server := range servers {
			for _, d := range server.own("listen") {
				if l, err := parseListen(d); err == nil && l.defaultsHere == named && first[l.first] == nil {
					first[l.first] = server
				}
			}
		}
	}
	for _, server := range servers {
		var on []int
		byName := len(server.own("server_name")) > 0
		for _, d := range server.own("listen") {
			l, err := parseListen(d)
			byName = byName && !l.defaultsHere
			if err == nil && first[l.first] == server {
				on = append(on, l.first)
			}
		}
		if byName && len(on) > 0 {
			im.differs(server, fmt.Sprintf("nginx has it answer on port %s whatever host no other server is for, since it comes first; here those get 404", joinPorts(on)),
				"a route with \"host\": \"*\" if they are to get something else")
		}
	}
}

// site is a server as its routes need it: the hosts of one kind, and the ports.
type site struct {
	server    *Directive
	name      string
	hosts     []string
	captures  []string
	ports     string // "": every https listener
	scheme    string
	priority  int
	upstreams map[string]*Directive
}

func (im *importer) httpServer(server *Directive, upstreams map[string]*Directive, left int) {
	listens := im.listens(server)
	if len(server.own("listen")) == 0 {
		listens = []listen{{d: server, first: 80, last: 80}}
	}
	byDefault := false
	var clear, secure []int
	for _, l := range listens {
		byDefault = byDefault || l.defaultsHere
		for port := l.first; port <= l.last; port++ {
			if l.tls {
				secure = append(secure, port)
				im.Node.HTTPS = append(im.Node.HTTPS, port)
			} else {
				clear = append(clear, port)
				im.Node.HTTP = append(im.Node.HTTP, port)
			}
		}
		if l.proxied {
			im.trust(server, l)
		}
	}
	if len(secure) > 0 {
		im.serverTLS(server)
	}
	slices.Sort(secure)
	secure = slices.Compact(secure)
	for _, group := range im.hostGroups(server, byDefault) {
		s := &site{server: server, name: group.name, hosts: group.patterns, captures: group.captures,
			priority: im.priority(group.patterns, left), upstreams: upstreams}
		// What $scheme stands for differs by listener, all else does not.
		schemes := []string{"https"}
		s.ports = joinPorts(append(slices.Clone(clear), secure...))
		switch {
		case len(secure) == 0:
			schemes = []string{"http"}
		case len(clear) == 0 && slices.Equal(secure, im.https):
			s.ports = ""
		case len(clear) > 0 && mentions(server, "$scheme"):
			schemes = []string{"http", "https"}
		}
		for _, scheme := range schemes {
			one := *s
			if one.scheme = scheme; len(schemes) > 1 {
				one.ports = joinPorts(map[string][]int{"http": clear, "https": secure}[scheme])
			}
			im.site(&one)
		}
	}
}

func joinPorts(all []int) string {
	slices.Sort(all)
	text := make([]string, 0, len(all))
	for _, p := range slices.Compact(all) {
		text = append(text, strconv.Itoa(p))
	}
	return strings.Join(text, ",")
}

// mentions reports whether something in the block of d holds a text.
func mentions(d *Directive, text string) bool {
	for _, sub := range d.Block {
		if slices.ContainsFunc(sub.Args, func(a string) bool { return strings.Contains(a, text) }) || mentions(sub, text) {
			return true
		}
	}
	return false
}

// hostGroup are patterns that have the same groups.
type hostGroup struct {
	name               string
	patterns, captures []string
}

// hostGroups returns the hosts of a server: its names and wildcards together, and
// each expression, which has groups of its own.
func (im *importer) hostGroups(server *Directive, byDefault bool) (all []hostGroup) {
	var plain hostGroup
	names := server.own("server_name")
	for _, d := range names {
		d.done = true
		for _, name := range d.Args {
			if name == "" || name == "$hostname" {
				im.lost(d, fmt.Sprintf("%q is no name that clients ask for", name), "write the names out")
				continue
			}
			patterns, captures, err := hostPattern(name)
			if err != nil {
				im.lost(d, err.Error(), "")
				continue
			}
			if len(captures) > 0 {
				all = append(all, hostGroup{expressionName(name), patterns, captures})
				continue
			}
			if plain.name == "" {
				plain.name = expressionName(strings.ReplaceAll(name, "*", "any"))
			}
			for _, p := range patterns {
				if p == "*" { // no more than a name that nobody asks for
					byDefault = true
				} else if !slices.Contains(plain.patterns, p) {
					plain.patterns = append(plain.patterns, p)
				}
			}
		}
	}
	if byDefault || len(names) == 0 {
		plain.patterns = append(plain.patterns, "*")
		if plain.name == "" || plain.name == "_" {
			plain.name = "any"
		}
	}
	if len(plain.patterns) > 0 {
		all = append([]hostGroup{plain}, all...)
	}
	for i := range all {
		all[i].name = strings.TrimPrefix(all[i].name, ".")
	}
	return all
}

var inGroup = regexp.MustCompile(`\((?:\?P?<\w+>)?[^()]*\)[+*?]?`)

// expressionName makes of an expression something to call its routes by.
func expressionName(expr string) string {
	if !strings.HasPrefix(expr, "~") {
		return expr
	}
	return strings.Trim(strings.NewReplacer("\\", "", "^", "", "$", "").Replace(inGroup.ReplaceAllString(expr[1:], "any")), "*")
}

// serverTLS says what becomes of a server's certificate, and of what it asks of
// clients'.
func (im *importer) serverTLS(server *Directive) {
	cert, key := near(server, "ssl_certificate"), near(server, "ssl_certificate_key")
	if cert != nil && key != nil {
		im.differs(cert, "nodes serve certificates that lie in etcd, sealed, and obtain new ones by themselves",
			fmt.Sprintf("sluice certs import NAME --cert %s --key %s; nodes renew what has a key under domains/", cert.arg(0), key.arg(0)))
	}
	if d := near(server, "ssl_protocols"); d != nil {
		old := slices.ContainsFunc(d.Args, func(v string) bool { return v != "TLSv1.2" && v != "TLSv1.3" })
		switch {
		case old:
			im.differs(d, "versions before TLS 1.2 are not spoken", "")
		case !slices.Contains(d.Args, "TLSv1.2"):
			im.differs(d, "the oldest version is set for the whole node", "tls: {min_version: \"1.3\"} in sluice.yaml")
		default:
			im.note(Unneeded, d, "TLS 1.2 and 1.3 are spoken by themselves", "")
		}
	}
	verify, ca := near(server, "ssl_verify_client"), near(server, "ssl_client_certificate")
	if verify == nil || verify.arg(0) == "off" {
		return
	}
	mode := map[string]string{"on": "require", "optional": "verify_if_given"}[verify.arg(0)]
	if mode == "" || ca == nil {
		im.lost(verify, "certificates of clients are verified by a file of authorities, or not asked for", "put \"client_auth\" into the keys under domains/, see KEYS.md")
		return
	}
	name := "clients"
	for i := 2; im.Node.ClientAuth[name] != "" && im.Node.ClientAuth[name] != ca.arg(0); i++ {
		name = "clients" + strconv.Itoa(i)
	}
	im.Node.ClientAuth[name] = ca.arg(0)
	if d := near(server, "ssl_crl"); d != nil {
		im.differs(d, "lists of revoked certificates stand beside their authorities", fmt.Sprintf("client_auth: {%s: {crl: %s}} in sluice.yaml", name, d.arg(0)))
	}
	for _, group := range im.hostGroups(server, false) {
		for _, host := range group.patterns {
			if strings.HasPrefix(host, "~") || host == "*" {
				im.lost(verify, fmt.Sprintf("certificates are asked for by name, and %s is an expression; its routes are left out", host),
					"put a key under domains/ with \"client_auth\" for the wildcard that covers it, and the routes")
				continue
			}
			key := "domains/" + host
			if im.keys[key] == nil {
				im.put(key, map[string]any{"client_auth": map[string]string{"ca": name, "mode": mode}}, verify)
				im.differs(verify, "it holds for the name on every port, and the key has a certificate obtained for it", "")
			}
		}
	}
}
