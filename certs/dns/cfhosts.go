package dns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
)

// cfHosts keeps records by Cloudflare's API, version 4.
type cfHosts struct {
	client           *http.Client
	token, zoneToken string

	mu    sync.Mutex        // guards the following
	zones map[string]string // ids of zones, until a request with one fails
}

const (
	cfBase = "https://api.cloudflare.com/client/v4"
	// cfPage is the most records that a page has.
	cfPage = 100
)

// cfHost is a record as the API has it.
type cfHost struct {
	ID      string `json:"id,omitempty"`
	Type    string `json:"type,omitempty"`
	Name    string `json:"name,omitempty"`
	Content string `json:"content,omitempty"`
	TTL     int    `json:"ttl,omitempty"`
	Proxied *bool  `json:"proxied,omitempty"`
}

func (r cfHost) host() Host {
	h := Host{Name: strings.ToLower(r.Name), Type: r.Type, Data: r.Content, TTL: r.TTL, ID: r.ID}
	switch {
	case r.Type == "TXT":
		if text, err := strconv.Unquote(r.Content); err == nil {
			h.Data = text
		}
	case r.Proxied != nil && *r.Proxied:
		h.Odd = "proxied by Cloudflare"
	}
	return h
}

// call makes one request and reads the result into into, nil: nobody wants it.
func (c *cfHosts) call(ctx context.Context, method, path, token string, body, into any) error {
	var text []byte
	if body != nil {
		text, _ = json.Marshal(body) // of strings and numbers
	}
	req, err := http.NewRequestWithContext(ctx, method, cfBase+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := (&cfClient{client: c.client}).Do(req)
	if err != nil {
		return err
	}
	var said struct{ Result json.RawMessage }
	if err := json.NewDecoder(resp.Body).Decode(&said); err != nil {
		return fmt.Errorf("the reply is not what it should be: %w", err)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(said.Result, into); err != nil {
		return fmt.Errorf("the reply is not what it should be: %w", err)
	}
	return nil
}

// zone returns the path of a zone.
func (c *cfHosts) zone(ctx context.Context, zone string) (string, error) {
	c.mu.Lock()
	id := c.zones[zone]
	c.mu.Unlock()
	if id != "" {
		return "/zones/" + id, nil
	}
	token := c.token
	if c.zoneToken != "" {
		token = c.zoneToken
	}
	var found []struct{ ID string }
	if err := c.call(ctx, http.MethodGet, "/zones?"+url.Values{"name": {zone}}.Encode(), token, nil, &found); err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("expected 1 zone, got %d for %s", len(found), zone)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.zones[zone] = found[0].ID
	return "/zones/" + found[0].ID, nil
}

// onZone makes one request below a zone. That the zone's id may be another one by
// now is found out with the next.
func (c *cfHosts) onZone(ctx context.Context, zone, method, path string, body, into any) error {
	at, err := c.zone(ctx, zone)
	if err != nil {
		return err
	}
	err = c.call(ctx, method, at+path, c.token, body, into)
	if ce, ok := errors.AsType[*cfError](err); ok && !ce.is(81044, 81057, 81058) && (ce.status == http.StatusNotFound || ce.status == http.StatusForbidden) {
		c.mu.Lock()
		delete(c.zones, zone)
		c.mu.Unlock()
	}
	return err
}

func (c *cfHosts) read(ctx context.Context, zone string, names []string) ([]Host, error) {
	var all []Host
	for _, name := range names {
		for page := 1; ; page++ {
			var found []cfHost
			q := url.Values{"name": {name}, "per_page": {strconv.Itoa(cfPage)}, "page": {strconv.Itoa(page)}}
			if err := c.onZone(ctx, zone, http.MethodGet, "/dns_records?"+q.Encode(), nil, &found); err != nil {
				return nil, err
			}
			for _, r := range found {
				if strings.EqualFold(r.Name, name) {
					all = append(all, r.host())
				}
			}
			if len(found) < cfPage {
				break
			}
		}
	}
	return all, nil
}

func (c *cfHosts) add(ctx context.Context, zone string, r Host) error {
	proxied := false
	in := cfHost{Type: r.Type, Name: r.Name, Content: r.Data, TTL: r.TTL}
	if in.Proxied = &proxied; r.Type == "TXT" {
		in.Proxied, in.Content = nil, strconv.Quote(r.Data)
	}
	return c.onZone(ctx, zone, http.MethodPost, "/dns_records", in, nil)
}

func (c *cfHosts) update(ctx context.Context, zone string, r Host) error {
	return c.onZone(ctx, zone, http.MethodPatch, "/dns_records/"+url.PathEscape(r.ID), cfHost{TTL: r.TTL}, nil)
}

func (c *cfHosts) remove(ctx context.Context, zone string, r Host) error {
	if r.ID == "" {
		return fmt.Errorf("the record %s %s has no id", r.Name, r.Type)
	}
	return c.onZone(ctx, zone, http.MethodDelete, "/dns_records/"+url.PathEscape(r.ID), nil, nil)
}

// leastTTL is that of zones of every plan but the largest.
func (c *cfHosts) leastTTL(context.Context, string) (int, error) { return 60, nil }

func (c *cfHosts) weighted() bool { return false }
