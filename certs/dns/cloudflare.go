package dns

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/libdns/cloudflare"
	"github.com/libdns/libdns"
)

var _ = register(kind{
	name: "cloudflare",
	fields: []field{
		{name: "api_token", right: "a Cloudflare API token with Zone.DNS:Edit on the zone"},
		{name: "zone_token", right: "a Cloudflare API token with Zone.Zone:Read", optional: true},
	},
	build: newCloudflare,
})

// newCloudflare builds a client of Cloudflare's DNS. libdns/cloudflare v0.2.2
// needs care:
//
//   - A Provider remembers the id of a zone for ever, a senseless one too: every
//     call gets one of its own.
//   - It takes a list of records that failed for an empty one, and so a record
//     that it could not look for as deleted: cfClient keeps the failure.
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
	client := &http.Client{Transport: rt, Timeout: 15 * time.Second}
	return driver{
		open: func() records {
			c := &cfClient{client: client}
			return cfRecords{c, &cloudflare.Provider{
				APIToken: string(set["api_token"]), ZoneToken: string(set["zone_token"]), HTTPClient: c,
			}}
		},
		classify: classifyCloudflare,
		hosts:    &cfHosts{client: client, token: string(set["api_token"]), zoneToken: string(set["zone_token"]), zones: map[string]string{}},
		explain:  explainCloudflare,
	}
}

// cfRecords is the library's client for one call.
type cfRecords struct {
	c *cfClient
	p *cloudflare.Provider
}

func (r cfRecords) AppendRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	return r.p.AppendRecords(ctx, zone, recs)
}

func (r cfRecords) DeleteRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	got, err := r.p.DeleteRecords(ctx, zone, recs)
	if err == nil {
		err = r.c.failed
	}
	return got, err
}

// classifyCloudflare goes by the codes of Cloudflare's API.
func classifyCloudflare(err error) class {
	if err == nil {
		return classOK
	}
	if he, ok := errors.AsType[*httpError](err); ok {
		return he.class()
	}
	ce, ok := errors.AsType[*cfError](err)
	switch {
	case !ok && contains(err.Error(), "expected 1 zone"):
		return classRefused
	case !ok:
		return classTransient // the network's
	case ce.is(81057, 81058):
		return classExists
	case ce.is(81044):
		return classMissing
	case ce.is(971, 10429), ce.status == http.StatusTooManyRequests, ce.status >= 500:
		return classTransient
	}
	return classRefused
}

func explainCloudflare(err error, zone string) string {
	zone = strings.TrimSuffix(zone, ".")
	if contains(err.Error(), "expected 1 zone, got 0") {
		return fmt.Sprintf("the token sees no zone %s: it needs Zone.Zone:Read and Zone.DNS:Edit there", zone)
	}
	ce, ok := errors.AsType[*cfError](err)
	switch {
	case !ok:
		return ""
	case ce.is(81045):
		return fmt.Sprintf("zone %s is at its limit of records: delete some, or have it raised", zone)
	case ce.status == 401, ce.status == 403, ce.is(9109, 10000, 6003, 1000):
		return fmt.Sprintf("check api_token: it needs Zone.Zone:Read and Zone.DNS:Edit on %s, and must not have expired", zone)
	}
	return ""
}
