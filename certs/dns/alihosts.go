package dns

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// aliHosts keeps records by Aliyun's API, version 2015-01-09. libdns/alidns reads
// the first twenty records of a zone and no more, and knows no weights.
type aliHosts struct {
	id, secret, token string
	client            *http.Client
}

const (
	// aliPage is the most records that a page has.
	aliPage = 500
	// aliLine is the line of records that everybody gets.
	aliLine = "default"
)

// aliReplyHosts is as much of replies as is needed.
type aliReplyHosts struct {
	TotalCount    int
	MinTTL        int `json:"MinTtl"`
	DomainRecords struct {
		Record []struct {
			RR, Type, Value, Status, Line string
			TTL                           int
			ID                            string `json:"RecordId"`
			Weight                        int
		}
	}
}

// call makes one request, signed as ACS3-HMAC-SHA256 has it.
func (a *aliHosts) call(ctx context.Context, action string, params url.Values) (*aliReplyHosts, error) {
	body := params.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+aliHost+"/", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	a.sign(req, action, body)
	resp, err := a.client.Do(req)
	if err != nil {
		if he, ok := errors.AsType[*httpError](err); ok {
			return nil, aliErrorOf(he)
		}
		return nil, err
	}
	defer resp.Body.Close()
	var reply struct {
		aliReplyHosts
		Message string
	}
	if err := json.NewDecoder(resp.Body).Decode(&reply); err != nil {
		return nil, fmt.Errorf("the reply is not what it should be: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		// As aliTransport marks it: the code in brackets, and the message.
		return nil, aliErrorOf(fmt.Errorf("get error status: HTTP %d: %s", resp.StatusCode, reply.Message))
	}
	return &reply.aliReplyHosts, nil
}

// sign adds the headers of a request and the signature over them.
func (a *aliHosts) sign(req *http.Request, action, body string) {
	digest := sha256.Sum256([]byte(body))
	headers := [][2]string{ // in order
		{"content-type", "application/x-www-form-urlencoded"},
		{"host", aliHost},
		{"x-acs-action", action},
		{"x-acs-content-sha256", hex.EncodeToString(digest[:])},
		{"x-acs-date", time.Now().UTC().Format(time.RFC3339)},
		{"x-acs-security-token", a.token},
		{"x-acs-signature-nonce", rand.Text()},
		{"x-acs-version", "2015-01-09"},
	}
	var canonical bytes.Buffer
	var names []string
	fmt.Fprintf(&canonical, "%s\n/\n\n", req.Method)
	for _, h := range headers {
		if h[1] == "" {
			continue
		}
		fmt.Fprintf(&canonical, "%s:%s\n", h[0], h[1])
		names = append(names, h[0])
		if h[0] != "host" {
			req.Header.Set(h[0], h[1])
		}
	}
	signed := strings.Join(names, ";")
	fmt.Fprintf(&canonical, "\n%s\n%x", signed, digest)
	hashed := sha256.Sum256(canonical.Bytes())
	mac := hmac.New(sha256.New, []byte(a.secret))
	fmt.Fprintf(mac, "ACS3-HMAC-SHA256\n%x", hashed)
	req.Header.Set("Authorization", fmt.Sprintf("ACS3-HMAC-SHA256 Credential=%s,SignedHeaders=%s,Signature=%x", a.id, signed, mac.Sum(nil)))
}

// relative returns name as the API has it in zone.
func relative(name, zone string) string {
	if name == zone {
		return "@"
	}
	return strings.TrimSuffix(name, "."+zone)
}

func (a *aliHosts) read(ctx context.Context, zone string, names []string) ([]Host, error) {
	var all []Host
	for _, name := range names {
		sub := relative(name, zone) + "." + zone
		seen := 0
		for page := 1; ; page++ {
			reply, err := a.call(ctx, "DescribeSubDomainRecords", url.Values{
				"DomainName": {zone}, "SubDomain": {sub}, "PageSize": {strconv.Itoa(aliPage)}, "PageNumber": {strconv.Itoa(page)}})
			if err != nil {
				return nil, err
			}
			for _, r := range reply.DomainRecords.Record {
				if !strings.EqualFold(r.RR, relative(name, zone)) {
					continue
				}
				h := Host{Name: name, Type: r.Type, Data: r.Value, TTL: r.TTL, ID: r.ID, Weight: r.Weight}
				switch {
				case !strings.EqualFold(r.Status, "ENABLE"):
					h.Odd = "switched off"
				case r.Line != aliLine:
					h.Odd = "for the line " + r.Line + " alone"
				}
				all = append(all, h)
			}
			seen += len(reply.DomainRecords.Record)
			if seen >= reply.TotalCount || len(reply.DomainRecords.Record) == 0 {
				break
			}
		}
	}
	return all, nil
}

// add adds a record. Its weight can be given to it only once it is there.
func (a *aliHosts) add(ctx context.Context, zone string, r Host) error {
	_, err := a.call(ctx, "AddDomainRecord", url.Values{
		"DomainName": {zone}, "RR": {relative(r.Name, zone)}, "Type": {r.Type}, "Value": {r.Data}, "TTL": {strconv.Itoa(r.TTL)}})
	if ae, ok := errors.AsType[*aliError](err); ok && ae.class() == classExists {
		err = nil
	}
	if err != nil || r.Weight == 0 {
		return err
	}
	return a.weigh(ctx, zone, r)
}

// weigh gives a record its weight, and has answers for its name weighted. A name
// with one record of a type has nothing to weight.
func (a *aliHosts) weigh(ctx context.Context, zone string, r Host) error {
	found, err := a.read(ctx, zone, []string{r.Name})
	if err != nil {
		return err
	}
	others := 0
	for _, o := range found {
		switch {
		case o.Type == r.Type && o.Data == r.Data:
			r.ID = o.ID
		case o.Type == r.Type:
			others++
		}
	}
	if others == 0 || r.ID == "" {
		return nil
	}
	sub := relative(r.Name, zone) + "." + zone
	if _, err := a.call(ctx, "SetDNSSLBStatus", url.Values{"DomainName": {zone}, "SubDomain": {sub}, "Open": {"true"}, "Type": {r.Type}}); err != nil {
		return err
	}
	_, err = a.call(ctx, "UpdateDNSSLBWeight", url.Values{"RecordId": {r.ID}, "Weight": {strconv.Itoa(r.Weight)}})
	return err
}

func (a *aliHosts) update(ctx context.Context, zone string, r Host) error {
	_, err := a.call(ctx, "UpdateDomainRecord", url.Values{
		"RecordId": {r.ID}, "RR": {relative(r.Name, zone)}, "Type": {r.Type}, "Value": {r.Data}, "TTL": {strconv.Itoa(r.TTL)}})
	if ae, ok := errors.AsType[*aliError](err); ok && ae.class() == classExists {
		err = nil // it has that TTL already
	}
	if err != nil || r.Weight == 0 {
		return err
	}
	return a.weigh(ctx, zone, r)
}

func (a *aliHosts) remove(ctx context.Context, _ string, r Host) error {
	if r.ID == "" {
		return fmt.Errorf("the record %s %s has no id", r.Name, r.Type)
	}
	_, err := a.call(ctx, "DeleteDomainRecord", url.Values{"RecordId": {r.ID}})
	return err
}

// leastTTL asks for it: it is 600 s in zones that cost nothing.
func (a *aliHosts) leastTTL(ctx context.Context, zone string) (int, error) {
	reply, err := a.call(ctx, "DescribeDomainInfo", url.Values{"DomainName": {zone}})
	if err != nil {
		return 0, err
	}
	return max(reply.MinTTL, 1), nil
}

func (a *aliHosts) weighted() bool { return true }
