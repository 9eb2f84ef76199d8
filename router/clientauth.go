package router

import "strings"

// ClientAuth says which certificates clients of a domain show (mutual TLS).
// Values are compared by CA and Mode.
type ClientAuth struct {
	// CA is the name, under client_auth in the node's file, of the authorities
	// that the certificates come from.
	CA string `json:"ca"`
	// Mode is ClientAuthRequire, ClientAuthIfGiven or ClientAuthOff; "", as it
	// may be written, means the first.
	Mode string `json:"mode"`
}

const (
	// ClientAuthRequire ends the handshake of who has no good certificate.
	ClientAuthRequire = "require"
	// ClientAuthIfGiven lets everybody in, and tells backends what the
	// certificate is worth.
	ClientAuthIfGiven = "verify_if_given"
	// ClientAuthOff asks for none where the wildcard above would.
	ClientAuthOff = "off"
)

// Required reports whether nobody gets in without a good certificate.
func (a *ClientAuth) Required() bool {
	return a != nil && (a.Mode == "" || a.Mode == ClientAuthRequire)
}

// Off reports whether clients are asked for none; a may be nil.
func (a *ClientAuth) Off() bool { return a == nil || a.Mode == ClientAuthOff }

func (a *ClientAuth) check(path string) error {
	if a == nil {
		return nil
	}
	switch a.Mode {
	case "", ClientAuthRequire, ClientAuthIfGiven:
	case ClientAuthOff:
		if a.CA != "" {
			return fieldErrorf(join(path, "ca"), "has no meaning with \"mode\": \"off\"; leave one out")
		}
		return nil
	default:
		return fieldErrorf(join(path, "mode"), "%q is not known; write \"require\", \"verify_if_given\" or \"off\"", a.Mode)
	}
	if a.CA == "" {
		return fieldErrorf(join(path, "ca"), "is missing; give the name of authorities under client_auth in sluice.yaml")
	}
	return nil
}

// clientAuths finds ClientAuth by host. It is immutable; nil is empty.
type clientAuths struct {
	exact map[string]*ClientAuth
	wild  map[string]*ClientAuth // by what follows "*."
}

// ClientAuth returns which certificates clients show that connect to host, as by
// NormalizeHost, or ask for it; nil: none. What the domain of that name says
// comes before what the nearest wildcard above it does. A wildcard holds for all
// names below it, unlike its certificate: wildcards of routes do, and a name that
// its certificate does not cover can be asked for in clear text. ClientAuth
// neither locks nor allocates.
func (t *Table) ClientAuth(host string) *ClientAuth {
	if t.clientAuths == nil || host == "" {
		return nil
	}
	a := t.clientAuths.exact[host]
	for rest := host; a == nil; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			break
		}
		rest = rest[i+1:]
		a = t.clientAuths.wild[rest]
	}
	if a.Off() {
		return nil
	}
	return a
}

// AsksClients reports whether any client is asked for a certificate.
func (t *Table) AsksClients() bool { return t.clientAuths != nil }

// SetDomain takes over what d says of its clients, and reports whether that
// differs from before: a table that is not built then is none the worse.
func (b *Builder) SetDomain(d *Domain) (changed bool) {
	was := b.clientAuths[d.Name]
	if was == d.ClientAuth || was != nil && d.ClientAuth != nil && *was == *d.ClientAuth {
		return false
	}
	if d.ClientAuth == nil {
		delete(b.clientAuths, d.Name)
	} else {
		if b.clientAuths == nil {
			b.clientAuths = map[string]*ClientAuth{}
		}
		b.clientAuths[d.Name] = d.ClientAuth
	}
	b.domainsChanged = true
	return true
}

// DeleteDomain is SetDomain of one that says nothing.
func (b *Builder) DeleteDomain(name string) (changed bool) { return b.SetDomain(&Domain{Name: name}) }

// indexClientAuths makes what was gathered ready for lookups. Its cost follows
// the number of domains that say something of their clients.
func (b *Builder) indexClientAuths() {
	if !b.domainsChanged {
		return
	}
	b.domainsChanged = false
	b.table.clientAuths = nil
	if len(b.clientAuths) == 0 {
		return
	}
	to := &clientAuths{exact: map[string]*ClientAuth{}, wild: map[string]*ClientAuth{}}
	for name, a := range b.clientAuths {
		if parent, is := strings.CutPrefix(name, "*."); is {
			to.wild[parent] = a
		} else {
			to.exact[name] = a
		}
	}
	b.table.clientAuths = to
}
