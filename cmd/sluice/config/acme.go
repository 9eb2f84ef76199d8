package config

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/remotegpu/sluice/certs/dns"
)

// ACME says how certificates for the keys under domains/ are obtained.
type ACME struct {
	// Issuers are the authorities that certificates come from, tried in turn.
	// Default: one, of the three fields that follow.
	Issuers []Issuer `json:"issuers"`
	// Directory is the URL of the only issuer's ACME directory. Default: Let's
	// Encrypt.
	Directory string `json:"directory"`
	// Email is the contact of the account with each issuer that names none of
	// its own. Default: none.
	Email string `json:"email"`
	// CAFile is the only issuer's ca_file.
	CAFile string `json:"ca_file"`
	// NamesFromRoutes says whether certificates are obtained for the names that
	// routes need and that lie in a zone of a DNS provider: off, exact (the very
	// names), or wildcards (*.x-gpu.com for app.x-gpu.com). Default: off.
	NamesFromRoutes string `json:"names_from_routes"`
	// FallBackAfter is how many attempts in a row have to fail at an issuer for
	// the next one to have its turn. Default: 3.
	FallBackAfter int `json:"fall_back_after" range:"1,100"`
	// Resolvers are the DNS servers, host:port, asked which zone a name is in and
	// who serves that. Default: the system's.
	Resolvers []string `json:"resolvers"`
	// Propagation says when a challenge record counts as published: "all" servers
	// of the zone that answer have it, a "majority" of all has it, or a "delay"
	// has passed. Default: all.
	Propagation string `json:"propagation"`
	// PropagationDelay is waited where nobody can be asked. Default: 30s.
	PropagationDelay time.Duration `json:"propagation_delay"`
	// PropagationTimeout bounds the wait for a published record. Default: 2m.
	PropagationTimeout time.Duration `json:"propagation_timeout"`
}

// Issuer is an authority that issues certificates by ACME.
type Issuer struct {
	// Name is what keys under domains/ call the issuer. Default: letsencrypt, or
	// the host of Directory.
	Name string `json:"name"`
	// Directory is the URL of the ACME directory. Default: Let's Encrypt.
	Directory string `json:"directory"`
	// Staging is the URL of the directory for rehearsals. Default: that of Let's
	// Encrypt where Directory is theirs, else none.
	Staging string `json:"staging"`
	// Email is the account's contact. Default: that of ACME.
	Email string `json:"email"`
	// CAFile is a PEM file that verifies the directories' own certificates.
	// Default: the system's roots.
	CAFile string `json:"ca_file"`
	// EAB binds the account to one that exists with the authority. Default:
	// none.
	EAB *EAB `json:"eab"`
	// Profile is the profile of certificates to ask for, one that the directory
	// names. Default: the authority's own choice.
	Profile string `json:"profile"`
	// PreferredChains are common names of authorities: of several chains that
	// are offered the first is taken that leads by the first of these names, or
	// the next. Default: the chain that the authority offers first.
	PreferredChains []string `json:"preferred_chains"`
	// Roots is a PEM file of the authorities that certificates have to lead to;
	// one that does not is not served. Default: that is not looked at.
	Roots string `json:"roots"`
	// Orders is how many orders the cluster makes. Default: 300 in 3h.
	Orders *Budget `json:"orders"`
	// Duplicates is how many orders the cluster makes for one name. Default: 5
	// in 168h.
	Duplicates *Budget `json:"duplicates"`
}

// EAB is an external account binding (RFC 8555 section 7.3.4).
type EAB struct {
	KeyID   string     `json:"key_id"`
	HMACKey dns.Secret `json:"hmac_key"` // base64, as the authority gives it
}

// Budget is how often something may be done within any window of time.
type Budget struct {
	Count  int           `json:"count"` // 0: as often as one likes
	Window time.Duration `json:"window"`
}

// The directories that need no telling.
const (
	letsEncrypt        = "https://acme-v02.api.letsencrypt.org/directory"
	letsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
)

func (a ACME) withDefaults() ACME {
	a.NamesFromRoutes = cmp.Or(a.NamesFromRoutes, "off")
	a.Propagation = cmp.Or(a.Propagation, "all")
	a.PropagationDelay = cmp.Or(a.PropagationDelay, 30*time.Second)
	a.PropagationTimeout = cmp.Or(a.PropagationTimeout, 2*time.Minute)
	a.FallBackAfter = cmp.Or(a.FallBackAfter, 3)
	if len(a.Issuers) == 0 {
		a.Issuers = []Issuer{{Directory: a.Directory, CAFile: a.CAFile}}
	}
	a.Issuers = slices.Clone(a.Issuers)
	for i := range a.Issuers {
		a.Issuers[i] = a.Issuers[i].withDefaults(a.Email)
	}
	return a
}

