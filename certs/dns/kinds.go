package dns

// kind is a sort of provider: which fields its entry takes, and how to build it.
type kind struct {
	required []string // with what would be right in Config.fields
	optional []string
	build    func(Config) (driver, error)
}

// kinds is the table of everything that `provider:` may say.
var kinds = map[string]kind{
	"alidns": {
		required: []string{"access_key_id", "access_key_secret"},
		optional: []string{"region", "security_token"},
		build:    newAlidns,
	},
	"cloudflare": {
		required: []string{"api_token"},
		optional: []string{"zone_token"},
		build:    newCloudflare,
	},
	"rfc2136": {
		required: []string{"server", "key_name", "key"},
		optional: []string{"key_algorithm"},
		build:    newRFC2136,
	},
}
