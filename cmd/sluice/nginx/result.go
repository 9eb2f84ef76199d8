package nginx

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/remotegpu/sluice/router"
)

// Result is what files of nginx come to.
type Result struct {
	// Keys are keys below the prefix and their values, JSON, in order. Each is
	// one that nodes accept by itself.
	Keys []Key `json:"keys"`
	// Notes are all that is not as it was, in the order of files and lines.
	Notes []Note `json:"notes"`
	// Node is what sluice.yaml has to say for the keys to work as nginx did.
	Node Node `json:"node"`
}

// Key is one key and its value.
type Key struct {
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value"`
	// File and Line are where it comes from.
	File string `json:"file"`
	Line int    `json:"line"`
}

// Kind is what a note means for whoever reads it.
type Kind string

const (
	// Lost is what was not carried over.
	Lost Kind = "lost"
	// Differs is what was, and behaves in another way somewhere.
	Differs Kind = "differs"
	// Unneeded is what Sluice does by itself or has no use for.
	Unneeded Kind = "unneeded"
)

// Note is something that a person should know of one directive.
type Note struct {
	Kind      Kind   `json:"kind"`
	File      string `json:"file"`
	Line      int    `json:"line"`
	Directive string `json:"directive"`
	Why       string `json:"why"`
	// Todo is what to do by hand; "" where nothing is.
	Todo string `json:"todo,omitempty"`
}

// String returns the note on one line.
func (n Note) String() string {
	s := fmt.Sprintf("%s:%d: %s: %s: %s", n.File, n.Line, n.Kind, n.Directive, n.Why)
	if n.Todo != "" {
		s += "; by hand: " + n.Todo
	}
	return s
}

// Node are the fields of sluice.yaml that the keys ask for.
type Node struct {
	HTTPS         []int             `json:"https,omitempty"` // ports
	HTTP          []int             `json:"http,omitempty"`
	Ports         []int             `json:"ports,omitempty"` // mapped
	PasswordFiles map[string]string `json:"password_files,omitempty"`
	ClientAuth    map[string]string `json:"client_auth,omitempty"` // name: file of authorities
	TrustedProxy  []string          `json:"trusted_proxies,omitempty"`
	// Raw are those of HTTPS that only raw connections come to.
	Raw []int `json:"raw,omitempty"`
	// Proxied are ports of listeners whose connections open with a PROXY header.
	Proxied []int `json:"proxied,omitempty"`
}

// YAML returns the lines of sluice.yaml.
func (n Node) YAML() string {
	var b strings.Builder
	listeners := func(kind string, ports []int) {
		if len(ports) == 0 {
			return
		}
		fmt.Fprintf(&b, "  %s:\n", kind)
		for _, p := range ports {
			trusted := ""
			if len(n.TrustedProxy) > 0 && !slices.Contains(n.Proxied, p) {
				trusted = ", trusted_proxies: []"
			}
			http3 := ""
			if kind == "https" && slices.Contains(n.Raw, p) {
				http3 = ", http3: false"
			}
			fmt.Fprintf(&b, "    - {address: \":%d\"%s%s}\n", p, http3, trusted)
		}
	}
	if len(n.HTTPS)+len(n.HTTP) > 0 {
		b.WriteString("listeners:\n")
		listeners("https", n.HTTPS)
		listeners("http", n.HTTP)
	}
	if len(n.Ports) > 0 {
		fmt.Fprintf(&b, "ports: [%s] # make ranges of them, so that mappings can come\n", ranges(n.Ports))
	}
	for _, of := range []struct {
		name   string
		values map[string]string
		form   string
	}{{"password_files", n.PasswordFiles, "  %s: %q\n"}, {"client_auth", n.ClientAuth, "  %s: {ca: %q}\n"}} {
		if len(of.values) > 0 {
			fmt.Fprintf(&b, "%s:\n", of.name)
		}
		for _, name := range slices.Sorted(maps.Keys(of.values)) {
			fmt.Fprintf(&b, of.form, name, of.values[name])
		}
	}
	if len(n.TrustedProxy) > 0 {
		fmt.Fprintf(&b, "trusted_proxies: [%s]\n", strings.Join(n.TrustedProxy, ", "))
	}
	return b.String()
}