func (i Issuer) withDefaults(email string) Issuer {
	i.Directory = cmp.Or(i.Directory, letsEncrypt)
	if i.Directory == letsEncrypt {
		i.Name = cmp.Or(i.Name, "letsencrypt")
		i.Staging = cmp.Or(i.Staging, letsEncryptStaging)
	}
	if u, err := url.Parse(i.Directory); err == nil {
		i.Name = cmp.Or(i.Name, u.Hostname())
	}
	i.Email = cmp.Or(i.Email, email)
	if i.Orders == nil {
		i.Orders = &Budget{Count: 300, Window: 3 * time.Hour}
	}
	if i.Duplicates == nil {
		i.Duplicates = &Budget{Count: 5, Window: 7 * 24 * time.Hour}
	}
	return i
}

func (c Config) checkACME() error {
	a := c.ACME
	single := len(a.Issuers) == 1 // and then most likely of the short form
	if a.Directory != "" && !(single && a.Issuers[0].Directory == a.Directory) {
		return wrong("acme.directory", "is for a single issuer, and acme.issuers names some; write it into one of those")
	}
	if a.CAFile != "" && !(single && a.Issuers[0].CAFile == a.CAFile) {
		return wrong("acme.ca_file", "is for a single issuer, and acme.issuers names some; write it into one of those")
	}
	if a.Email != "" && !strings.Contains(a.Email, "@") {
		return wrong("acme.email", "%q is not an e-mail address", a.Email)
	}
	seen := map[string]int{}
	for i, issuer := range a.Issuers {
		path := fmt.Sprintf("acme.issuers[%d]", i)
		if a.Directory != "" {
			path = "acme"
		}
		if err := issuer.check(path); err != nil {
			return err
		}
		for _, what := range []string{"name " + issuer.Name, "directory " + issuer.Directory} {
			if first, twice := seen[what]; twice {
				return wrong(path, "has the %s, as acme.issuers[%d] has; give each its own", what, first)
			}
			seen[what] = i
		}
	}
	if err := c.checkNamesFromRoutes(); err != nil {
		return err
	}
	if !slices.Contains([]string{"all", "majority", "delay"}, a.Propagation) {
		return wrong("acme.propagation", "%q is not known; write all, majority or delay", a.Propagation)
	}
	for i, r := range a.Resolvers {
		if err := checkAddress(fmt.Sprintf("acme.resolvers[%d]", i), r); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.DNS)) {
		if _, err := dns.New(name, c.DNS[name], nil); err != nil {
			return wrong("dns."+name, "%v", err)
		}
	}
	return nil
}

func (c Config) checkNamesFromRoutes() error {
	const path = "acme.names_from_routes"
	from := c.ACME.NamesFromRoutes
	if !slices.Contains([]string{"off", "exact", "wildcards"}, from) {
		return wrong(path, "%q is not known; write off, exact or wildcards", from)
	}
	if from == "off" {
		return nil
	}
	for _, provider := range c.DNS {
		if len(provider.Zones) > 0 {
			return nil
		}
	}
	return wrong(path, "obtains certificates for names in the zones of DNS providers, and none names a zone; add zones to a provider under dns")
}

// issuerName is what may stand in a key, a label of a metric and a file's name.
var issuerName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

func (i Issuer) check(path string) error {
	if !issuerName.MatchString(i.Name) || i.Name == "imported" {
		return wrong(path+".name", "%q is not a name for an issuer; write small letters, digits, '-', '_' and '.', at most 64, and not \"imported\"", i.Name)
	}
	if err := checkDirectory(path+".directory", i.Directory); err != nil {
		return err
	}
	if i.Staging != "" {
		if err := checkDirectory(path+".staging", i.Staging); err != nil {
			return err
		}
	}
	switch {
	case i.Email != "" && !strings.Contains(i.Email, "@"):
		return wrong(path+".email", "%q is not an e-mail address", i.Email)
	case i.EAB != nil && (i.EAB.KeyID == "" || i.EAB.HMACKey == ""):
		return wrong(path+".eab", "key_id and hmac_key belong together, as the authority gives them")
	case slices.Contains(i.PreferredChains, ""):
		return wrong(path+".preferred_chains", "has an empty name; write common names of authorities, such as \"ISRG Root X1\"")
	}
	if err := i.Orders.check(path + ".orders"); err != nil {
		return err
	}
	return i.Duplicates.check(path + ".duplicates")
}

func checkDirectory(path, directory string) error {
	if carriesLogin(directory) {
		return wrong(path, "has a user or a password in it, which would be in logs and in etcd; authorities know accounts by their keys: leave it out, and see eab")
	}
	u, err := url.Parse(directory)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return wrong(path, "%q is not an https URL; write the ACME directory's, such as %s", directory, letsEncrypt)
	}
	return nil
}

func (b *Budget) check(path string) error {
	switch {
	case b.Count < 0:
		return wrong(path+".count", "must not be negative; 0 is for no limit")
	case b.Count > 0 && (b.Window < time.Second || b.Window > 366*24*time.Hour):
		return wrong(path+".window", "must be from 1s to a year")
	}
	return nil
}
