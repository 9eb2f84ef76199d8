package dns

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/libdns/rfc2136"
	"github.com/miekg/dns"
)

// tsigAlgorithms are the algorithms of RFC 8945 section 6 that are still safe.
var tsigAlgorithms = []string{"hmac-sha256", "hmac-sha224", "hmac-sha384", "hmac-sha512"}

var _ = register(kind{
	name: "rfc2136",
	fields: []field{
		{name: "server", right: "the primary server of the zone as host:port"},
		{name: "key_name", right: "the name of a TSIG key that the server allows to update the zone"},
		{name: "key", right: "the TSIG key in base64, as in the server's own key file"},
		{name: "key_algorithm", right: "one of " + strings.Join(tsigAlgorithms, ", "), optional: true},
	},
	build: newRFC2136,
})

// newRFC2136 builds a client of a DNS server that takes dynamic updates (RFC
// 2136): BIND, Knot, PowerDNS. Its calls end with their context's deadline.
func newRFC2136(set Settings) (driver, error) {
	server, err := withPort(string(set["server"]), "53")
	if err != nil {
		return driver{}, fmt.Errorf("server %q: want host or host:port: %w", string(set["server"]), err)
	}
	alg := strings.TrimSuffix(strings.ToLower(string(set["key_algorithm"])), ".")
	if alg == "" {
		alg = tsigAlgorithms[0]
	}
	if !slices.Contains(tsigAlgorithms, alg) {
		return driver{}, fmt.Errorf("key_algorithm %q is not supported: want one of %s",
			string(set["key_algorithm"]), strings.Join(tsigAlgorithms, ", "))
	}
	if raw, err := base64.StdEncoding.DecodeString(string(set["key"])); err != nil || len(raw) == 0 {
		return driver{}, errors.New("key is not base64: want the TSIG key as in the server's own key file")
	}
	keyName := string(set["key_name"])
	client := &rfc2136.Provider{KeyName: keyName, KeyAlg: alg, Key: string(set["key"]), Server: server}
	return driver{
		open:     func() records { return client }, // keeps no state
		classify: classifyRFC2136,
		hosts:    &updater{server: server, key: dns.Fqdn(keyName), alg: dns.Fqdn(alg), secret: string(set["key"])},
		explain: func(err error, zone string) string {
			return explainRFC2136(err, zone, server, keyName, alg)
		},
	}, nil
}

// classifyRFC2136 needs neither "exists" nor "missing": adding a record twice
// and deleting one that is not there are no errors (RFC 2136 section 3.4.2).
func classifyRFC2136(err error) class {
	if err == nil {
		return classOK
	}
	text := err.Error()
	switch {
	case contains(text, `"SERVFAIL"`):
		return classTransient
	case contains(text, "dns response error code", "bad authentication", "bad signature", "bad time", "invalid record"):
		return classRefused
	}
	return classTransient // the network's
}

func explainRFC2136(err error, zone, server, key, alg string) string {
	switch text := err.Error(); {
	case contains(text, "bad authentication", "bad signature", `"NOTAUTH"`):
		return fmt.Sprintf("%s does not accept TSIG key %s with %s: compare key_name, key_algorithm and key with the server's", server, key, alg)
	case contains(text, "bad time"):
		return fmt.Sprintf("the clocks here and on %s differ too much", server)
	case contains(text, `"REFUSED"`):
		return fmt.Sprintf("%s does not let key %s update zone %s: look at its update policy", server, key, zone)
	case contains(text, `"NOTZONE"`):
		return fmt.Sprintf("%s is not the primary server of zone %s", server, zone)
	}
	return ""
}
