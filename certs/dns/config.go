package dns

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Config is one entry under `dns:` in sluice.yaml. Provider says what the entry
// is and thereby which of the other fields it takes; New refuses the rest.
type Config struct {
	Provider string `json:"provider"` // alidns, cloudflare or rfc2136

	// alidns: an access key of a RAM user that may manage the zone.
	AccessKeyID     string `json:"access_key_id,omitempty"`
	AccessKeySecret Secret `json:"access_key_secret,omitempty"`
	Region          string `json:"region,omitempty"`         // empty: cn-hangzhou; the alidns API answers for all regions
	SecurityToken   Secret `json:"security_token,omitempty"` // only with temporary (STS) keys

	// cloudflare: a token with Zone.DNS:Edit, and Zone.Zone:Read unless ZoneToken has it.
	APIToken  Secret `json:"api_token,omitempty"`
	ZoneToken Secret `json:"zone_token,omitempty"`

	// rfc2136: dynamic updates signed with TSIG (RFC 8945), sent over TCP.
	Server       string `json:"server,omitempty"` // host or host:port; port 53 if left out
	KeyName      string `json:"key_name,omitempty"`
	KeyAlgorithm string `json:"key_algorithm,omitempty"` // empty: hmac-sha256
	Key          Secret `json:"key,omitempty"`           // base64
}

// Secret is a string that prints, logs and marshals as "REDACTED". Convert it
// with string(s) where the value itself is needed.
type Secret string

const redacted = "REDACTED"

// String hides the value; an empty Secret is shown as empty.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString hides the value from %#v.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// MarshalText hides the value from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// field is one setting of an entry: whether it is there, and what would be right.
type field struct {
	set   bool
	right string
}

// fields describes everything but Provider, keyed as in sluice.yaml.
func (c Config) fields() map[string]field {
	return map[string]field{
		"access_key_id":     {c.AccessKeyID != "", "the id of an Aliyun access key whose RAM user may manage the zone"},
		"access_key_secret": {c.AccessKeySecret != "", "the secret that belongs to access_key_id"},
		"region":            {c.Region != "", "an Aliyun region such as cn-hangzhou"},
		"security_token":    {c.SecurityToken != "", "the token that belongs to a temporary (STS) access key"},
		"api_token":         {c.APIToken != "", "a Cloudflare API token with Zone.DNS:Edit on the zone"},
		"zone_token":        {c.ZoneToken != "", "a Cloudflare API token with Zone.Zone:Read"},
		"server":            {c.Server != "", "the primary server of the zone as host:port"},
		"key_name":          {c.KeyName != "", "the name of a TSIG key that the server allows to update the zone"},
		"key_algorithm":     {c.KeyAlgorithm != "", "one of " + strings.Join(tsigAlgorithms, ", ")},
		"key":               {c.Key != "", "the TSIG key in base64, as in the server's own key file"},
	}
}

// check returns the kind of the entry if exactly the fields it takes are set.
func (c Config) check() (kind, error) {
	k, ok := kinds[c.Provider]
	if !ok {
		known := strings.Join(slices.Sorted(maps.Keys(kinds)), ", ")
		if c.Provider == "" {
			return kind{}, fmt.Errorf("provider is missing: want one of %s", known)
		}
		return kind{}, fmt.Errorf("provider %q is unknown: want one of %s", c.Provider, known)
	}
	fields := c.fields()
	takes := slices.Concat(k.required, k.optional)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if fields[name].set && !slices.Contains(takes, name) {
			return kind{}, fmt.Errorf("(%s): %s has no meaning here: %s takes %s",
				c.Provider, name, c.Provider, strings.Join(takes, ", "))
		}
	}
	for _, name := range k.required {
		if !fields[name].set {
			return kind{}, fmt.Errorf("(%s): %s is missing: want %s", c.Provider, name, fields[name].right)
		}
	}
	return k, nil
}
