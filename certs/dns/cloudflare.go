package dns

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/libdns/cloudflare"
)

var _ = register(kind{
	name: "cloudflare",
	fields: []field{
		{name: "api_token", right: "a Cloudflare API token with Zone.DNS:Edit on the zone"},
		{name: "zone_token", right: "a Cloudflare API token with Zone.Zone:Read", optional: true},
	},
	build: newCloudflare,
})

// newCloudflare builds a client of Cloudflare's DNS.
func newCloudflare(set Settings) (driver, error) {
	if strings.ContainsAny(string(set["api_token"]+set["zone_token"]), " \t\r\n\"'") {
		return driver{}, errors.New("api_token and zone_token take bare tokens: leave out spaces, quotes and Bearer")
	}
	// A client of its own, because http.DefaultClient has no limits.
	return cloudflareVia(set, &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: 10 * time.Second,
		MaxIdleConns:          4,
		IdleConnTimeout:       time.Minute,
	}), nil
}

func cloudflareVia(set Settings, rt http.RoundTripper) driver {
	client := &cloudflare.Provider{
		APIToken:   string(set["api_token"]),
		ZoneToken:  string(set["zone_token"]),
		HTTPClient: jsonClient{http.Client{Transport: rt, Timeout: 15 * time.Second}},
	}
	return driver{
		open:     func() records { return client }, // safe for concurrent use
		classify: classifyCloudflare,
		explain:  explainCloudflare,
	}
}

// classifyCloudflare goes by the codes of Cloudflare's API, which the library
// prints as [{Code:81058 Message:...}].
func classifyCloudflare(err error) class {
	if err == nil {
		return classOK
	}
	if he, ok := errors.AsType[*httpError](err); ok {
		return he.class()
	}
	text := err.Error()
	switch {
	case contains(text, "{Code:81057 ", "{Code:81058 "):
		return classExists
	case contains(text, "{Code:81044 "):
		return classMissing
	case contains(text, "{Code:971 "):
		return classTransient
	case contains(text, "HTTP 4", "got errors: HTTP 2", "expected 1 zone"):
		return classRefused
	}
	return classTransient
}

func explainCloudflare(err error, zone string) string {
	zone = strings.TrimSuffix(zone, ".")
	switch text := err.Error(); {
	case contains(text, "expected 1 zone, got 0"):
		return fmt.Sprintf("the token sees no zone %s: it needs Zone.Zone:Read and Zone.DNS:Edit there", zone)
	case contains(text, "HTTP 401", "HTTP 403", "{Code:9109 ", "{Code:10000 ", "{Code:6003 "):
		return fmt.Sprintf("check api_token: it needs Zone.Zone:Read and Zone.DNS:Edit on %s", zone)
	}
	return ""
}