// ranges writes sorted ports as sluice.yaml has them.
func ranges(ports []int) string {
	var all []string
	for i := 0; i < len(ports); {
		j := i
		for j+1 < len(ports) && ports[j+1] == ports[j]+1 {
			j++
		}
		s := strconv.Itoa(ports[i])
		if j > i {
			s += "-" + strconv.Itoa(ports[j])
		}
		all = append(all, strconv.Quote(s))
		i = j + 1
	}
	return strings.Join(all, ", ")
}

// importer gathers a Result.
type importer struct {
	Result
	notes map[Note]bool
	names map[string]int // how many routes have asked for a name
	keys  map[string]*Directive
	zones map[string]zone
	https []int // ports of listeners with TLS, of all servers
}

// Convert turns directives, as Load returns them, into keys.
func Convert(all []*Directive) *Result {
	im := &importer{notes: map[Note]bool{}, names: map[string]int{}, keys: map[string]*Directive{}, zones: map[string]zone{}}
	im.Node.PasswordFiles, im.Node.ClientAuth = map[string]string{}, map[string]string{}
	im.main(all)
	im.rest(all)
	slices.SortStableFunc(im.Keys, func(a, b Key) int { return router.CompareKeys(a.Key, b.Key) })
	slices.SortStableFunc(im.Notes, func(a, b Note) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	for _, ports := range []*[]int{&im.Node.HTTPS, &im.Node.HTTP, &im.Node.Raw, &im.Node.Ports, &im.Node.Proxied} {
		slices.Sort(*ports)
		*ports = slices.Compact(*ports)
	}
	slices.Sort(im.Node.TrustedProxy)
	im.Node.TrustedProxy = slices.Compact(im.Node.TrustedProxy)
	return &im.Result
}

// note says something of d, which is thereby done with.
func (im *importer) note(kind Kind, d *Directive, why, todo string) {
	d.done = true
	n := Note{kind, d.File, d.Line, d.String(), why, todo}
	if !im.notes[n] {
		im.notes[n] = true
		im.Notes = append(im.Notes, n)
	}
}

func (im *importer) lost(d *Directive, why, todo string)    { im.note(Lost, d, why, todo) }
func (im *importer) differs(d *Directive, why, todo string) { im.note(Differs, d, why, todo) }

// put adds a key, if a node would accept its value.
func (im *importer) put(key string, value any, from *Directive) {
	text := encode(value)
	k, err := router.ParseKey(key)
	if err == nil {
		err = parse(k, text)
	}
	if err != nil {
		im.lost(from, fmt.Sprintf("it would be the key %s, which nodes refuse: %v (%s)", key, err, text), "write the key by hand")
		return
	}
	if first, twice := im.keys[key]; twice {
		im.lost(from, fmt.Sprintf("%s is taken by %s:%d", key, first.File, first.Line), "decide which of them is meant")
		return
	}
	im.keys[key] = from
	im.Keys = append(im.Keys, Key{key, text, from.File, from.Line})
}

// encode returns value as JSON, with < > and & as they are.
func encode(value any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(value); err != nil {
		panic(err) // values are made here
	}
	return bytes.TrimSpace(b.Bytes())
}

func parse(k router.Key, text []byte) (err error) {
	switch k.Kind {
	case router.KindMapping:
		_, err = router.ParseMapping(k.Proto, k.Port, text)
	case router.KindRoute:
		_, err = router.ParseRoute(k.Name, text)
	case router.KindDomain:
		_, err = router.ParseDomain(k.Name, text)
	}
	return err
}

var separators = regexp.MustCompile(`[.-]{2,}`)

// name returns a name for a route that no other has.
func (im *importer) name(parts ...string) string {
	var b strings.Builder
	for _, c := range strings.Join(parts, ".") {
		if c == '-' || c == '_' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			b.WriteRune(c)
		} else {
			b.WriteByte('-')
		}
	}
	name := b.String()
	name = separators.ReplaceAllStringFunc(name, func(s string) string {
		if strings.Contains(s, ".") {
			return "."
		}
		return "-"
	})
	name = strings.Trim(name[:min(len(name), 110)], "-.")
	name = cmp.Or(name, "route")
	if im.names[name]++; im.names[name] > 1 {
		name += "-" + strconv.Itoa(im.names[name])
	}
	return name
}
