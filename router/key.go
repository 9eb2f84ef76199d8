package router

import (
	"cmp"
	"strconv"
	"strings"
)

// Kind is the kind of thing that a key stands for.
type Kind uint8

// The kinds of keys a node acts on. KindUnknown keys lie where a kind that
// nodes know nothing of would be: mostly typing errors.
const (
	KindUnknown Kind = iota
	KindMapping
	KindRoute
	KindDomain
	KindPool
	KindName     // a name to be kept true in DNS
	KindRemovals // what people say of removals
)

// Key is a parsed etcd key below the prefix.
type Key struct {
	Kind  Kind
	Proto Proto  // of a mapping
	Port  int    // of a mapping
	Name  string // of a route, domain, pool or published name
}

// MappingKey returns the key of the mapping of a port, below the prefix.
func MappingKey(p Proto, port int) string {
	return "ports/" + p.String() + "/" + strconv.Itoa(port)
}

// ParseKey reads an etcd key below the prefix, such as ports/tcp/20022 or
// routes/jupyter. The error says what a right key looks like.
func ParseKey(key string) (Key, error) {
	kind, rest, _ := strings.Cut(key, "/")
	switch kind {
	case "ports":
		return parseMappingKey(key, rest)
	case "routes":
		return nameKey(KindRoute, "routes", rest)
	case "domains":
		name, err := ParseDomainName(rest)
		return Key{Kind: KindDomain, Name: name}, err
	case "pools":
		return nameKey(KindPool, "pools", rest)
	case "names":
		name, err := ParseDomainName(rest)
		return Key{Kind: KindName, Name: name}, err
	case "removals":
		return parseRemovalKey(key, rest)
	}
	known := []string{"ports", "routes", "domains", "pools", "names"}
	return Key{}, fieldErrorf("", "no key starts with %q%s", kind, suggest(kind, known))
}

func parseMappingKey(key, rest string) (Key, error) {
	protoName, portText, ok := strings.Cut(rest, "/")
	var proto Proto
	switch protoName {
	case "tcp":
	case "udp":
		proto = UDP
	default:
		ok = false
	}
	if !ok {
		return Key{}, fieldErrorf("", "%q is not a mapping's key; write ports/tcp/<port> or ports/udp/<port>", key)
	}
	port, err := ParsePort(portText)
	if err != nil {
		return Key{}, err
	}
	return Key{Kind: KindMapping, Proto: proto, Port: port}, nil
}

func parseRemovalKey(key, rest string) (Key, error) {
	if rest != "meant" && rest != "confirmed" {
		return Key{}, fieldErrorf("", "%q says nothing; write removals/confirmed, or removals/meant along with deletions", key)
	}
	return Key{Kind: KindRemovals, Name: rest}, nil
}

// nameKey checks a name made of letters, digits and - _ . up to 128 long, so
// that it can stand in logs and metric labels as it is.
func nameKey(kind Kind, folder, name string) (Key, error) {
	ok := name != "" && len(name) <= 128
	for i := range len(name) {
		c := name[i]
		ok = ok && (c == '-' || c == '_' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z')
	}
	if !ok {
		return Key{}, fieldErrorf("", "%q is not a name; write %s/<name> with letters, digits, '-', '_' and '.', at most 128", name, folder)
	}
	return Key{Kind: kind, Name: name}, nil
}

// CompareKeys orders keys below the prefix for people: ports by their number,
// all else by name.
func CompareKeys(a, b string) int {
	ka, errA := ParseKey(a)
	kb, errB := ParseKey(b)
	if errA == nil && errB == nil && ka.Kind == KindMapping && kb.Kind == KindMapping {
		return cmp.Or(cmp.Compare(ka.Proto, kb.Proto), cmp.Compare(ka.Port, kb.Port))
	}
	return strings.Compare(a, b)
}
